"""A tiny vision transformer after Dosovitskiy et al. ("An Image is Worth 16x16 Words", arXiv 2010.11929)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task

PATCH, WIDTH, HEADS, DEPTH = 4, 64, 4, 4


class ViT(nn.Module):
    """Tiny vision transformer: [n, C, H, W] of any size → logits [n, classes], by patches of 4×4 (the image is padded
    to whole patches), four pre-norm layers of width 64, the mean over patches and a linear layer; no dropout.

    Raises:
        GenfedError: the examples are no images.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.kind != "image":
            raise GenfedError(f"architecture vit-tiny: examples of shape {task.shape}, {task.noun}; allowed are images")
        self.extractor = nn.Sequential(
            Patches(task.shape),
            *new_layers(DEPTH),
            NormalizedMean(),
        )
        self.header = nn.Linear(WIDTH, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


def new_layers(depth: int) -> list[nn.Module]:
    """Returns pre-norm transformer layers: [n, patches, 64] → [n, patches, 64]."""
    # One by one: torch's nn.TransformerEncoder copies one layer, so all would have the same initial weights.
    return [nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, F.gelu, 1e-5, True, True) for _ in range(depth)]


class Patches(nn.Module):
    """Embedding of patches and their positions: [n, C, H, W] → [n, patches, 64]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        self.padding = (0, -width % PATCH, 0, -height % PATCH)
        self.project = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        count = math.ceil(height / PATCH) * math.ceil(width / PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(count, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.project(F.pad(x, self.padding)).flatten(2).transpose(1, 2)
        return patches + self.positions


class NormalizedMean(nn.Module):
    """The normalized patches' mean: [n, patches, 64] → [n, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.norm(x).mean(1)
        return mean


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {"vit-tiny": ViT}
