"""Fully connected networks for images and tables."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from genfed.core.task import Task


class MLP(nn.Module):
    """Fully connected: [n, *shape] → logits [n, classes], hidden layers with ReLU and a linear layer.

    Args:
        task: The task.
        hidden: The widths of the hidden layers; empty: a linear classifier.
    """

    def __init__(self, task: Task, hidden: tuple[int, ...]) -> None:
        super().__init__()
        inputs, layers = math.prod(task.shape), list[nn.Module]()
        for outputs in hidden:
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            inputs = outputs
        self.extractor = nn.Sequential(nn.Flatten(), *layers)
        self.header = nn.Linear(inputs, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {
    "mlp": partial(MLP, hidden=(256, 128)),
    "mlp-small": partial(MLP, hidden=(64,)),
    "linear": partial(MLP, hidden=()),
}
