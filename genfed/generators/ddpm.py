"""The denoising diffusion model of GeFL, on diffusers' U-Net and samplers; needs the extra `diffusers`.

Kang, Cha, Kang: "GeFL: Model-Agnostic Federated Learning with Generative Models", arXiv 2412.18460.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.diffusion import Diffusion, DiffusionNetwork, import_diffusers
from genfed.generators.feature_scaling import ChannelScaler
from genfed.generators.generator import check_maps


@settings
class DDPM(Diffusion):
    """A conditional diffusion model for images from 8×8 to 64×64, samples in [−1, 1], or for feature maps."""

    name = "ddpm"

    width: int = Field(default=56, ge=4, multiple_of=4)
    """Channels of the U-Net at full size; each halving doubles them. With 56 and three levels it has the paper's 7.6M
    parameters."""
    levels: int = Field(default=3, ge=1, le=5)
    """Number of map sizes in the U-Net, each half of the one before; fewer if the map cannot be halved. A light U-Net
    for weak clients is width = 16, levels = 2."""

    def new(self, task: Task, rng: torch.Generator) -> "DDPMNetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the extra is not installed, the task is a table, or its images are not of 8×8 to 64×64.
        """
        check_maps("ddpm", task, 8 if task.kind == "image" else 1)
        with seeded(rng):
            return DDPMNetwork(task, self)


class DDPMNetwork(DiffusionNetwork):
    """ε_θ, which predicts the noise in a noisy example."""

    def __init__(self, task: Task, config: DDPM) -> None:
        super().__init__(task, config)
        self.scale = ChannelScaler(task.shape[0]) if task.kind == "features" else None
        channels, height, width = task.shape
        levels = min(config.levels, 1 + int(math.log2(min(height, width))))
        self.padding = (0, -width % 2 ** (levels - 1), 0, -height % 2 ** (levels - 1))
        # differs from the paper: the U-Net is diffusers', of similar size.
        self.unet = import_diffusers(config.name).UNet2DModel(
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

    def predict_noise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noise: Tensor = self.unet(F.pad(x, self.padding), t, class_labels=y).sample
        return noise[..., : self.shape[1], : self.shape[2]].float()

    def encode(self, x: Tensor) -> Tensor:
        return self.scale(x) if self.scale else x

    def decode(self, x: Tensor) -> Tensor:
        # Features are the output of a ReLU.
        return torch.relu(self.scale.unscale(x)) if self.scale else x.clamp(-1, 1)
