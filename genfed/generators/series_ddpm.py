"""A denoising diffusion model of series, on diffusers' one-dimensional U-Net; needs the extra `diffusers`. Losses and
samplers are those of `ddpm`.
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
from genfed.generators.series_shape import check_windows


@settings
class SeriesDDPM(Diffusion):
    """A conditional diffusion model for series of eight steps or more."""

    name = "series_ddpm"

    width: int = Field(default=32, ge=32, multiple_of=32)
    """Channels of the U-Net at full length; each halving doubles them."""
    levels: int = Field(default=2, ge=1, le=5)
    """Number of lengths in the U-Net, each half of the one before; fewer for short windows."""

    def new(self, task: Task, rng: torch.Generator) -> "SeriesDDPMNetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the extra is not installed, or the examples are no series of eight steps or more.
        """
        check_windows("series_ddpm", task)
        with seeded(rng):
            return SeriesDDPMNetwork(task, self)


class SeriesDDPMNetwork(DiffusionNetwork):
    """ε_θ of series. The U-Net takes no classes, so the class of a window is further channels, one-hot at every step;
    no class is zeros. Windows are scaled by their source, so noise is added to them as they are.
    """

    def __init__(self, task: Task, config: SeriesDDPM) -> None:
        super().__init__(task, config)
        channels, steps = task.shape
        levels = min(config.levels, int(math.log2(steps)) - 2)
        self.padding = (0, -steps % 2**levels)
        middle = levels - 1
        self.unet = import_diffusers(config.name).UNet1DModel(
            in_channels=channels + self.none,
            out_channels=channels,
            extra_in_channels=2 * config.width,  # the step, as Fourier features
            block_out_channels=[config.width * 2**i for i in range(levels)],
            down_block_types=["DownBlock1DNoSkip", *["DownBlock1D"] * middle],
            up_block_types=[*["UpBlock1D"] * middle, "UpBlock1DNoSkip"],
        )

    def predict_noise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        classes = F.one_hot(y, self.none + 1)[:, : self.none, None].expand(-1, -1, x.shape[2])
        padded = F.pad(torch.cat([x, classes.to(x)], 1), self.padding)
        noise: Tensor = self.unet(padded, t / self.config.steps).sample
        return noise[..., : self.shape[1]].float()
