"""From noise to images, step by step, by a scheduler of diffusers."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genfed.core.errors import GenfedError

Rngs = Sequence[torch.Generator]
"""One per image, on the CPU."""
Scheduler = Literal["own", "ddpm", "ddim", "dpmsolver"]
"""The directory's own; the ancestral one of Ho et al. (arXiv 2006.11239), which draws noise in every step; DDIM (Song,
Meng, Ermon, arXiv 2010.02502); DPM-Solver++ (Lu et al., arXiv 2211.01095), for 10 to 20 steps."""
_CLASSES = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpmsolver": "DPMSolverMultistepScheduler"}
OWN = (*_CLASSES.values(), "PNDMScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Schedulers that a directory may name: those that step z_t as `FoundationModel` has it (others scale it)."""


@dataclass(frozen=True)
class Sampler:
    """One batch on its way; a scheduler of several orders remembers earlier steps."""

    scheduler: Any
    timesteps: tuple[int, ...]
    """From noise to image. PNDM has one twice; one that the caller edits z between steps of should be ddpm or ddim."""

    def step(self, output: Tensor, t: int, z: Tensor, rngs: Rngs) -> Tensor:
        """The next step's z, from the network's raw output (guided or not) for z at t; noise, if any, from rngs."""
        takes = inspect.signature(self.scheduler.step).parameters
        noise = {"generator": list(rngs)} if "generator" in takes else {}
        stepped: Tensor = self.scheduler.step(output, t, z, **noise).prev_sample
        return stepped


def new_sampler(own: Any, steps: int, name: Scheduler, *, clipped: bool | None) -> Sampler:
    """A sampler with the noise schedule of the scheduler `own`; `clipped` says whether a step cuts x0 to [−1, 1] (None:
    as the directory has it).

    Raises:
        GenfedError: more steps than the diffusion has.
    """
    import diffusers

    if not 1 <= steps <= (most := own.config.num_train_timesteps):
        raise GenfedError(f"steps = {steps}: 1 to {most}, those of the model's training, is allowed")
    made = type(own) if name == "own" else getattr(diffusers, _CLASSES[name])
    takes = inspect.signature(made.__init__).parameters
    cut = {"clip_sample": clipped} if clipped is not None and "clip_sample" in takes else {}
    scheduler = made.from_config(own.config, **cut)
    scheduler.set_timesteps(steps)
    return Sampler(scheduler, tuple(int(t) for t in scheduler.timesteps))
