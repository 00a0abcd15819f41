"""Clients that run the exchanges of secure aggregation with the server's own code, and where each message can be
changed: those of a client on their way up, those of the server on their way down.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase
from genfed.core.record import Packed, pack, unpack
from genfed.core.schedule import Schedule
from genfed.core.task import Data
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job, RoundRequest
from genfed.secure_aggregation.crypto import Signer
from genfed.secure_aggregation.messages import SECRETS
from genfed.secure_aggregation.protocol import make_secure, name_exchanges
from genfed.secure_aggregation.round import SecureRound, SecureUploads
from genfed.secure_aggregation.settings import SecureAggregation
from tests.training.clients import client_of

ONE = Data(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())
Seen = Callable[[str, int, Any], Any]
"""(exchange, client, record) → the record that arrives."""


class Kept:
    """What one client keeps: what was put in an exchange is there in the next."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}

    @property
    def record(self) -> Any:
        """Its secrets."""
        return self.records.get(SECRETS.name)

    def get(self, slot: Slot[Any]) -> Any:
        return self.records.get(slot.name)

    def put(self, slot: Slot[Any], record: Any) -> None:
        self.records[slot.name] = unpack(slot.kind, pack(record))


class Federation:
    """An engine whose clients answer in this process, each with storage of its own."""

    def __init__(
        self,
        infos: Sequence[ClientInfo],
        how: SecureAggregation,
        phase: Phase[Any],
        leaving: Mapping[int, Sequence[int]] | None = None,
        up: Seen = lambda exchange, client, record: record,
        down: Seen = lambda exchange, client, record: record,
        signers: Mapping[int, Signer] | None = None,
        told: Mapping[int, str] | None = None,
    ) -> None:
        self.infos, self.how, self.leaving, self.up, self.down = infos, how, leaving or {}, up, down
        self.kept = {info.id: Kept() for info in infos}
        self.phases: dict[int, dict[str, Phase[Any]]] = {
            info.id: {
                p.name: p
                for p in make_secure(
                    phase, how, len(infos), (signers or {}).get(info.id), (told or {}).get(info.id, "")
                )
            }
            for info in infos
        }
        self.refusals: dict[tuple[str, int], str] = {}
        """What clients said instead of a reply, by exchange and client."""
        self.places = {f"{phase.name}.{name}": place for place, name in enumerate(name_exchanges(how))}

    def client(self, info: ClientInfo) -> Client:
        return replace(client_of(ONE, 2), info=info, storage=self.kept[info.id])

    def work(self, exchange: str, info: ClientInfo, sent: Packed) -> Packed:
        phase = self.phases[info.id][exchange]
        assert phase.work is not None
        told = self.down(exchange, info.id, unpack(phase.wire_types.sent, sent))
        reply = phase.work(self.client(info), told)
        assert reply.weight == 1.0
        assert not reply.metrics
        return pack(self.up(exchange, info.id, unpack(phase.wire_types.uploaded, pack(reply.upload))))

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        for info, sent, _ in jobs:
            if info.id in self.leaving.get(self.places[step.phase], ()):
                yield info, Failure("it left")
                continue
            try:
                yield info, PackedReply(self.work(step.phase, info, sent), 1.0)
            except GenfedError as error:
                self.refusals[step.phase, info.id] = str(error)
                yield info, Failure(str(error))

    def describe(self, info: ClientInfo, reason: str) -> str:
        return reason

    def lost(self) -> list[str]:
        return []


def play(
    infos: Sequence[ClientInfo],
    how: SecureAggregation,
    phase: Phase[Any],
    leaving: Mapping[int, Sequence[int]] | None = None,
    up: Seen = lambda exchange, client, record: record,
    **options: Any,
) -> SecureRound:
    """Runs one round over a `Federation`."""
    return play_over(Federation(infos, how, phase, leaving, up, **options), phase)


def play_over(federation: Federation, phase: Phase[Any]) -> SecureRound:
    infos = tuple(federation.infos)
    server: Any = None
    request = RoundRequest(federation, phase, RoundId(phase.name, 0, 0), 0, server, None, infos)
    method: Any = None
    round_ = SecureRound(request, SecureUploads(Schedule(method, infos, 1.0, 0), 0.0, federation.how))
    list(round_)
    return round_
