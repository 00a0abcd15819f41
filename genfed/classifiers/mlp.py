"""Fully connected networks, of images and of tables."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from genfed.core.task import Task


class MLP(nn.Module):
    """Fully connected: [n, *shape] → logits [n, classes], by hidden layers with ReLU (none: a linear classifier) and a
    linear layer.
    """

    def __init__(self, task: Task, hidden: tuple[int, ...]) -> None:
        super().__init__()
        before, layers = math.prod(task.shape), list[nn.Module]()
        for after in hidden:
            layers += [nn.Linear(before, after), nn.ReLU()]
            before = after
        self.extractor = nn.Sequential(nn.Flatten(), *layers)
        self.header = nn.Linear(before, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {
    "mlp": partial(MLP, hidden=(256, 128)),
    "mlp-small": partial(MLP, hidden=(64,)),
    "linear": partial(MLP, hidden=()),
}
