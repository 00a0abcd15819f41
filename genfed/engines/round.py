"""One round of one phase, over any engine: send, check the replies, reduce them."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from genfed.core.aggregate import ClientInfo, Fold
from genfed.core.client import Server
from genfed.core.errors import GenfedError, StorageError
from genfed.core.phase import Phase, Reduced
from genfed.core.record import Packed, pack, unpack
from genfed.core.schedule import Schedule, round_up_share
from genfed.engines.messages import PackedReply, RoundId, check_reply


@dataclass(frozen=True)
class Failure:
    """The reason why a client is excluded from a round."""

    reason: str
    fatal: bool = False
    """Whether the round cannot go on without the client."""


class Engine(Protocol):
    """Carries records to clients and back."""

    def exchange(
        self, step: RoundId, jobs: Iterable[tuple[ClientInfo, Packed]]
    ) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """Sends each client its record, and yields the replies in any order. `jobs` is consumed only as fast as clients
        start to work.
        """

    def lost(self) -> list[str]:
        """Returns a line for each worker that was lost since the last call."""


class Reducer(Protocol):
    """An object that reduces the replies of one round, as `core.aggregate.Fold` does."""

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Adds one reply."""

    def skip(self, info: ClientInfo) -> None:
        """Excludes a client."""

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
        self._fold = fold or Fold(request.phase.aggregate, list(request.clients))
        self._sent: dict[int, Packed] = {}
        self._answered: list[ClientInfo] = []
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def _jobs(self) -> Iterator[tuple[ClientInfo, Packed]]:
        for info in self._request.clients:
            self._sent[info.id] = self._request.send(info)
            yield info, self._sent[info.id]

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
                self.failures[info.id] = str(error)
                self._fold.skip(info)
                continue
            self._answered.append(info)
            yield ClientCost(info, answer.upload.nbytes, sent.nbytes, answer.seconds, answer.metrics)
        self.seconds = time.perf_counter() - started

    def _take(self, info: ClientInfo, sent: Packed, answer: PackedReply) -> None:
        request, wire = self._request, self._request.phase.wire_types
        was_sent, upload = unpack(wire.sent, sent), unpack(wire.uploaded, answer.upload)
        check_upload(sent, answer)
        if request.phase.check is not None:
            request.phase.check(request.server, info, upload)
        self._fold.add(info, upload, answer.weight, was_sent)

    @property
    def reduced(self) -> Reduced:
        """See `OpenRound`."""
        if self._quorum is None:
            return Reduced(self._fold.finish(), ())
        request = self._request
        check_quorum(request.round_id, len(self._answered), len(request.clients), self._quorum, self.failures)
        return Reduced(self._fold.finish(), tuple(sorted(self._answered, key=lambda i: i.id)))


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
            f"{step.phase} round {step.round}: {answered} of {selected} clients answered and the quorum is {needed}; "
            f"client {client}: {reason}"
        )


def check_upload(sent: Packed, answer: PackedReply) -> None:
    """Refuses a reply that would corrupt a mean.

    Args:
        sent: the record that the client was sent.
        answer: its reply.

    Raises:
        GenfedError: numbers are not finite, the weight is not above 0, or an upload field that has the name of a sent
            field has other tensors (names, shapes or types) than were sent.
    """
    check_reply(answer)
    uploaded = answer.upload.tensors
    fields = json.loads(answer.upload.skeleton).keys()
    expected, got = _by_field(sent.tensors), _by_field(uploaded)
    for field in sorted(expected.keys() & fields):
        there = got.get(field, {})
        for path in sorted(expected[field].keys() ^ there.keys()):
            raise GenfedError(f"{path} {'is missing' if path in expected[field] else 'was not requested'}")
        for path, tensor in there.items():
            like = expected[field][path]
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
