"""What a method's author meets: a method is a list of phases; a phase is send → work → update, some rounds long."""

import dataclasses
import functools
import math
import re
import typing
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.privacy import Private, Use
from genfed.core.rng import stream
from genfed.core.store import MemoryStore, Store

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S")
D = TypeVar("D")
U = TypeVar("U")
R = TypeVar("R")
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


class Slot(Generic[R]):
    """A named place for something a client keeps for itself; it outlives the phase that wrote it."""

    def __init__(self, name: str, kind: type[R]) -> None:
        """`name` becomes part of a file's: letters, digits, "-" and "_"."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise GenfedError(f"{name!r} cannot name a slot: it takes letters, digits, - and _")
        self.name, self.kind = name, kind


class Kept(Protocol):
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
    kept: Kept
    rng: torch.Generator
    """Draws of this (phase, round, client)."""
    seed: int
    device: torch.device
    precision: Literal["float32", "bfloat16"]
    new_network_of: "Callable[[str, torch.Generator], nn.Module]"
    """A classifier by architecture, initialised from the generator; on `device`."""
    privacy: Private | None = None
    """How it trains on its own examples, to be handed to `learn.fit`; None: without differential privacy."""

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


@dataclass(frozen=True)
class Reply(Generic[U]):
    """What a client gives back."""

    upload: U
    weight: float = 1.0
    """What it counts for in a weighted mean: above 0."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers for the log, e.g. the last epoch's loss."""


@dataclass(frozen=True)
class Nothing:
    """An empty record: nothing is sent, or nothing is uploaded."""


@dataclass(frozen=True)
class Reduced:
    """What the clients' uploads came to: one value per upload field, as the phase's aggregates made it."""

    values: Mapping[str, Any]
    clients: tuple[ClientInfo, ...]
    """Those whose reply is in it, by id; () where who was asked is secret."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Phase(Generic[S]):
    """`rounds` times: send a record to each client taking part, have it work, reduce the uploads, update the state.

    The annotations of `work(client, sent: D) -> Reply[U]` are the wire protocol. Without `work` the server is alone.
    """

    name: str
    update: Callable[[Server, S, Reduced], S]
    send: Callable[[Server, S, ClientInfo], Any] | None = None
    work: Callable[[Client, Any], Reply[Any]] | None = None
    aggregate: Mapping[str, Aggregate] = field(default_factory=dict)
    """How each field of the upload is reduced; a field that is not named is refused."""
    rounds: int | Callable[[S], int] = 1
    """A function of the state is asked once, on entry."""
    slots: tuple[Slot[Any], ...] = ()
    """What of the client's own it reads or writes."""
    changes_classifier: bool = True
    """False: what is scored does not change in it, so it is not evaluated."""
    protection: str = ""
    """What is done to uploads that hides examples from who reads them, and what it guarantees, in words for the report
    ("Gaussian noise, ε = 3 at δ = 1e-5"). Empty: nothing, so ε = ∞."""
    check: Callable[[Server, ClientInfo, Any], None] | None = None
    """(server, who, upload): raises GenfedError about one that `update` could not use; who sent it is left out."""
    draws_as: str | None = None
    """Of a phase whose part it is: the name after which clients' draws are named; None: its own."""
    exchange: int | None = None
    """Its place among the exchanges that stand for a phase; None: it stands for itself. In an exchange a client answers
    once: asked again it gives the same reply, and once it has answered a later step, none but to the first of them."""

    def __post_init__(self) -> None:
        if self.work is None:
            return
        upload = self.kinds[1]
        fields = {f.name for f in dataclasses.fields(typing.get_origin(upload) or upload)}
        if unlike := fields ^ self.aggregate.keys():
            raise GenfedError(
                f"phase {self.name!r}: {min(unlike)!r} is "
                + ("uploaded, and no aggregate says how it is reduced" if min(unlike) in fields else "no upload field")
            )

    @functools.cached_property
    def kinds(self) -> tuple[type[Any], type[Any]]:
        """The record types (sent, uploaded), read from the annotations of `work`."""
        hints = typing.get_type_hints(self.work)
        (upload,) = typing.get_args(hints["return"])
        sent = next(hint for name, hint in hints.items() if name not in ("return", "client"))
        return sent, upload


@dataclass(frozen=True)
class Repeat(Generic[S]):
    """Several phases in turn, `times` over. Rounds go on counting per phase name."""

    times: int
    phases: "Sequence[Phase[S] | Repeat[S]]"


@dataclass(frozen=True)
class Trained:
    """A network that clients train on their examples and that is not their own classifier."""

    name: str
    """In messages."""
    network: "nn.Module"
    task: Task
    """Whose examples it takes."""


