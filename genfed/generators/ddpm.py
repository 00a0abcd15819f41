"""The denoising diffusion model of GeFL, on diffusers' U-Net and samplers; needs the extra `diffusers`.

Kang, Cha, Kang: "GeFL: Model-Agnostic Federated Learning with Generative Models", arXiv 2412.18460; after Ho, Jain,
Abbeel ("Denoising Diffusion Probabilistic Models", arXiv 2006.11239, Algorithms 1 and 2) and Ho, Salimans
("Classifier-Free Diffusion Guidance", arXiv 2207.12598, Algorithms 1 and 2). Few-step samplers: Song, Meng, Ermon
(DDIM, arXiv 2010.02502) and Lu, Zhou, Bao, Chen, Li, Zhu (DPM-Solver++, arXiv 2211.01095).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError, require
from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.feature_scaling import ChannelScaler
from genfed.generators.generator import CHUNK, Generator, GeneratorNetwork, check_maps
from genfed.training.fit import Objective


@settings
class DDPM(Generator):
    """A conditional diffusion model for images from 8×8 to 64×64, samples in [−1, 1], or for feature maps."""

    width: int = Field(default=56, ge=4, multiple_of=4)
    """Channels of the U-Net at full size; each halving doubles them. With 56 and three levels it has the paper's 7.6M
    parameters."""
    levels: int = Field(default=3, ge=1, le=5)
    """Number of map sizes in the U-Net, each half of the one before; fewer if the map cannot be halved. A light U-Net
    for weak clients is width = 16, levels = 2."""
    steps: int = Field(default=100, ge=2)
    """Diffusion steps (n_T); the paper has 100 for MNIST, 400 for CIFAR10 and 500 for its features."""
    last_beta: float = Field(default=0.02, gt=1e-4, lt=1)
    """Last β; β rises linearly from 1e-4. With the paper's 100 steps to 0.02 the last step still has 0.6 of the image,
    while samples start from pure noise. 0.2 avoids this, and samplers of few steps need it."""
    guidance_scale: float = Field(default=0.0, ge=0)
    """Weight w of classifier-free guidance: ε = (1 + w)·ε_class − w·ε_none, at twice the cost; 0: no guidance."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Probability in training that an example's class is hidden, to learn ε_none (p)."""
    sampler: Literal["ddpm", "ddim", "dpmsolver"] = "ddpm"
    """Sampler: "ddpm", the paper's, or DDIM or DPM-Solver++, which draw no new noise and need only 10 to 20 steps."""
    sampling_steps: int | None = Field(default=None, ge=1)
    """Network calls per sample, at most `steps`; None: `steps`."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of Adam in the first generator round; it falls linearly, to 0 after the last round."""

    def __post_init__(self) -> None:
        if (self.sampling_steps or 0) > self.steps:
            raise GenfedError(f"sampling_steps = {self.sampling_steps}: at most steps = {self.steps} is allowed")

    def new(self, task: Task, rng: torch.Generator) -> "DDPMNetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the extra is not installed, the task is a table, or its images are not of 8×8 to 64×64.
        """
        check_maps("ddpm", task, 8 if task.kind == "image" else 1)
        with seeded(rng):
            return DDPMNetwork(task, self)


class DDPMNetwork(GeneratorNetwork):
    """ε_θ, which predicts the noise in a noisy example."""

    def __init__(self, task: Task, config: DDPM) -> None:
        super().__init__()
        diffusers = _import_diffusers()
        self.config, self.shape, self.none = config, task.shape, len(task.classes)
        self.scale = ChannelScaler(task.shape[0]) if task.kind == "features" else None
        channels, height, width = task.shape
        levels = min(config.levels, 1 + int(math.log2(min(height, width))))
        self.padding = (0, -width % 2 ** (levels - 1), 0, -height % 2 ** (levels - 1))
        # differs from the paper: the U-Net is diffusers', of similar size.
        self.unet = diffusers.UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=[config.width * 2**i for i in range(levels)],
            down_block_types=["DownBlock2D"] * levels,
            up_block_types=["UpBlock2D"] * levels,
            layers_per_block=1,
            norm_num_groups=config.width // 4,
            attention_head_dim=None,  # one head, on the smallest maps
            num_class_embeds=self.none + 1,  # the last one means "no class"
        )
        self.schedule = {
            "num_train_timesteps": config.steps,
            "beta_start": 1e-4,
            "beta_end": config.last_beta,
            "beta_schedule": "linear",
            "timestep_spacing": "trailing",
        }
        self.diffusion = diffusers.DDPMScheduler(**self.schedule)

    def predict_noise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predicts the noise in noisy examples (ε_θ), [n, C, H, W].

        Args:
            x: The noisy examples [n, C, H, W].
            t: The step of each [n], 0 … n_T − 1.
            y: The class of each [n]; the number of classes: no class.
        """
        noise: Tensor = self.unet(F.pad(x, self.padding), t, class_labels=y).sample
        return noise[..., : self.shape[1], : self.shape[2]].float()

    def loss(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns ‖ε − ε_θ(√ᾱ_t·x + √(1 − ᾱ_t)·ε, t, y)‖² (Ho et al., Algorithm 1) per example [n].

        It is the mean over an example's numbers, not the sum: about 1 for an untrained network of any shape. For Adam
        this makes no difference.
        """
        if self.scale:
            x = self.scale(x)
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
        # Outside inference mode: a classifier may be trained on the samples. Features are the output of a ReLU.
        return torch.relu(self.scale.unscale(x)) if self.scale else x.clamp(-1, 1)

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
        diffusers, clips = _import_diffusers(), self.scale is None
        if self.config.sampler == "ddpm":
            return diffusers.DDPMScheduler(**self.schedule, clip_sample=clips), {"generator": rng}
        if self.config.sampler == "ddim":  # without the option its noise would be that of the unclipped x_0
            return diffusers.DDIMScheduler(**self.schedule, clip_sample=clips), {"use_clipped_model_output": clips}
        return diffusers.DPMSolverMultistepScheduler(**self.schedule, thresholding=clips), {}


def _import_diffusers() -> Any:
    require("diffusers", extra="diffusers", what="generator ddpm")
    import diffusers  # takes seconds

    return diffusers
