"""A phase of a method: the server sends, clients work, the server updates its state, for some rounds."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genfed.core.aggregate import LARGEST_UPLOADED, Aggregate, ClientInfo
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.privacy import SumBounds

S = TypeVar("S")
U = TypeVar("U")


@dataclass(frozen=True)
class Reply(Generic[U]):
    """A client's answer to what it was sent.

    >>> import torch
    >>> from genfed import Model, Reply
    >>> reply = Reply(Model({"bias": torch.zeros(2)}), weight=120, metrics={"loss": 0.4})
    >>> reply.upload.classifier["bias"]
    tensor([0., 0.])
    """

    upload: U
    """The record that is uploaded."""
    weight: float = 1.0
    """The upload's weight in a weighted mean, above 0."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers for the log, such as the last epoch's loss."""


@dataclass(frozen=True)
class Empty:
    """An empty record: nothing is sent, or nothing is uploaded.

    >>> from genfed import Empty, Reply
    >>> Reply(Empty(), metrics={"loss": 0.4}).upload
    Empty()
    """


@dataclass(frozen=True)
class Reduced:
    """The reduced uploads of a round.

    >>> from genfed import ClientInfo, Reduced
    >>> reduced = Reduced({"loss": 0.5}, (ClientInfo(0, "mlp", 30), ClientInfo(1, "mlp", 10)))
    >>> reduced["loss"], len(reduced.clients)
    (0.5, 2)
    """

    values: Mapping[str, Any]
    """One value per upload field, as the phase's aggregates give it."""
    clients: tuple[ClientInfo, ...]
    """The clients whose reply was reduced, by id. (): the participants are secret."""

    def __getitem__(self, name: str) -> Any:
        """Returns the value of an upload field."""
        return self.values[name]


@dataclass(frozen=True)
class Wire:
    """The types of the two records that a phase puts on the wire."""

    sent: type[Any]
    """Type of the record that the server sends."""
    uploaded: type[Any]
    """Type of the record that a client uploads."""


