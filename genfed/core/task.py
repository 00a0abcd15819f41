"""Classification tasks and labelled examples."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Kind = Literal["image", "table", "series", "features"]


@dataclass(frozen=True)
class Task:
    """A classification task, known to the server and to every client.

    >>> from genfed import Task
    >>> task = Task("image", (1, 28, 28), ("cat", "dog"))
    >>> len(task.classes)
    2
    """

    kind: Kind
    """Kind of the examples: images, encoded rows of a table, windows of series, or features that have no structure."""
    shape: tuple[int, ...]
    """Shape of one example: (C, H, W), (features,), or (channels, steps) of a series."""
    classes: tuple[str, ...]
    """Names of the classes; label i is the ith."""

    @property
    def noun(self) -> str:
        """What the examples are, for messages."""
        return {"image": "images", "table": "a table", "series": "series", "features": "features"}[self.kind]


@dataclass(frozen=True)
class Data:
    """Labelled examples.

    >>> import torch
    >>> from genfed import Data
    >>> data = Data(torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.arange(10))
    >>> len(data[data.y < 4])
    4
    """

    x: Tensor
    """Pixels uint8 [n, C, H, W], or float32 [n, *shape] that networks take unchanged."""
    y: Tensor
    """Labels int64 [n]."""

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> "Data":
        return Data(self.x[rows], self.y[rows])

    def to(self, device: torch.device) -> "Data":
        """Returns the same examples on `device`."""
        return Data(self.x.to(device), self.y.to(device))
