"""The clients of a federation and their data."""

from dataclasses import dataclass, field

from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.task import Data, Task


@dataclass(frozen=True)
class PersonalTestSet:
    """The held-out rows that resemble one client's data, for its personalized accuracy."""

    client: int
    """The client's id."""
    range: tuple[int, int]
    """Its rows [start, stop) of the training examples of the client that scores: all, unless that client is a pool."""
    values: tuple[str, ...] = ()
    """Its values of the natural column by which the clients were formed. Empty: there is no such column."""
    rows: Tensor | None = None
    """The held-out rows with one of these values, int64 [m]. None: all rows."""


@dataclass(frozen=True)
class FederatedData:
    """The clients of a federation and their data."""

    task: Task
    """The learning task."""
    clients: tuple[ClientInfo, ...]
    """The clients, as the server knows them."""
    ranges: tuple[tuple[int, int], ...]
    """Each client's rows [start, stop) of `train`, in the order of `clients`."""
    train: Data
    """The training examples of all clients."""
    held_out: Data
    """The common examples on which classifiers are scored."""
    own: dict[int, tuple[PersonalTestSet, ...]] = field(default_factory=dict)
    """Personal test sets for each client's classifier, by client: its own, or those of its pool's members."""
    held_out_counts: dict[int, int] = field(default_factory=dict)
    """Number of held-out examples by client, where each has its own elsewhere."""
