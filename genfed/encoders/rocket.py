"""Random convolutions of series. Dempster, Petitjean, Webb, ROCKET: exceptionally fast and accurate time series
classification using random convolutional kernels, arXiv 1910.13051.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder

LENGTH = 9
"""Numbers of a kernel along time."""
CHUNK = 256
"""Windows at once: their responses are far larger than they."""


@settings
class Rocket(Encoder):
    """Features of series by random kernels, which are drawn from the run's seed and never trained: the share of a
    window in which a kernel's response is positive, and its largest response. There are 2 · `kernels` features.
    """

    # differs from the paper: kernels have 9 numbers (it has 7, 9 and 11), steps between them that are powers of 2, and
    # always padding; features are scaled by constants to a mean square of about 1.
    kernels: Annotated[int, Field(ge=1, le=2**14)] = 500
    """Number of kernels."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "series":
            raise GenfedError(f"encoder rocket takes series; the examples are {task.noun}")
        channels, steps = task.shape
        return RocketNetwork(self.kernels, channels, steps, rng)


class RocketNetwork(nn.Module):
    """The kernels of each dilation (steps between the numbers of a kernel), and the biases of their responses."""

    def __init__(self, kernels: int, channels: int, steps: int, rng: torch.Generator) -> None:
        super().__init__()
        self.dilations = [2**i for i in range(1 + int(math.log2(max(1, (steps - 1) / (LENGTH - 1)))))]
        drawn = torch.randint(len(self.dilations), (kernels,), generator=rng)
        for place in range(len(self.dilations)):
            count = int((drawn == place).sum())
            self.register_buffer(f"kernel{place}", draw_kernels(count, channels, rng))
            self.register_buffer(f"bias{place}", 2 * torch.rand(count, generator=rng) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [n, d] of windows [n, C, T]."""
        if torch.compiler.is_compiling():  # a number of chunks would fix the number of windows
            return self._encode(x)
        return torch.cat([self._encode(part) for part in torch.split(x, CHUNK)])

    def _encode(self, x: Tensor) -> Tensor:
        shares, largest = [], []
        for place, dilation in enumerate(self.dilations):
            kernel, bias = self.get_buffer(f"kernel{place}"), self.get_buffer(f"bias{place}")
            response = F.conv1d(x, kernel, bias, dilation=dilation, padding=dilation * (LENGTH // 2))
            shares.append((response > 0).float().mean(2))
            largest.append(response.amax(2))
        return torch.cat([4 * torch.cat(shares, 1) - 2, torch.cat(largest, 1) / 5], 1)


def draw_kernels(count: int, channels: int, rng: torch.Generator) -> Tensor:
    """Returns kernels [count, channels, 9] with mean 0 in each channel: normal numbers in 2^u random channels, u
    uniform up to log₂(channels), and zeros in the others.
    """
    used = (2 ** (torch.rand(count, generator=rng) * math.log2(channels + 0.99))).floor()
    order = torch.rand(count, channels, generator=rng).argsort(1).argsort(1)
    drawn = torch.randn(count, channels, LENGTH, generator=rng)
    return (drawn - drawn.mean(2, keepdim=True)) * (order < used[:, None])[..., None]
