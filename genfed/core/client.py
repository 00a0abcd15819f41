"""All that a client's code and the server's code may touch."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.privacy import PrivateTrainer, SumNoise
from genfed.core.rng import stream
from genfed.core.store import MemoryStore, Store
from genfed.core.task import Data, Task

if TYPE_CHECKING:
    from torch import nn

R = TypeVar("R")


class Slot(Generic[R]):
    """A named place in a client's storage, for one record that outlives the phase that wrote it.

    A phase lists its slots. Its `work` then calls `client.storage.put(CLASSIFIER, record)`, and in a later round
    `client.storage.get(CLASSIFIER)`.

    >>> from genfed import Model, Slot
    >>> CLASSIFIER = Slot("classifier", Model)
    >>> CLASSIFIER.name
    'classifier'
    """

    def __init__(self, name: str, kind: type[R], forget: Callable[[R], R] | None = None) -> None:
        """Names a place.

        Args:
            name: part of a file name: letters, digits, "-" and "_".
            kind: the type of the record.
            forget: record → what stays of it without what only speeds learning up, such as an optimizer's state. Under
                secure aggregation it is called where clients were not all sent the same before, since what a client was
                sent then could decide how much it learns now. None: all stays.

        Raises:
            GenfedError: the name has other characters.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise GenfedError(f"{name!r} cannot name a slot: it takes letters, digits, - and _")
        self.name, self.kind, self.forget = name, kind, forget


class ClientStorage(Protocol):
    """A client's private records. A round reads what earlier rounds stored, however often it is repeated."""

    def get(self, slot: Slot[R]) -> R | None:
        """Returns the record that an earlier round stored. None: there is none."""

    def put(self, slot: Slot[R], record: R) -> None:
        """Stores a record for later rounds."""


@dataclass(frozen=True)
class Client:
    """All that `work` may touch on a client. genfed makes one for every round; a test of a method can make its own.

    >>> import torch
    >>> from genfed import Client, ClientInfo, Data, Task
    >>> client = Client(
    ...     info=ClientInfo(3, "linear", 8),
    ...     task=Task("image", (1, 2, 2), ("cat", "dog")),
    ...     data=Data(torch.randn(8, 1, 2, 2), torch.arange(8) % 2),
    ...     storage=None,  # this example stores nothing
    ...     rng=torch.Generator().manual_seed(0),
    ...     seed=0,
    ...     device=torch.device("cpu"),
    ...     precision="float32",
    ...     new_network_of=lambda architecture, rng: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)),
    ... )
    >>> client.new_network(client.rng)(client.data.x).shape
    torch.Size([8, 2])
    """

    info: ClientInfo
    """The server's knowledge of the client."""
    task: Task
    """The learning task."""
    data: Data
    """Its training examples, on `device`."""
    storage: ClientStorage
    """Its private records."""
    rng: torch.Generator
    """Random stream of this phase, round and client."""
    seed: int
    """The trial's seed."""
    device: torch.device
    """The device to compute on."""
    precision: Literal["float32", "bfloat16"]
    """The precision of training."""
    new_network_of: "Callable[..., nn.Module]"
    """(architecture, rng) → a classifier initialized from rng, on `device`; with a task as third argument it takes the
    examples of that task."""
    privacy: PrivateTrainer | None = None
    """Trainer for its own examples under differential privacy, a parameter of `training.fit`. None: no privacy."""
    sums: SumNoise | None = None
    """Bounds of each example in the sums that it uploads, under differential privacy of sums. None: no bounds."""

    def new_network(self, rng: torch.Generator) -> "nn.Module":
        """Returns its own classifier, initialized from the generator; on `device`."""
        network: nn.Module = self.new_network_of(self.info.architecture, rng)
        return network

    def common(self, *path: str | int) -> torch.Generator:
        """Returns a random stream that is the same for the server and all clients, as for initial weights."""
        return stream(self.seed, "common", *path)


@dataclass(frozen=True)
class Server:
    """All that server functions may touch: descriptions of the clients, and nothing of their data. genfed makes one for
    every round; a test of a method can make its own.

    >>> import torch
    >>> from genfed import ClientInfo, Server, Task
    >>> server = Server(
    ...     task=Task("image", (1, 2, 2), ("cat", "dog")),
    ...     clients=(ClientInfo(0, "mlp", 30), ClientInfo(1, "cnn3", 10), ClientInfo(2, "mlp", 5)),
    ...     round=0,
    ...     rng=torch.Generator().manual_seed(0),
    ...     seed=0,
    ...     device=torch.device("cpu"),
    ...     precision="float32",
    ...     new_network=lambda architecture, rng: torch.nn.Linear(4, 2),
    ... )
    >>> server.architectures
    ('cnn3', 'mlp')
    """

    task: Task
    """The learning task."""
    clients: tuple[ClientInfo, ...]
    """All clients of the federation."""
    round: int
    """The round of the phase, from 0."""
    rng: torch.Generator
    """Random stream of this phase, round and server function."""
    seed: int
    """The trial's seed."""
    device: torch.device
    """The device to compute on."""
    precision: Literal["float32", "bfloat16"]
    """The precision of training."""
    new_network: "Callable[..., nn.Module]"
    """(architecture, rng) → a classifier initialized from rng, on `device`; with a task as third argument it takes the
    examples of that task."""
    public: Tensor | None = None
    """Public unlabeled examples [n, *task.shape], as in `Data.x`. None: the run has none."""
    store: Store = field(default_factory=MemoryStore)
    """Storage for what is too large for the state, such as a synthetic dataset; `init` and `update` may append."""
    sums: SumNoise | None = None
    """The noise of the sums that `update` gets, under differential privacy of sums. None: they have no noise."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of all clients' architectures, sorted."""
        return tuple(sorted({c.architecture for c in self.clients}))

    def common(self, *path: str | int) -> torch.Generator:
        """Returns a random stream that is the same for the server and all clients, as for initial weights."""
        return stream(self.seed, "common", *path)
