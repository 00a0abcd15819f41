"""One round of one phase, over any engine: send, check the replies, reduce them."""

import dataclasses
import json
import logging
import math
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Fold, cap_weight
from genfed.core.client import Server
from genfed.core.errors import GenfedError, StorageError
from genfed.core.phase import Phase, Reduced
from genfed.core.record import Packed, pack, unpack
from genfed.core.schedule import Schedule, round_up_share
from genfed.core.text import one_line
from genfed.engines.messages import LARGEST, PackedReply, RoundId, check_reply

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """The reason why a client is excluded from a round."""

    reason: str
    """One line: whatever a client says is bounded and escaped."""
    fatal: bool = False
    """Whether the round cannot go on without the client."""
    late: bool = False
    """Whether the client did not answer in time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


class Job(NamedTuple):
    """What one client is requested to do in a round."""

    info: ClientInfo
    sent: Packed
    """The record that it is sent."""
    since: int | None = None
    """See `RoundId`."""


class Engine(Protocol):
    """Carries records to clients and back."""

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """Sends each client its record, and yields the replies in any order. `jobs` is consumed only as fast as clients
        start to work.
        """

    def lost(self) -> list[str]:
        """Returns a line for each worker that was lost since the last call."""

    def describe(self, info: ClientInfo, reason: str) -> str:
        """Returns the reason for which a client is excluded, with the name of its site if it is at one."""


class Reducer(Protocol):
    """An object that reduces the replies of one round, as `core.aggregate.Fold` does."""

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Adds one reply."""

    def skip(self, info: ClientInfo) -> None:
        """Excludes a client."""

    def settle(self) -> Mapping[int, str]:
        """Returns the reason by client that was added and is excluded, once all clients were given."""

    def finish(self) -> Mapping[str, Any]:
        """Returns the reduced value of every declared field."""


@dataclass(frozen=True)
class ClientCost:
    """The cost of one client in a round, for the log."""

    info: ClientInfo
    up_bytes: int
    down_bytes: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class RoundRequest:
    """What clients are requested to do in one round."""

    engine: Engine
    phase: Phase[Any]
    round_id: RoundId
    """Round, as the trial counts it."""
    first_step: int
    """Number of the round among the steps that clients count. Each exchange of secure aggregation is one step."""
    server: Server
    state: Any
    clients: Sequence[ClientInfo]
    stored: Mapping[int, int] = field(default_factory=dict)
    """The last round in which each client stored something, as `RoundId.since`; without clients that stored nothing."""

    def send(self, info: ClientInfo) -> Packed:
        """Returns the record that a client is sent."""
        assert self.phase.send is not None
        return pack(self.phase.send(self.server, self.state, info))


class OpenRound(Protocol):
    """A round in progress. Iterate over it to get each client's `ClientCost`, then read `reduced` and `failures`."""

    failures: dict[int, str]
    """Reason why a client is excluded, by client."""
    seconds: float

    def __iter__(self) -> Iterator[ClientCost]: ...

    @property
    def reduced(self) -> Reduced:
        """The reduced uploads.

        Raises:
            GenfedError: too few clients answered; the state has not changed.
        """


