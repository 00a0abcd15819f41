"""Sampling from noise to images, step by step, by diffusers' schedulers."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genfed.core.errors import GenfedError

Rngs = Sequence[torch.Generator]
"""Generators on the CPU, one per image."""
Scheduler = Literal["own", "ddpm", "ddim", "dpmsolver"]
"""Name of a scheduler. "own": the directory's; "ddpm": ancestral sampling (Ho et al., arXiv 2006.11239), which draws
noise in every step; "ddim" (Song, Meng, Ermon, arXiv 2010.02502); "dpmsolver": DPM-Solver++ (Lu et al., arXiv
2211.01095), for 10 to 20 steps."""
_CLASSES = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpmsolver": "DPMSolverMultistepScheduler"}
OWN = (*_CLASSES.values(), "PNDMScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Schedulers that a directory may have: those that use the z_t of `FoundationModel` (others scale it)."""


@dataclass(frozen=True)
class Sampler:
    """A sampler for one batch. If the caller edits z between steps, it should be ddpm or ddim: schedulers of a higher
    order use earlier steps.
    """

    scheduler: Any
    timesteps: tuple[int, ...]
    """Steps from noise to image; PNDM has one of them twice."""

    def step(self, output: Tensor, t: int, z: Tensor, rngs: Rngs) -> Tensor:
        """Returns the z of the next step.

        Args:
            output: The network's raw output for z at t, with or without guidance.
            t: The step.
            z: The noisy examples [n, …].
            rngs: The generators of the noise, if the scheduler draws any.
        """
        parameters = inspect.signature(self.scheduler.step).parameters
        noise = {"generator": list(rngs)} if "generator" in parameters else {}
        stepped: Tensor = self.scheduler.step(output, t, z, **noise).prev_sample
        return stepped


def new_sampler(own: Any, steps: int, name: Scheduler, *, clipped: bool | None) -> Sampler:
    """Returns a sampler with the noise schedule of the scheduler `own`.

    Args:
        own: The directory's scheduler.
        steps: The number of steps.
        name: The scheduler's name.
        clipped: Whether each step clips x0 to [−1, 1]; None: the directory's setting.

    Raises:
        GenfedError: there are more steps than the diffusion has.
    """
    import diffusers

    if not 1 <= steps <= (most := own.config.num_train_timesteps):
        raise GenfedError(f"steps = {steps}: 1 to {most}, those of the model's training, is allowed")
    scheduler_class = type(own) if name == "own" else getattr(diffusers, _CLASSES[name])
    parameters = inspect.signature(scheduler_class.__init__).parameters
    clipping = {"clip_sample": clipped} if clipped is not None and "clip_sample" in parameters else {}
    scheduler = scheduler_class.from_config(own.config, **clipping)
    scheduler.set_timesteps(steps)
    return Sampler(scheduler, tuple(int(t) for t in scheduler.timesteps))
