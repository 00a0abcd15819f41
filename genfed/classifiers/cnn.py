"""The ten small convolutional networks of GeFL (Kang, Cha, Kang; arXiv 2412.18460), one for each kind of client.

Every `extractor` gives maps of one shape (3×16×16 from 1×32×32, 10×16×16 from 3×32×32), so extractors can be averaged
over all architectures while each `header` goes its own way.
"""

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
    """GeFL's CNN: [n, C, H, W] → logits [n, classes], as `header(extractor(x))`; the extractor halves the sides
    once, the header once per width. `normalised`: by what all layers are; None: by the batch, and not the header of
    grey images.

    Raises:
        GenfedError: a table, or images too small to be halved so often.
    """

    def __init__(
        self, task: Task, name: str, widths: tuple[int, ...], *, normalised: Literal["batch", "group"] | None
    ) -> None:
        super().__init__()
        if task.kind != "image":
            raise GenfedError(f"architecture {name}: examples of shape {task.shape}, a table; allowed are images")
        channels, height, width = task.shape
        halvings = 1 + len(widths)
        least = 2**halvings
        if min(height, width) < least:
            raise GenfedError(
                f"architecture {name}: images of {height}×{width}; the smallest that fit are {least}×{least}"
            )
        grey = channels == 1
        norm = NORMS[normalised or "batch"]
        of_header = norm if normalised or not grey else None
        self.extractor = nn.Sequential(
            *_convolution(channels, 3, norm),
            *([] if grey else _convolution(3, 10, norm)),
            nn.MaxPool2d(2),
        )
        before, layers = 3 if grey else 10, list[nn.Module]()
        for after in widths:
            layers += [*_convolution(before, after, of_header), nn.MaxPool2d(2)]
            before = after
        features = before * (height >> halvings) * (width >> halvings)
        self.header = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, len(task.classes)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


def _convolution(before: int, after: int, norm: Callable[[int], nn.Module] | None) -> list[nn.Module]:
    between = [] if norm is None else [norm(after)]
    return [nn.Conv2d(before, after, 3, padding=1), *between, nn.ReLU()]


def _named(suffix: str, normalised: Literal["batch", "group"] | None) -> dict[str, Callable[[Task], nn.Module]]:
    names = {f"cnn{i}{suffix}": widths for i, widths in enumerate(WIDTHS, 1)}
    return {name: partial(CNN, name=name, widths=widths, normalised=normalised) for name, widths in names.items()}


ARCHITECTURES: dict[str, Callable[[Task], nn.Module]] = (
    _named("", None) | _named("-bn", "batch") | _named("-gn", "group")
)
"""cnn1…cnn10, whose headers have BatchNorm for colour images alone (the paper's for MNIST and for CIFAR10);
cnn1-bn…cnn10-bn, whose headers always have it (the paper's for Fashion-MNIST); and cnn1-gn…cnn10-gn, which have
GroupNorm in all of these places: no statistics of other examples, so they may be trained under differential privacy.
"""
