"""A recurrent network for series, after Cho et al. ("Learning Phrase Representations using RNN Encoder-Decoder", arXiv
1406.1078): gated recurrent units.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genfed.classifiers.series_input import check_series
from genfed.core.task import Task

STRIDE, WIDTH = 4, 64
"""Steps that are taken together, since a recurrent network is slow on long series; and numbers of its state."""


class GRU(nn.Module):
    """Gated recurrent units, in both directions, over groups of four steps: [n, C, T] of any length → logits
    [n, classes], by the mean of the states and a linear layer.

    Raises:
        GenfedError: the examples are no series.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        check_series("gru", task)
        self.extractor = nn.Sequential(
            nn.Conv1d(task.shape[0], WIDTH, 2 * STRIDE, STRIDE, STRIDE), nn.ReLU(), MeanState()
        )
        self.header = nn.Linear(WIDTH, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


class MeanState(nn.Module):
    """The mean of the states of both directions: [n, 64, T] → [n, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.units(x.transpose(1, 2))
        mean: Tensor = torch.mean(states, 1)
        return mean


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {"gru": GRU}
