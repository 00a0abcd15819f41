"""What a network makes of examples, and scoring a classifier by what it classifies right of each class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.task import Data
from genfed.training.fit import mixed_precision
from genfed.training.pixels import normalize_pixels


@dataclass(frozen=True)
class ClassCounts:
    """Per class [classes] int64: test examples, and how many of them were classified right."""

    correct: Tensor
    total: Tensor


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """What the network gives, [n, …] float32 of examples as `Data.x` has them; in eval mode, without gradients."""
    network.eval()
    parts = []
    for some in torch.split(x, batch_size):
        with mixed_precision(x.device, precision):
            out: Tensor = network(normalize_pixels(some))
        parts.append(out.float())
    return torch.cat(parts)


def evaluate(
    network: nn.Module, data: Data, classes: int, precision: str = "float32", batch_size: int = 500
) -> ClassCounts:
    """Classifies all examples in eval mode."""
    return count_by_class(correct_mask(network, data, precision, batch_size), data.y.cpu(), classes)


def correct_mask(network: nn.Module, data: Data, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """Which examples are classified right in eval mode: bool [n], on the CPU."""
    return (predict(network, data.x, precision, batch_size).argmax(1) == data.y).cpu()


def count_by_class(hit: Tensor, y: Tensor, classes: int) -> ClassCounts:
    """Counts examples of the classes y [n] and those that were hit, bool [n]; both on the CPU."""
    return ClassCounts(torch.bincount(y[hit], minlength=classes), torch.bincount(y, minlength=classes))


def reweighted_accuracy(counts: ClassCounts, held: Tensor) -> float | None:
    """Accuracy with each class weighted by its share in `held`, numbers of examples [classes]. A class that was not
    tested is left out and the others make up for it; None: no class is left.
    """
    weights = torch.where(counts.total > 0, held, 0).double()
    if not weights.any():
        return None
    return float((weights * counts.correct / counts.total.clamp(min=1)).sum() / weights.sum())
