"""The ten small convolutional networks of GeFL (Kang, Cha, Kang; arXiv 2412.18460).

Every `extractor` gives maps of the same shape (3×16×16 from 1×32×32, 10×16×16 from 3×32×32), so the extractors of all
architectures can be averaged; the headers differ.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.training.normalization import NORMS

WIDTHS = (
    (16,),
    (16, 32),
    (20, 40),
    (10, 20),
    (16, 32, 64),
    (20, 40, 80),
    (10, 20, 40),
    (16, 32, 64, 128),
    (20, 40, 80, 100),
    (10, 20, 40, 80),
)


class CNN(nn.Module):
    """GeFL's CNN: [n, C, H, W] → logits [n, classes], as `header(extractor(x))`.

    The extractor halves height and width once, the header once per width. For features [n, d] there is nothing to
    extract, and the header is fully connected, with the same widths.

    Args:
        task: The task; its examples must be images or features.
        name: The architecture's name, for error messages.
        widths: The channels of the header's convolutions.
        normalized: The normalization after all convolutions; None: BatchNorm, but none in the header for grey images.

    Raises:
        GenfedError: the examples are no images, or its images are too small for this number of halvings.
    """

    def __init__(
        self, task: Task, name: str, widths: tuple[int, ...], *, normalized: Literal["batch", "group"] | None
    ) -> None:
        super().__init__()
        self.extractor: nn.Module
        if task.kind == "features":
            self.extractor, self.header = nn.Flatten(), _build_layers(task, widths)
            return
        if task.kind != "image":
            raise GenfedError(f"architecture {name}: examples of shape {task.shape}, {task.noun}; allowed are images")
        channels, height, width = task.shape
        halvings = 1 + len(widths)
        least = 2**halvings
        if min(height, width) < least:
            raise GenfedError(
                f"architecture {name}: images of {height}×{width}; the smallest that fit are {least}×{least}"
            )
        gray = channels == 1
        norm = NORMS[normalized or "batch"]
        header_norm = norm if normalized or not gray else None
        self.extractor = nn.Sequential(
            *_build_convolution(channels, 3, norm),
            *([] if gray else _build_convolution(3, 10, norm)),
            nn.MaxPool2d(2),
        )
        inputs, layers = 3 if gray else 10, list[nn.Module]()
        for outputs in widths:
            layers += [*_build_convolution(inputs, outputs, header_norm), nn.MaxPool2d(2)]
            inputs = outputs
        features = inputs * (height >> halvings) * (width >> halvings)
        self.header = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, len(task.classes)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


def _build_layers(task: Task, widths: tuple[int, ...]) -> nn.Sequential:
    inputs, layers = math.prod(task.shape), list[nn.Module]()
    for outputs in widths:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, len(task.classes)))


def _build_convolution(inputs: int, outputs: int, norm: Callable[[int], nn.Module] | None) -> list[nn.Module]:
    norms = [] if norm is None else [norm(outputs)]
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *norms, nn.ReLU()]


def _list_architectures(
    suffix: str, normalized: Literal["batch", "group"] | None
) -> dict[str, Callable[[Task], nn.Module]]:
    names = {f"cnn{i}{suffix}": widths for i, widths in enumerate(WIDTHS, 1)}
    return {name: partial(CNN, name=name, widths=widths, normalized=normalized) for name, widths in names.items()}


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = (
    _list_architectures("", None) | _list_architectures("-bn", "batch") | _list_architectures("-gn", "group")
)
"""cnn1…cnn10: BatchNorm in the header for colour images only (the paper's for MNIST and for CIFAR10). cnn1-bn…cnn10-bn:
always BatchNorm in the header (the paper's for Fashion-MNIST). cnn1-gn…cnn10-gn: GroupNorm in all of these places; it
uses no statistics of other examples, so these can be trained under differential privacy.
"""
