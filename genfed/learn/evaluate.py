"""Scoring a classifier: counts per class are all that a client tells."""

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


@torch.inference_mode()
def count(network: nn.Module, data: Data, classes: int, precision: str = "float32", batch_size: int = 500) -> Counts:
    """Classifies all examples in eval mode."""
    network.eval()
    hits = []
    for x, y in zip(torch.split(data.x, batch_size), torch.split(data.y, batch_size), strict=True):
        with mixed(x.device, precision):
            hits.append(network(scaled(x)).argmax(1) == y)
    right = torch.cat(hits)
    return Counts(
        torch.bincount(data.y[right], minlength=classes).cpu(), torch.bincount(data.y, minlength=classes).cpu()
    )
