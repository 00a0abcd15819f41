"""Random convolutions: filters that are drawn from the run's seed and never trained.

After Jarrett, Kavukcuoglu, Ranzato, LeCun ("What is the Best Multi-Stage Architecture for Object Recognition?", ICCV
2009) and Coates, Ng, Lee ("An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder

CHUNK = 64
"""Images at once: their responses are far larger than they."""


@settings
class RandomConv(Encoder):
    """Features of images by random smooth filters: |filter response| above a threshold, averaged over a grid of soft
    cells, square root, then scaled to mean square 1 per example. There are `filters` · `cells`² features.
    """

    filters: Annotated[int, Field(ge=1, le=4096)] = 59
    """Number of filters."""
    kernel: Annotated[int, Field(ge=1, le=31)] = 7
    """Side of a filter in pixels; odd."""
    smoothness: Annotated[float, Field(ge=0, le=10)] = 0.7
    """Standard deviation in pixels of the blur of a filter's random numbers. 0: no blur."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Response below which a filter is silent; filters have norm 1 and mean 0, pixels are in [−1, 1]."""
    cells: Annotated[int, Field(ge=1, le=32)] = 3
    """Cells per side of the grid over which responses are averaged, each with Gaussian weights."""
    contrast: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Constant c that is added to a patch's sum of squared deviations before its responses are divided by the root of
    both, which evens out the contrast of images. 0: they are not divided."""

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise GenfedError(f"kernel = {self.kernel}: an odd number is allowed, so that a filter has a middle")

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "image":
            raise GenfedError(f"encoder random_conv takes images; the examples are {task.noun}")
        if min(task.shape[1:]) < self.cells:
            raise GenfedError(f"cells = {self.cells}: images of {task.shape[1]}×{task.shape[2]} have no such grid")
        return RandomConvNetwork(self, task.shape[0], rng)


class RandomConvNetwork(nn.Module):
    """The encoder's network. It has no parameters, and one buffer: the filters [filters, C, kernel, kernel]."""

    filters: Tensor

    def __init__(self, how: RandomConv, channels: int, rng: torch.Generator) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("filters", draw_filters(how.filters, channels, how.kernel, how.smoothness, rng))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [n, d] of images [n, C, H, W]."""
        if torch.compiler.is_compiling():  # a number of chunks would fix the number of images
            return self._encode(x)
        return torch.cat([self._encode(part) for part in torch.split(x, CHUNK)])

    def _encode(self, x: Tensor) -> Tensor:
        responses = F.conv2d(x, self.filters, padding=self.how.kernel // 2)
        if self.how.contrast:
            responses = responses * self._evened(x)
        above = responses.abs().sub_(self.how.threshold).relu_()
        rows, columns = (weigh_cells(self.how.cells, side).to(x) for side in x.shape[2:])
        features = (rows @ above @ columns.T).flatten(1).sqrt()
        # 1e-6: an even image has no responses at all, and keeps features of 0.
        scaled: Tensor = features * features.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()
        return scaled

    def _evened(self, x: Tensor) -> Tensor:
        """Returns the factors [n, 1, H, W] of responses: kernel / √(sum of squared deviations in the patch + c)."""
        kernel, numbers = self.how.kernel, self.how.kernel**2 * x.shape[1]
        mean = F.avg_pool2d(x.mean(1, keepdim=True), kernel, 1, kernel // 2)
        square = F.avg_pool2d(x.square().mean(1, keepdim=True), kernel, 1, kernel // 2)
        deviations = numbers * (square - mean.square()).clamp_min(0)
        factors: Tensor = kernel * (deviations + self.how.contrast).rsqrt()
        return factors


def weigh_cells(cells: int, side: int) -> Tensor:
    """Returns the weights [cells, side] of the places along a side in each cell: a Gaussian at the middle of the cell,
    whose standard deviation is 0.4 of its width. They add up to 1.
    """
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) * side / cells
    places = torch.arange(side, dtype=torch.float64) + 0.5
    weights = (-(places - middles[:, None]).square() / (2 * (0.4 * side / cells) ** 2)).exp()
    return weights / weights.sum(1, keepdim=True)


def draw_filters(count: int, channels: int, kernel: int, smoothness: float, rng: torch.Generator) -> Tensor:
    """Returns filters float32 [count, channels, kernel, kernel] of mean 0 and norm 1."""
    filters = torch.randn(count, channels, kernel, kernel, generator=rng, dtype=torch.float64)
    if smoothness:
        place = torch.arange(kernel, dtype=torch.float64)
        blur = (-(place[:, None] - place).square() / (2 * smoothness**2)).exp()
        filters = blur @ filters @ blur
    filters = filters - filters.mean((1, 2, 3), keepdim=True)
    filters = filters / filters.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    steps: Tensor = (filters * 2**16).round()  # machines that round differently have the same filters
    return (steps / 2**16).float()
