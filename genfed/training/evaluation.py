"""What a network makes of examples, and scoring a classifier by what it classifies right of each class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.task import Data
from genfed.training.fit import mixed
from genfed.training.pixels import scaled


@dataclass(frozen=True)
class Counts:
    """Per class [classes] int64: test examples, and how many of them were classified right."""

    correct: Tensor
    total: Tensor


@torch.no_grad()
def predicted(network: nn.Module, x: Tensor, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """What the network gives, [n, …] float32 of examples as `Data.x` has them; in eval mode, without gradients."""
    network.eval()
    parts = []
    for some in torch.split(x, batch_size):
        with mixed(x.device, precision):
            out: Tensor = network(scaled(some))
        parts.append(out.float())
    return torch.cat(parts)


def count(network: nn.Module, data: Data, classes: int, precision: str = "float32", batch_size: int = 500) -> Counts:
    """Classifies all examples in eval mode."""
    return tally(hits(network, data, precision, batch_size), data.y.cpu(), classes)


def hits(network: nn.Module, data: Data, precision: str = "float32", batch_size: int = 500) -> Tensor:
    """Which examples are classified right in eval mode: bool [n], on the CPU."""
    return (predicted(network, data.x, precision, batch_size).argmax(1) == data.y).cpu()


def tally(hit: Tensor, y: Tensor, classes: int) -> Counts:
    """Counts examples of the classes y [n] and those that were hit, bool [n]; both on the CPU."""
    return Counts(torch.bincount(y[hit], minlength=classes), torch.bincount(y, minlength=classes))


def weighted(counts: Counts, held: Tensor) -> float | None:
    """Accuracy with each class weighted by its share in `held`, numbers of examples [classes]. A class that was not
    tested is left out and the others make up for it; None: no class is left.
    """
    weights = torch.where(counts.total > 0, held, 0).double()
    if not weights.any():
        return None
    return float((weights * counts.correct / counts.total.clamp(min=1)).sum() / weights.sum())
