"""What a network makes of examples, and scoring a classifier: counts per class are all that a client tells."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.method import Data
from genfed.learn.fit import mixed, scaled


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
    right = predicted(network, data.x, precision, batch_size).argmax(1) == data.y
    return Counts(
        torch.bincount(data.y[right], minlength=classes).cpu(), torch.bincount(data.y, minlength=classes).cpu()
    )
