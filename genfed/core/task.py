"""Classification tasks and labelled examples."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Kind = Literal["image", "table", "series", "features"]


@dataclass(frozen=True)
class Column:
    """A column of a table, and the features that it is in the examples."""

    name: str
    first: int
    """Index of its first feature."""
    width: int
    """Number of its features: 1 for numbers, one per category otherwise."""
    cells: tuple[tuple[float, float], ...] = ()
    """Smallest and largest number of each cell into which they are divided, ascending, as features are scaled. Equal:
    the cell is one value. Empty: a column of categories."""
    shares: tuple[float, ...] = ()
    """Share of the training rows in each cell, of those that have a number. Empty: a column of categories."""
    gap: int | None = None
    """Index of the feature that is 1 where a number is missing. None: none was missing in the training rows."""

    fill: float = 0.0
    """The feature of a missing number."""

    @property
    def codes(self) -> int:
        """Number of codes: cells, and one for a missing number, or categories."""
        return (len(self.cells) + (self.gap is not None)) if self.cells else self.width


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
    columns: tuple[Column, ...] = ()
    """The columns of a table, in the order of their features. Empty: the examples are no rows, or their columns are not
    known."""

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