@dataclass(frozen=True)
class Phase(Generic[S]):
    """`rounds` times: send a record to each participant, have it work, reduce the uploads, update the state.

    The annotations of `work(client, sent: D) -> Reply[U]` are the wire protocol. Without `work` only the server acts.

    >>> import torch
    >>> from genfed import Empty, Model, Phase, Reply, Sum
    >>> def send(server, state, info):
    ...     return Empty()
    >>> def count(client, sent: Empty) -> Reply[Model]:
    ...     return Reply(Model({"counts": torch.bincount(client.data.y)}))
    >>> def update(server, state, reduced):
    ...     return Model(reduced["classifier"])
    >>> phase = Phase("count", update, send, count, aggregate={"classifier": Sum()})
    >>> phase.rounds, phase.wire_types.sent, phase.wire_types.uploaded
    (1, <class 'genfed.core.phase.Empty'>, <class 'genfed.training.weights.Model'>)

    Raises:
        GenfedError: an upload field has no aggregate, or an aggregate or a bound no upload field.
    """

    name: str
    """The phase's name, unique within a method. Random streams are named after it."""
    update: Callable[[Server, S, Reduced], S]
    """(server, state, reduced) → the next state."""
    send: Callable[[Server, S, ClientInfo], Any] | None = None
    """(server, state, client) → the record that the client is sent."""
    work: Callable[[Client, Any], Reply[Any]] | None = None
    """(client, sent) → the client's reply. None: no client participates."""
    aggregate: Mapping[str, Aggregate] = field(default_factory=dict)
    """The reduction of each upload field; a field without one is refused."""
    rounds: int | Callable[[S], int] = 1
    """The number of rounds, or a function of the state that gives it when the phase begins."""
    slots: tuple[Slot[Any], ...] = ()
    """The slots of a client's storage that `work` reads or writes."""
    wire: Wire | None = None
    """The types of the records sent and uploaded. None: as `work` is annotated."""
    scores: bool = False
    """Whether the phase evaluates classifiers. It then may read every slot and write none, trains nothing, and all
    clients participate."""
    changes_classifier: bool = True
    """Whether classifiers may change. False: they are not evaluated after its rounds."""
    protection: str = ""
    """What hides single examples in the uploads, and its guarantee, in words for the report ("Gaussian noise, ε = 3 at
    δ = 1e-5"). Empty: nothing does, so ε = ∞."""
    check: Callable[[Server, ClientInfo, Any], None] | None = None
    """(server, client, upload): raises GenfedError about an upload that `update` cannot use; the client is excluded."""
    sends_alike: bool = True
    """Whether the clients of an architecture are all sent the same record, and clients of all architectures the same in
    every field but those that they upload by architecture. Under secure aggregation only uploads of clients that were
    sent the same then add up. False: what is sent depends on the client.
    """
    screen: Callable[[Server, ClientInfo, Any], None] | None = None
    """(server, client, upload): raises GenfedError about an upload that no honest client makes; the client is excluded.
    `update` could use it. So under masks, where the server sees no upload, it is left out."""
    expected: Callable[[Server], Any] | None = None
    """server → a record that looks like every upload: names, shapes and types; its tensors may be on "meta". Then each
    upload is added up when it comes. None: unless a field was sent too, up to half of the uploads are held until it is
    known how most of them look."""
    by_class: bool = False
    """Whether uploads are added up class by class. Of a class that one client alone has, the sum is its own, also under
    masks."""
    largest: Mapping[str, float] = field(default_factory=dict)
    """The largest absolute number with a point that a client may upload, by field; in a `Sum`, for each of its
    examples. A client beyond it is excluded. `LARGEST_UPLOADED` for a field that is not named."""
    noise_scales: Callable[[SumBounds, Mapping[str, Any]], Mapping[str, Any]] | None = None
    """(bounds, sums or uploads by field) → a positive scale for every number of them. Divided by the scales, what one
    example adds to the sums has an L2 norm of at most 1, if `work` keeps to the bounds in `client.sums`. None: the
    uploads are no sums with this property."""
    smallest_class: int = 0
    """Least number of a client's examples of a class that its upload tells anything of; it leaves out smaller classes.
    0: it leaves out none."""
    join_sums: Mapping[str, Callable[[Sequence[Any]], Any]] = field(default_factory=dict)
    """Functions by field that is added up: the sums over each of several groups of clients → a value in place of the
    sum over all of them, which a minority of the groups cannot move far. A robust rule for sums calls them."""
    draws_as: str | None = None
    """The name under which clients draw random numbers, where this phase is part of another one (secure aggregation).
    None: its own name."""
    follows: str | None = None
    """The exchange before it, among those that replace a phase. Empty: it is the first of them. None: it is none. A
    client replies to an exchange once: a repeated request gets the same reply. To any but the first it replies only if
    its last reply was to the exchange before, in the same round.
    """

    def __post_init__(self) -> None:
        if self.work is None:
            return
        upload = self.wire_types.uploaded
        fields = {f.name for f in dataclasses.fields(typing.get_origin(upload) or upload)}
        if unlike := fields ^ self.aggregate.keys():
            raise GenfedError(
                f"phase {self.name!r}: {min(unlike)!r} is "
                + ("uploaded, and no aggregate says how it is reduced" if min(unlike) in fields else "no upload field")
            )
        if unknown := self.largest.keys() - fields:
            raise GenfedError(f"phase {self.name!r}: largest has {min(unknown)!r}, which is no upload field")

    def bound(self, field: str, examples: int) -> float:
        """Returns the largest absolute number with a point in a field, uploaded by clients with `examples` examples or
        reduced from their uploads.
        """
        return self.aggregate[field].bound(self.largest.get(field, LARGEST_UPLOADED), examples)

    @functools.cached_property
    def wire_types(self) -> Wire:
        """The types of the records sent and uploaded: those of `wire`, or the annotations of `work`."""
        if self.wire is not None:
            return self.wire
        hints = typing.get_type_hints(self.work)
        (upload,) = typing.get_args(hints["return"])
        sent = next(hint for name, hint in hints.items() if name not in ("return", "client"))
        return Wire(sent, upload)


@dataclass(frozen=True)
class Repeat(Generic[S]):
    """Several phases in turn, `times` over. Rounds are counted on per phase name.

    >>> from genfed import Phase, Repeat
    >>> from genfed.core.phase import flatten_phases
    >>> def update(server, state, reduced):
    ...     return state
    >>> a, b = Phase("generate", update), Phase("train", update)
    >>> [phase.name for phase in flatten_phases([Repeat(2, [a, b])])]
    ['generate', 'train', 'generate', 'train']
    """

    times: int
    """Number of repetitions."""
    phases: "Sequence[Phase[S] | Repeat[S]]"
    """The phases, in order."""


def flatten_phases(plan: "Sequence[Phase[S] | Repeat[S]]") -> Iterator[Phase[S]]:
    """Yields the phases in the order in which they run, repeats unrolled."""
    for item in plan:
        if isinstance(item, Repeat):
            for _ in range(item.times):
                yield from flatten_phases(item.phases)
        else:
            yield item
