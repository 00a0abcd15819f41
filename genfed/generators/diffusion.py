"""What the denoising diffusion models of images and of series share; they need the extra `diffusers`.

Ho, Jain, Abbeel ("Denoising Diffusion Probabilistic Models", arXiv 2006.11239, Algorithms 1 and 2) and Ho, Salimans
("Classifier-Free Diffusion Guidance", arXiv 2207.12598, Algorithms 1 and 2). Few-step samplers: Song, Meng, Ermon
(DDIM, arXiv 2010.02502) and Lu, Zhou, Bao, Chen, Li, Zhu (DPM-Solver++, arXiv 2211.01095).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError, require
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.generator import CHUNK, Generator, GeneratorNetwork
from genfed.training.fit import Objective


@settings
class Diffusion(Generator):
    """Settings of a conditional diffusion model."""

    name: ClassVar[str]
    """Name of the generator, for messages."""

    steps: int = Field(
        default=100,
        ge=2,
        description="Diffusion steps (n_T); GeFL has 100 for MNIST, 400 for CIFAR10 and 500 for its features.",
    )
    last_beta: float = Field(
        default=0.02,
        gt=1e-4,
        lt=1,
        description="Last β; β rises linearly from 1e-4. With GeFL's 100 steps to 0.02 the last step still has 0.6 of "
        "the example, while samples start from pure noise. 0.2 avoids this, and samplers of few steps need it.",
    )
    guidance_scale: float = Field(
        default=0.0,
        ge=0,
        description="Weight w of classifier-free guidance: ε = (1 + w)·ε_class − w·ε_none, at twice the cost; 0: no "
        "guidance.",
    )
    drop: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Probability in training that an example's class is hidden, to learn ε_none (p).",
    )
    sampler: Literal["ddpm", "ddim", "dpmsolver"] = Field(
        default="ddpm",
        description='Sampler: "ddpm", that of Ho et al., or DDIM or DPM-Solver++, which draw no new noise and need '
        "only 10 to 20 steps.",
    )
    sampling_steps: int | None = Field(
        default=None, ge=1, description="Network calls per sample, at most `steps`; None: `steps`."
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        description="Learning rate of Adam in the first generator round; it falls linearly, to 0 after the last round.",
    )

    def __post_init__(self) -> None:
        if (self.sampling_steps or 0) > self.steps:
            raise GenfedError(f"sampling_steps = {self.sampling_steps}: at most steps = {self.steps} is allowed")


class DiffusionNetwork(GeneratorNetwork):
    """ε_θ, which predicts the noise in a noisy example. Subclasses implement `predict_noise`, and the scale on which
    noise is added.
    """

    def __init__(self, task: Task, config: Diffusion) -> None:
        super().__init__()
        self.config, self.shape, self.none = config, task.shape, len(task.classes)
        self.clips = task.kind == "image"
        self.schedule = {
            "num_train_timesteps": config.steps,
            "beta_start": 1e-4,
            "beta_end": config.last_beta,
            "beta_schedule": "linear",
            "timestep_spacing": "trailing",
        }
        self.diffusion = import_diffusers(config.name).DDPMScheduler(**self.schedule)

    @abstractmethod
    def predict_noise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predicts the noise in noisy examples (ε_θ), [n, *shape].

        Args:
            x: The noisy examples [n, *shape].
            t: The step of each [n], 0 … n_T − 1.
            y: The class of each [n]; the number of classes: no class.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Returns examples on the scale on which noise is added."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Returns samples on the scale of examples."""
        return x

    def loss(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns ‖ε − ε_θ(√ᾱ_t·x + √(1 − ᾱ_t)·ε, t, y)‖² (Ho et al., Algorithm 1) per example [n].

        It is the mean over an example's numbers, not the sum: about 1 for an untrained network of any shape. For Adam
        this makes no difference.
        """
        x = self.encode(x)
        t = torch.randint(self.config.steps, (len(x),), generator=rng).to(x.device)
        noise = torch.randn(x.shape, generator=rng).to(x.device)
        hidden = (torch.rand(len(x), generator=rng) < self.config.drop).to(x.device)
        predicted = self.predict_noise(self.diffusion.add_noise(x, noise, t), t, y.masked_fill(hidden, self.none))
        return (predicted - noise).square().flatten(1).mean(1)

    def objectives(self) -> Sequence[Objective]:
        adam = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        return [Objective(self.loss, adam, network=self)]

    def learning_rate_factor(self, progress: float) -> float:
        return 1 - progress  # lr_t = lr · (1 − t/T_KA)

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        # All samples take a step before any takes the next, so the draws do not depend on the size of the chunks.
        scheduler, options = self._new_sampler(rng)
        scheduler.set_timesteps(self.config.sampling_steps or self.config.steps)
        x = torch.randn(len(y), *self.shape, generator=rng).to(y.device)
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                # Attention accepts no empty batch.
                for t in scheduler.timesteps.tolist() if len(y) else []:
                    chunks = zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
                    noise = torch.cat([self.predict_guided_noise(*chunk, t) for chunk in chunks])
                    x = scheduler.step(noise, t, x, **options).prev_sample
        finally:
            self.train(training)
        return self.decode(x)  # outside inference mode: a classifier may be trained on the samples

    def predict_guided_noise(self, x: Tensor, y: Tensor, t: int) -> Tensor:
        """Returns (1 + w)·ε_θ(x, t, y) − w·ε_θ(x, t, none) (Ho and Salimans, Eq. 6) by one network call."""
        w = self.config.guidance_scale
        if w == 0:
            return self.predict_noise(x, torch.full_like(y, t), y)
        labels = torch.cat([y, torch.full_like(y, self.none)])
        of_class, of_none = self.predict_noise(torch.cat([x, x]), torch.full_like(labels, t), labels).chunk(2)
        return (1 + w) * of_class - w * of_none

    def _new_sampler(self, rng: torch.Generator) -> tuple[Any, dict[str, Any]]:
        """Returns a new scheduler of diffusers and the options of its `step`. Each step clips its estimate of an
        image's x_0 to [−1, 1].
        """
        diffusers, clips = import_diffusers(self.config.name), self.clips
        if self.config.sampler == "ddpm":
            return diffusers.DDPMScheduler(**self.schedule, clip_sample=clips), {"generator": rng}
        if self.config.sampler == "ddim":  # without the option its noise would be that of the unclipped x_0
            return diffusers.DDIMScheduler(**self.schedule, clip_sample=clips), {"use_clipped_model_output": clips}
        return diffusers.DPMSolverMultistepScheduler(**self.schedule, thresholding=clips), {}


def import_diffusers(name: str) -> Any:
    """Returns the package diffusers; `name` is the generator's, for the message.

    Raises:
        GenfedError: the extra is not installed.
    """
    require("diffusers", extra="diffusers", what=f"generator {name}")
    import diffusers  # takes seconds

    return diffusers
