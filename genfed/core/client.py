"""Where client code and server code run, and all that each may touch."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.privacy import PrivateTrainer
from genfed.core.rng import stream
from genfed.core.store import MemoryStore, Store
from genfed.core.task import Data, Task

if TYPE_CHECKING:
    from torch import nn

R = TypeVar("R")


class Slot(Generic[R]):
    """A named place for something a client keeps for itself; it outlives the phase that wrote it."""

    def __init__(self, name: str, kind: type[R]) -> None:
        """`name` becomes part of a file's: letters, digits, "-" and "_"."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise GenfedError(f"{name!r} cannot name a slot: it takes letters, digits, - and _")
        self.name, self.kind = name, kind


class ClientStorage(Protocol):
    """A client's private records. A step reads what was kept before it, however often it is repeated."""

    def get(self, slot: Slot[R]) -> R | None:
        """The record last put there; None before the first."""

    def put(self, slot: Slot[R], record: R) -> None:
        """Keeps a record for later steps."""


@dataclass(frozen=True)
class Client:
    """Who is asked: all that `work` may touch."""

    info: ClientInfo
    task: Task
    data: Data
    """Its training examples, on `device`."""
    storage: ClientStorage
    rng: torch.Generator
    """Draws of this (phase, round, client)."""
    seed: int
    device: torch.device
    precision: Literal["float32", "bfloat16"]
    new_network_of: "Callable[[str, torch.Generator], nn.Module]"
    """A classifier by architecture, initialised from the generator; on `device`."""
    privacy: PrivateTrainer | None = None
    """How it trains on its own examples, to be handed to `training.fit`; None: without differential privacy."""

    def new_network(self, rng: torch.Generator) -> "nn.Module":
        """Its own classifier, initialised from the generator; on `device`."""
        return self.new_network_of(self.info.architecture, rng)

    def common(self, *path: str | int) -> torch.Generator:
        """A stream that the server and all clients derive alike (initial weights)."""
        return stream(self.seed, "common", *path)


@dataclass(frozen=True)
class Server:
    """Where server functions run. It knows what clients are, and cannot reach what they have."""

    task: Task
    clients: tuple[ClientInfo, ...]
    round: int
    rng: torch.Generator
    seed: int
    device: torch.device
    precision: Literal["float32", "bfloat16"]
    new_network: "Callable[[str, torch.Generator], nn.Module]"
    """A classifier by architecture, initialised from the generator; on `device`."""
    public: Tensor | None = None
    """Unlabelled examples that anybody may see, [n, *task.shape] as `Data.x` has them; None: the run names none."""
    store: Store = field(default_factory=MemoryStore)
    """For what is too large for the state, such as a synthetic set; `init` and `update` may append to it."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those present, sorted."""
        return tuple(sorted({c.architecture for c in self.clients}))

    def common(self, *path: str | int) -> torch.Generator:
        """A stream that the server and all clients derive alike (initial weights)."""
        return stream(self.seed, "common", *path)
