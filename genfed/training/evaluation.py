"""Predictions of a network, and evaluation of a classifier by its correct predictions per class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.task import Data
from genfed.training.fit import mixed_precision
from genfed.training.pixels import normalize_pixels


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of test examples per class."""

    correct: Tensor
    """Number of correctly classified examples, int64 [classes]."""
    total: Tensor
    """Number of examples, int64 [classes]."""


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """Returns the network's output, float32 [n, …], for examples x like `Data.x`, in eval mode and without gradients.

    Args:
        network: The network; it stays in eval mode.
        x: The examples [n, *shape].
        precision: The precision of the computation, "float32" or "bfloat16".
        batch_size: The number of examples at once.
    """
    network.eval()
    outputs = []
    for part in torch.split(x, batch_size):
        with mixed_precision(x.device, precision):
            output: Tensor = network(normalize_pixels(part))
        outputs.append(output.float())
    return torch.cat(outputs)


def evaluate(
    network: nn.Module, data: Data, classes: int, precision: str = "float32", batch_size: int = 500
) -> ClassCounts:
    """Classifies all examples in eval mode and counts them by class; the arguments are those of `predict`."""
    return count_by_class(correct_mask(network, data, precision, batch_size), data.y.cpu(), classes)


def correct_mask(network: nn.Module, data: Data, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """Returns which examples are classified correctly in eval mode, bool [n] on the CPU; arguments as for `predict`."""
    return choose_classes(predict(network, data.x, precision, batch_size)).cpu() == data.y.cpu()


def choose_classes(scores: Tensor) -> Tensor:
    """Returns the class with the largest score of each example, int64 [n], from scores [n, classes]. −1, so that it
    counts as wrong: its scores are not all finite, the network has diverged.
    """
    return torch.where(scores.isfinite().all(1), scores.argmax(1), -1)


def count_by_class(correct: Tensor, y: Tensor, classes: int) -> ClassCounts:
    """Counts examples and correct ones by class.

    Args:
        correct: Which examples are classified correctly, bool [n] on the CPU.
        y: The classes, int64 [n] on the CPU.
        classes: The number of classes.
    """
    return ClassCounts(torch.bincount(y[correct], minlength=classes), torch.bincount(y, minlength=classes))


def reweighted_accuracy(counts: ClassCounts, held: Tensor) -> float | None:
    """Returns the accuracy with each class weighted by its share in `held`, numbers of examples [classes]. Classes
    without test examples are excluded; None: no class remains.
    """
    weights = torch.where(counts.total > 0, held, 0).double()
    if not weights.any():
        return None
    return float((weights * counts.correct / counts.total.clamp(min=1)).sum() / weights.sum())
