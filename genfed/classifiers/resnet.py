"""A small residual network after He, Zhang, Ren, Sun ("Deep Residual Learning", arXiv 1512.03385): eight layers."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task

Norm = Callable[[int], nn.Module]


class ResNet8(nn.Module):
    """ResNet of eight layers: [n, C, H, W] of any size → logits [n, classes], by a convolution, three residual blocks
    of 16, 32 and 64 channels and a linear layer.

    Raises:
        GenfedError: the examples are no images.
    """

    def __init__(self, task: Task, name: str, norm: Norm) -> None:
        super().__init__()
        if task.kind != "image":
            raise GenfedError(f"architecture {name}: examples of shape {task.shape}, {task.noun}; allowed are images")
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
    """A residual block (Fig. 2): two convolutions and a shortcut, which is a 1×1 convolution if the shape changes.

    Args:
        inputs: The number of input channels.
        outputs: The number of output channels.
        stride: The stride of the first convolution.
        norm: The normalization layer for a number of channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm(outputs),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.around(x))


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = {
    "resnet8": partial(ResNet8, name="resnet8", norm=nn.BatchNorm2d),
    "resnet8-gn": partial(ResNet8, name="resnet8-gn", norm=partial(nn.GroupNorm, 8)),
}
"""resnet8 has BatchNorm; resnet8-gn has GroupNorm with 8 groups, which uses no statistics of other examples, so it can
be trained under differential privacy."""
