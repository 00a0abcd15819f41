"""Convolutional networks for series, after Wang, Yan, Oates ("Time Series Classification from Scratch with Deep Neural
Networks", arXiv 1611.06455): convolutions along time, then the mean over time.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from genfed.classifiers.series_input import check_series
from genfed.core.task import Task
from genfed.training.normalization import group_norm


class CNN1d(nn.Module):
    """Convolutions along time: [n, C, T] of any length → logits [n, classes]. Each convolution halves the length;
    GroupNorm uses no statistics of other examples.

    Raises:
        GenfedError: the examples are no series.
    """

    def __init__(self, task: Task, name: str, widths: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        check_series(name, task)
        inputs, layers = task.shape[0], list[nn.Module]()
        for outputs in widths:
            layers += [nn.Conv1d(inputs, outputs, kernel, 2, kernel // 2), group_norm(outputs), nn.ReLU()]
            inputs = outputs
        self.extractor = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.header = nn.Linear(inputs, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {
    "cnn1d": partial(CNN1d, name="cnn1d", widths=(32, 64, 64), kernel=7),
    "cnn1d-small": partial(CNN1d, name="cnn1d-small", widths=(16, 32), kernel=9),
}
