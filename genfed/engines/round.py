"""One round of one phase, whatever carries the messages: send, check what comes back, fold it."""

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
    """Why a client is left out of a round."""

    reason: str
    fatal: bool = False
    """True: the round cannot go on without it."""


class Engine(Protocol):
    """Carries records to clients and back."""

    def exchange(
        self, step: RoundId, jobs: Iterable[tuple[ClientInfo, Packed]]
    ) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """Has every client work on what is sent to it; gives the answers in any order. `jobs` is drawn from only as
        fast as clients take them.
        """

    def lost(self) -> list[str]:
        """A line for each worker that was lost since this was last asked."""


class Reducer(Protocol):
    """What reduces the replies to one ask, as `core.aggregate.Fold` does."""

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Folds one reply in."""

    def skip(self, info: ClientInfo) -> None:
        """Leaves a client out."""

    def finish(self) -> Mapping[str, Any]:
        """The reduced value of every declared field."""


@dataclass(frozen=True)
class ClientCost:
    """One client's part in a round, for the log."""

    info: ClientInfo
    up_bytes: int
    down_bytes: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class RoundRequest:
    """What clients are asked for in one round."""

    engine: Engine
    phase: Phase[Any]
    round_id: RoundId
    """The round, as the trial counts it."""
    first_step: int
    """Number of the round among the steps that clients count; each exchange of secure aggregation is one."""
    server: Server
    state: Any
    clients: Sequence[ClientInfo]

    def send(self, info: ClientInfo) -> Packed:
        """Returns the record that a client is sent."""
        assert self.phase.send is not None
        return pack(self.phase.send(self.server, self.state, info))


class OpenRound(Protocol):
    """A round: iterate over it for each client's `ClientCost` as it is done, then take `reduced` and `failures`."""

    failures: dict[int, str]
    """The reason why a client is excluded, by client."""
    seconds: float

    def __iter__(self) -> Iterator[ClientCost]: ...

    @property
    def reduced(self) -> Reduced:
        """The reduced uploads.

        Raises:
            GenfedError: too few clients answered; nothing has been changed.
        """


class Uploads(Protocol):
    """How the uploads of a phase travel: who uploads in a round, how uploads are reduced, and what is paid for it."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """Returns the clients of a round, by id. They may be drawn anew in every call."""

    def open(self, request: RoundRequest) -> OpenRound:
        """Returns a round that has not begun.

        Raises:
            GenfedError: it may not begin, since a budget does not hold it.
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
        """Takes what is needed; nothing is sent yet.

        Args:
            request: what clients are asked for.
            quorum: the fraction of them that must answer. None: the participants are secret, so that the round goes on
                whichever of them answer, and `reduced` does not name them.
            fold: reduces the uploads. None: as the phase says.
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
                raise GenfedError(f"{error}; nothing that was saved is lost: mend it, then --resume") from None
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


def check_quorum(step: RoundId, answered: int, asked: int, quorum: float, failures: Mapping[int, str]) -> None:
    """Refuses a round in which too few clients answered; `failures` says why, by client.

    Raises:
        GenfedError: fewer than that fraction of those asked, or none.
    """
    needed = max(1, round_up_share(quorum, asked))
    if answered < needed:
        client, reason = next(iter(sorted(failures.items())))
        raise GenfedError(
            f"{step.phase} round {step.round}: {answered} of {asked} clients answered and the quorum is {needed}; "
            f"client {client}: {reason}"
        )


def check_upload(sent: Packed, answer: PackedReply) -> None:
    """Refuses a reply that would spoil a mean: numbers that are not finite, a weight that is not above 0, or, in an
    upload field that bears the name of a field that was sent with tensors, other tensors than were sent.
    """
    check_reply(answer)
    uploaded = answer.upload.tensors
    fields = json.loads(answer.upload.skeleton).keys()
    expected, got = _by_field(sent.tensors), _by_field(uploaded)
    for field in sorted(expected.keys() & fields):
        there = got.get(field, {})
        for path in sorted(expected[field].keys() ^ there.keys()):
            raise GenfedError(f"{path} {'is missing' if path in expected[field] else 'was not asked for'}")
        for path, tensor in there.items():
            like = expected[field][path]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise GenfedError(
                    f"{path} is {tensor.dtype} {tuple(tensor.shape)}, not {like.dtype} {tuple(like.shape)}"
                )


def _by_field(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups paths such as "Model.classifier['w']" by the field, without the record's name."""
    fields: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        rest = path.partition(".")[2]
        fields.setdefault(rest.partition("[")[0].partition(".")[0], {})[rest] = tensor
    return fields
