"""A phase: send, work, update, repeated for some rounds."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genfed.core.aggregate import Aggregate, ClientInfo
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError

S = TypeVar("S")

D = TypeVar("D")
U = TypeVar("U")


@dataclass(frozen=True)
class Reply(Generic[U]):
    """What a client gives back."""

    upload: U
    weight: float = 1.0
    """What it counts for in a weighted mean: above 0."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers for the log, e.g. the last epoch's loss."""


@dataclass(frozen=True)
class Empty:
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


def flatten_phases(plan: "Sequence[Phase[S] | Repeat[S]]") -> Iterator[Phase[S]]:
    """The phases in the order in which they run, repeats unrolled."""
    for item in plan:
        if isinstance(item, Repeat):
            for _ in range(item.times):
                yield from flatten_phases(item.phases)
        else:
            yield item
