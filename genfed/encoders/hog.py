"""Histograms of oriented gradients. Dalal, Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005."""

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

_CLIP = 0.2
"""Largest share of one number in the norm of a block; then the block is scaled to norm 1 again (L2-Hys)."""
_EPSILON = 1e-5


@settings
class HOG(Encoder):
    """Features of images by the directions of their edges: for each cell of cell × cell pixels, how much gradient there
    is in each direction; scaled to norm 1 within blocks of block × block cells; then to mean square 1 per example. It
    draws nothing.
    """

    orientations: Annotated[int, Field(ge=1, le=64)] = 9
    """Number of directions, in [0°, 180°); each pixel counts for one."""
    cell: Annotated[int, Field(ge=1, le=64)] = 7
    """Side of a cell in pixels; what does not fill a cell at the right and below is left out."""
    block: Annotated[int, Field(ge=1, le=16)] = 2
    """Side of a block in cells; blocks overlap, one begins at each cell."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "image":
            raise GenfedError(f"encoder hog takes images; the examples are {task.noun}")
        if min(task.shape[1:]) < self.cell * self.block:
            raise GenfedError(
                f"cell = {self.cell}, block = {self.block}: images of {task.shape[1]}×{task.shape[2]} have no block"
            )
        return HOGNetwork(self)


class HOGNetwork(nn.Module):
    """The encoder's network. It has no parameters, and one buffer: the settings, for its digest."""

    how: Tensor

    def __init__(self, how: HOG) -> None:
        super().__init__()
        self.orientations, self.cell, self.block = how.orientations, how.cell, how.block
        self.register_buffer("how", torch.tensor([how.orientations, how.cell, how.block]))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [n, d] of images [n, C, H, W]."""
        blocks = self._gather_blocks(self._count_directions(x))
        blocks = blocks / (blocks.square().sum(2, keepdim=True) + _EPSILON**2).sqrt()
        blocks = blocks.clamp_max(_CLIP)
        blocks = blocks / (blocks.square().sum(2, keepdim=True) + _EPSILON**2).sqrt()
        features = blocks.flatten(1)
        # 1e-6: an even image has no gradients at all, and keeps features of 0.
        scaled: Tensor = features * features.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()
        return scaled

    def _count_directions(self, x: Tensor) -> Tensor:
        """Returns the mean gradient per pixel of a cell in each direction, [n, orientations, rows, columns]."""
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        down[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
        right[:, :, :, 1:-1] = x[:, :, :, 2:] - x[:, :, :, :-2]
        size, channel = torch.hypot(down, right).max(1, keepdim=True)  # of the channel where it is largest
        angle = torch.atan2(down.gather(1, channel), right.gather(1, channel)) % math.pi
        place = (angle * (self.orientations / math.pi)).long().clamp_max(self.orientations - 1)
        directions = torch.arange(self.orientations, device=x.device)[:, None, None]
        return F.avg_pool2d(torch.where(place == directions, size, 0.0), self.cell)

    def _gather_blocks(self, cells: Tensor) -> Tensor:
        """Returns the numbers of each block, [n, blocks, orientations · block²]."""
        return F.unfold(cells, self.block).transpose(1, 2)
