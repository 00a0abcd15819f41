"""One round of one phase, whatever carries the messages: send, check what comes back, fold it."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from genfed.core.aggregate import ClientInfo, Fold
from genfed.core.client import Server
from genfed.core.errors import GenfedError, StorageError
from genfed.core.phase import Phase, Reduced
from genfed.core.record import Packed, pack, unpack
from genfed.core.schedule import round_up_share
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


class Round:
    """One round: iterate over it for each client's `ClientCost` as it is done, then take `reduced` and `failures`."""

    def __init__(
        self,
        engine: Engine,
        phase: Phase[Any],
        step: RoundId,
        server: Server,
        state: Any,
        clients: Sequence[ClientInfo],
        quorum: float | None,
        fold: Reducer | None = None,
    ) -> None:
        """`quorum` is the fraction of `clients` that must answer; None: nobody is to learn who was asked, so that the
        round goes on whoever answers, and not even the update is told. `fold` reduces replies; None: as the phase says.
        """
        self._engine, self._phase, self._step, self._server, self._state = engine, phase, step, server, state
        self._clients, self._quorum = clients, quorum
        self._fold = fold or Fold(phase.aggregate, list(clients))
        self._sent: dict[int, Packed] = {}
        self._answered: list[ClientInfo] = []
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def _jobs(self) -> Iterator[tuple[ClientInfo, Packed]]:
        assert self._phase.send is not None
        for info in self._clients:
            packed = pack(self._phase.send(self._server, self._state, info))
            self._sent[info.id] = packed
            yield info, packed

    def __iter__(self) -> Iterator[ClientCost]:
        started = time.perf_counter()
        for info, answer in self._engine.exchange(self._step, self._jobs()):
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
        wire = self._phase.wire_types
        was_sent, upload = unpack(wire.sent, sent), unpack(wire.uploaded, answer.upload)
        check_upload(sent, answer)
        if self._phase.check is not None:
            self._phase.check(self._server, info, upload)
        self._fold.add(info, upload, answer.weight, was_sent)

    @property
    def reduced(self) -> Reduced:
        """What the uploads came to.

        Raises:
            GenfedError: too few clients answered; nothing has been changed.
        """
        if self._quorum is None:
            return Reduced(self._fold.finish(), ())
        check_quorum(self._step, len(self._answered), len(self._clients), self._quorum, self.failures)
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
