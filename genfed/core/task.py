"""What is learned, and labelled examples."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What is learned: known to the server and to every client."""

    kind: Literal["image", "table", "features"]
    shape: tuple[int, ...]
    """One example: (C, H, W) or (features,)."""
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """Labelled examples: x uint8 [n, C, H, W], or float32 [n, *shape] that is used as it is; y int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> "Data":
        return Data(self.x[rows], self.y[rows])

    def to(self, device: torch.device) -> "Data":
        """The same examples on `device`."""
        return Data(self.x.to(device), self.y.to(device))
