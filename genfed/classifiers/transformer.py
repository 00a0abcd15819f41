"""A small transformer for series, whose tokens are pieces of a window, after Nie, Nguyen, Sinthong, Kalagnanam ("A Time
Series is Worth 64 Words", arXiv 2211.14730).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.classifiers.series_input import check_series
from genfed.classifiers.vit import WIDTH, NormalizedMean, new_layers
from genfed.core.task import Task

PIECE, DEPTH = 8, 2


class SeriesTransformer(nn.Module):
    """Small transformer for series: [n, C, T] of any length → logits [n, classes], by pieces of eight steps (a window
    is padded to whole pieces), two pre-norm layers of width 64, the mean over pieces and a linear layer; no dropout.

    Raises:
        GenfedError: the examples are no series.
    """

    # differs from the paper: a token is a piece of all channels together.

    def __init__(self, task: Task) -> None:
        super().__init__()
        check_series("transformer", task)
        self.extractor = nn.Sequential(Pieces(task.shape), *new_layers(DEPTH), NormalizedMean())
        self.header = nn.Linear(WIDTH, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


class Pieces(nn.Module):
    """Embedding of pieces of a window and their positions: [n, C, T] → [n, pieces, 64]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, steps = shape
        self.padding = (0, -steps % PIECE)
        self.project = nn.Conv1d(channels, WIDTH, PIECE, PIECE)
        self.positions = nn.Parameter(0.02 * torch.randn(math.ceil(steps / PIECE), WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        pieces: Tensor = self.project(F.pad(x, self.padding)).transpose(1, 2)
        return pieces + self.positions


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {"transformer": SeriesTransformer}
