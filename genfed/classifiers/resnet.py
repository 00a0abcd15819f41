"""A small residual network after He, Zhang, Ren, Sun ("Deep Residual Learning", arXiv 1512.03385): eight layers."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task

Norm = Callable[[int], nn.Module]


class ResNet8(nn.Module):
    """ResNet of eight layers: [n, C, H, W] → logits [n, classes], by a convolution, three residual blocks of
    16, 32 and 64 channels and a linear layer; images of any size.

    Raises:
        GenfedError: a table.
    """

    def __init__(self, task: Task, name: str, norm: Norm) -> None:
        super().__init__()
        if task.kind != "image":
            raise GenfedError(f"architecture {name}: examples of shape {task.shape}, a table; allowed are images")
        self.extractor = nn.Sequential(
            nn.Conv2d(task.shape[0], 16, 3, padding=1, bias=False),
            norm(16),
            nn.ReLU(),
            Block(16, 16, 1, norm),
            Block(16, 32, 2, norm),
            Block(32, 64, 2, norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.header = nn.Linear(64, len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


class Block(nn.Module):
    """Two convolutions and a way around them (Fig. 2), which is a 1×1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            norm(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.around(x))


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {
    "resnet8": partial(ResNet8, name="resnet8", norm=nn.BatchNorm2d),
    "resnet8-gn": partial(ResNet8, name="resnet8-gn", norm=partial(nn.GroupNorm, 8)),
}
"""With BatchNorm, and with GroupNorm of 8 groups: no statistics of other examples, so it may train under DP."""