class Uploads(Protocol):
    """How the uploads of a phase travel: which clients upload in a round, how uploads are reduced, what is charged."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """Returns the clients of a round, by id. Every call may draw them anew."""

    def open(self, request: RoundRequest) -> OpenRound:
        """Returns a round that has not begun.

        Raises:
            GenfedError: it must not begin, since it would exceed a privacy budget.
        """


@dataclass(frozen=True)
class PlainUploads:
    """`Uploads` that the server reads one by one."""

    schedule: Schedule
    quorum: float
    """Fraction of the participants that must answer."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """See `Uploads`."""
        return self.schedule.participants(round_id.phase, round_id.round)

    def open(self, request: RoundRequest) -> "Round":
        """See `Uploads`."""
        return Round(request, self.quorum)


class Round:
    """An `OpenRound` whose uploads the server reads one by one."""

    def __init__(self, request: RoundRequest, quorum: float | None, fold: Reducer | None = None) -> None:
        """Prepares the round; nothing is sent yet.

        Args:
            request: what clients are requested to do.
            quorum: the fraction of them that must answer. None: the participants are secret, so any number may answer,
                and `reduced` does not name them.
            fold: reduces the uploads. None: the aggregates of the phase do.
        """
        self._request, self._quorum = request, quorum
        known = request.phase.expected
        expected = None if known is None else known(request.server)
        self._fold = fold or Fold(request.phase.aggregate, list(request.clients), expected)
        self._sent: dict[int, Packed] = {}
        self._answered: list[ClientInfo] = []
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def _jobs(self) -> Iterator[Job]:
        for info in self._request.clients:
            self._sent[info.id] = self._request.send(info)
            yield Job(info, self._sent[info.id], self._request.stored.get(info.id))

    def __iter__(self) -> Iterator[ClientCost]:
        started, request = time.perf_counter(), self._request
        step = replace(request.round_id, number=request.first_step)
        for info, answer in request.engine.exchange(step, self._jobs()):
            sent = self._sent.pop(info.id)
            try:
                if isinstance(answer, Failure):
                    raise (StorageError if answer.fatal else GenfedError)(answer.reason)
                self._take(info, sent, answer)
            except StorageError as error:
                raise GenfedError(f"{error}; nothing that was saved is lost: fix the cause, then --resume") from None
            except GenfedError as error:
                self._exclude(info, str(error))
                continue
            except Exception as error:  # an upload may be such that no check expects it; the others go on
                log.warning("the upload of client %d cannot be used\n%s", info.id, traceback.format_exc())
                self._exclude(info, f"its upload cannot be used ({type(error).__name__})")
                continue
            self._answered.append(info)
            yield ClientCost(info, answer.upload.nbytes, sent.nbytes, answer.seconds, answer.readable_metrics())
        misfits = self._fold.settle()
        for info in self._answered:
            if info.id in misfits:
                self.failures[info.id] = self._describe(info, misfits[info.id])
        self._answered = [info for info in self._answered if info.id not in misfits]
        self.seconds = time.perf_counter() - started

    def _exclude(self, info: ClientInfo, reason: str) -> None:
        self.failures[info.id] = self._describe(info, reason)
        self._fold.skip(info)

    def _describe(self, info: ClientInfo, reason: str) -> str:
        return one_line(self._request.engine.describe(info, reason))  # it may quote names in the upload

    def _take(self, info: ClientInfo, sent: Packed, answer: PackedReply) -> None:
        request, wire = self._request, self._request.phase.wire_types
        was_sent, upload = unpack(wire.sent, sent), unpack(wire.uploaded, answer.upload)
        check_upload(sent, answer)
        if request.phase.follows is None:  # masked numbers are of any size
            _check_size(request.phase, upload, info)
        for check in (request.phase.check, request.phase.screen):
            if check is not None:
                check(request.server, info, upload)
        if (weight := cap_weight(answer.weight, info)) < answer.weight:
            log.warning(
                "%s: client %d claims the weight %g, and its %d examples count",
                request.round_id, info.id, answer.weight, info.examples,
            )  # fmt: skip
        self._fold.add(info, upload, weight, was_sent)

    @property
    def reduced(self) -> Reduced:
        """See `OpenRound`."""
        request, answered = self._request, tuple[ClientInfo, ...]()
        if self._quorum is not None:
            check_quorum(request.round_id, len(self._answered), len(request.clients), self._quorum, self.failures)
            answered = tuple(sorted(self._answered, key=lambda i: i.id))
        values = self._fold.finish()
        check_reduced(request.round_id, values, request.phase, request.clients)
        return Reduced(values, answered)


def check_quorum(step: RoundId, answered: int, selected: int, quorum: float, failures: Mapping[int, str]) -> None:
    """Refuses a round in which too few clients answered.

    Args:
        step: the round.
        answered: number of clients that answered.
        selected: number of clients that were selected.
        quorum: fraction of the selected clients that must answer.
        failures: the reason of each failure, by client.

    Raises:
        GenfedError: fewer than this fraction answered, or none.
    """
    needed = max(1, round_up_share(quorum, selected))
    if answered < needed:
        client, reason = next(iter(sorted(failures.items())))
        raise GenfedError(
            f"{step}: {answered} of {selected} clients answered and the quorum is {needed}; client {client}: {reason}"
        )


def check_reduced(step: RoundId, values: Mapping[str, Any], phase: Phase[Any], clients: Sequence[ClientInfo]) -> None:
    """Refuses reduced uploads that would spoil the state. Under masks no upload was seen before.

    Args:
        step: the round.
        values: the reduced value of every upload field.
        phase: the phase, which declares how each field is reduced and bounded.
        clients: the clients of the round.

    Raises:
        GenfedError: numbers are not finite, or beyond the bound of the phase.
    """
    examples = sum(info.examples for info in clients)
    for name, value in values.items():
        whole = LARGEST if phase.aggregate[name].weighted else math.inf
        if not _is_within(value, min(phase.bound(name, examples), LARGEST), whole):
            raise GenfedError(
                f"{step}: the reduced {name} holds numbers that are not finite or far too large, so the state before "
                "it is kept; [aggregation] has rules that withstand such uploads"
            )


def _check_size(phase: Phase[Any], upload: Any, info: ClientInfo) -> None:
    """Refuses numbers that no client uploads which has not diverged: they would decide what all learn."""
    for name in phase.aggregate:
        most = min(phase.bound(name, info.examples), LARGEST)
        if not _is_within(getattr(upload, name), most, LARGEST):
            raise GenfedError(f"{name} holds numbers beyond ±{most:g} (whole ones: ±{LARGEST:g})")


def _is_within(value: Any, most: float, whole: float) -> bool:
    """Returns whether all numbers of records, dicts, tuples and tensors are finite and of an absolute value of at most
    `most`, or `whole` if their type has no point.
    """
    if isinstance(value, Tensor):
        if not value.numel() or value.dtype == torch.bool:
            return True
        low, high = value.min().item(), value.max().item()  # NaN if any is
        return all(_is_within(each, most, whole) for each in (low, high))
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, each.name) for each in dataclasses.fields(value))
    if isinstance(value, dict | tuple):
        return all(_is_within(each, most, whole) for each in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return abs(value) <= most and math.isfinite(value)  # NaN is at most nothing
    return abs(value) <= whole if isinstance(value, int) else True


def check_upload(sent: Packed, answer: PackedReply) -> None:
    """Refuses a reply that would corrupt a mean.

    Args:
        sent: the record that the client was sent.
        answer: its reply.

    Raises:
        GenfedError: see `check_reply`; or an upload field that has the name of a sent field has other tensors (names,
            shapes or types) than were sent.
    """
    check_reply(answer)
    uploaded = answer.upload.tensors
    fields = json.loads(answer.upload.skeleton).keys()
    expected, got = _by_field(sent.tensors), _by_field(uploaded)
    for name in sorted(expected.keys() & fields):
        there = got.get(name, {})
        for path in sorted(expected[name].keys() ^ there.keys()):
            raise GenfedError(f"{path} {'is missing' if path in expected[name] else 'was not requested'}")
        for path, tensor in there.items():
            like = expected[name][path]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise GenfedError(
                    f"{path} is {tensor.dtype} {tuple(tensor.shape)}, not {like.dtype} {tuple(like.shape)}"
                )


def _by_field(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns tensors by field and path, where paths such as "Model.classifier['w']" lose the record's name."""
    fields: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        rest = path.partition(".")[2]
        fields.setdefault(rest.partition("[")[0].partition(".")[0], {})[rest] = tensor
    return fields
