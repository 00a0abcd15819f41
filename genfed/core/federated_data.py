"""The clients of a federation and their data."""

from dataclasses import dataclass, field

from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.task import Data, Task


@dataclass(frozen=True)
class PersonalTestSet:
    """What a client of the federation has, so that a classifier is scored on the like."""

    client: int
    range: tuple[int, int]
    """Its rows among the training examples of the client that scores: all of them, unless that one is a pool."""
    values: tuple[str, ...] = ()
    """Its values of the natural column by which the clients were made; empty: there is none."""
    rows: Tensor | None = None
    """The held-out rows that have one of these values, int64; None: all rows."""


@dataclass(frozen=True)
class FederatedData:
    """The clients and their data. Each client's examples are one range of rows of `train`."""

    task: Task
    clients: tuple[ClientInfo, ...]
    ranges: tuple[tuple[int, int], ...]
    train: Data
    held_out: Data
    """The common part on which classifiers are scored."""
    own: dict[int, tuple[PersonalTestSet, ...]] = field(default_factory=dict)
    """By client: those for whom its classifier is scored on data like their own. Itself, or those in its pool."""