def leaves(plan: "Sequence[Phase[S] | Repeat[S]]") -> Iterator[Phase[S]]:
    """The phases in the order in which they run, repeats unrolled."""
    for item in plan:
        if isinstance(item, Repeat):
            for _ in range(item.times):
                yield from leaves(item.phases)
        else:
            yield item


class Method(ABC, Generic[S]):
    """A federated method: hyper-parameters (its fields), a state record and a list of phases."""

    state: ClassVar[type[Any]]
    """The type of its state record."""
    pooled: ClassVar[bool] = False
    """True: one client per architecture holds everybody's data (a ceiling, not a federation)."""
    needs_every_class: ClassVar[bool] = False
    """True: a client that lacks a class is refused before training. (None that ships needs it.)"""
    minimum_examples: ClassVar[int] = 1
    """A client with fewer is refused before training."""
    needs_public: ClassVar[bool] = False
    """True: a run without public examples is refused before training."""
    needs_architectures: ClassVar[bool] = False
    """True: the server, or another client, runs clients' networks. A federation in which only its site knows an
    architecture is refused before training."""
    unaugmented: ClassVar[tuple[str, ...]] = ()
    """Names of those of its `Training` settings whose examples it does not augment: it has its own loss, or they are
    no images. A run that asks for it is refused before training."""
    generates: ClassVar[bool] = False
    """True: `generate` makes examples from the state."""
    of_features: ClassVar[bool] = False
    """True: `generate` makes features instead, and `represent` says what those of real examples are."""

    bare: ClassVar[str] = ""
    """What leaves a client without DP-SGD having made it, in the words after "its clients upload"; empty: not said."""

    def uses(self) -> Mapping[str, Sequence[Use]] | None:
        """By phase in which clients work: its trainings on a client's own examples. Whoever declares them vouches that
        they all go through `learn.fit` with `client.privacy`, and that nothing which a client uploads or scores
        depends on its examples but by them and by how many there are. None (the default): differential privacy is
        refused. It does not hold for a class below, where that brings its own `work` or `phases`.
        """
        return None

    def trained(self, server: Server) -> "Sequence[Trained]":
        """What clients train on their examples besides their own classifiers, with the initial weights; a run with
        differential privacy checks these networks before training.
        """
        return ()

    @abstractmethod
    def init(self, server: Server) -> S:
        """The state before the first round."""

    @abstractmethod
    def phases(self) -> "Sequence[Phase[S] | Repeat[S]]":
        """The algorithm."""

    @abstractmethod
    def send_classifier(self, server: Server, state: S, info: ClientInfo) -> Any:
        """What a client needs to classify, besides what it kept."""

    @abstractmethod
    def classifier(self, client: Client, sent: Any) -> "nn.Module":
        """What is scored; runs on the client and may read every slot of `client.kept`. Clients who keep nothing of it
        have the same as all of their architecture who were sent the same.
        """

    def generate(self, server: Server, state: S, y: Tensor) -> Tensor:
        """One example per label: y [n] → [n, *shape] on the scale of `learn.fit.scaled`."""
        raise GenfedError(f"{type(self).__name__} has no generator to sample from")

    def represent(self, server: Server, state: S, x: Tensor) -> Tensor:
        """Of a method with `of_features`: examples as `Data.x` has them → features [n, …], on the CPU."""
        raise GenfedError(f"{type(self).__name__} has no features")


def share_of(share: float, count: int) -> int:
    """⌈share · count⌉, but for the last digits of a share such as 0.07, which would make it one more."""
    return math.ceil(round(share * count, 9))


def taking_part(clients: Sequence[ClientInfo], sample: float, seed: int, phase: str, round_: int) -> list[ClientInfo]:
    """Who takes part in a round of a phase, numbered over the whole method: known to all who know the seed."""
    return participants(clients, sample, stream(seed, phase, round_, "sample"))


def rounds_ahead(
    method: Method[Any], clients: Sequence[ClientInfo], sample: float, seed: int
) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
    """Who takes part in each round of each phase, in the order in which they run. A phase whose rounds are known only
    when it is entered is taken to have one.
    """
    done = Counter[str]()
    for phase in leaves(method.phases()):
        for _ in range(1 if callable(phase.rounds) else phase.rounds):
            yield phase, taking_part(clients, sample, seed, phase.name, done[phase.name])
            done[phase.name] += 1


def participants(clients: Sequence[ClientInfo], sample: float, rng: torch.Generator) -> list[ClientInfo]:
    """Who takes part in a round: ⌈sample · n⌉ clients without replacement, by id; 1.0 is everybody."""
    count = share_of(sample, len(clients))
    if not 1 <= count <= len(clients):
        raise GenfedError(f"sample = {sample} of {len(clients)} clients is {count}; at least one must take part")
    if count == len(clients):
        return sorted(clients, key=lambda c: c.id)
    return sorted((clients[i] for i in torch.randperm(len(clients), generator=rng)[:count]), key=lambda c: c.id)
