"""One round of a phase under secure aggregation: its exchanges, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from genfed.core.aggregate import ClientInfo
from genfed.core.phase import Reduced
from genfed.core.schedule import Schedule
from genfed.engines.messages import RoundId
from genfed.engines.round import ClientCost, Round, RoundRequest, check_quorum
from genfed.secure_aggregation.messages import SecureSession
from genfed.secure_aggregation.protocol import make_secure
from genfed.secure_aggregation.settings import SecureAggregation


class SumLedger(Protocol):
    """Charges a privacy budget for the sums that are revealed."""

    def admit(self, round_id: RoundId, clients: Sequence[ClientInfo]) -> object:
        """Checks that a round can be charged.

        Raises:
            GenfedError: the round would exceed the budget.
        """

    def charge_sum(self, round_id: RoundId, clients: Sequence[ClientInfo]) -> None:
        """Charges a round.

        Raises:
            GenfedError: the round would exceed the budget.
        """


@dataclass(frozen=True)
class SecureUploads:
    """`engines.round.Uploads` that are added up under masks."""

    schedule: Schedule
    quorum: float
    """Fraction of the participants whose uploads must be in the sum."""
    how: SecureAggregation
    """Settings of secure aggregation."""
    ledger: SumLedger | None = None
    """Ledger that charges each sum before it is revealed. None: sums cost nothing."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """See `Uploads`."""
        return self.schedule.participants(round_id.phase, round_id.round)

    def open(self, request: RoundRequest) -> "SecureRound":
        """See `Uploads`."""
        if self.ledger is not None:
            self.ledger.admit(request.round_id, request.clients)  # before clients train in vain
        return SecureRound(request, self)


class SecureRound:
    """An `engines.round.OpenRound` of several exchanges, which are numbered from `first_step` on."""

    def __init__(self, request: RoundRequest, uploads: SecureUploads) -> None:
        self._request, self._uploads = request, uploads
        self._reduced = Reduced({}, ())
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[ClientCost]:
        request, uploads = self._request, self._uploads
        session, clients, summed = SecureSession(request.state), request.clients, tuple[ClientInfo, ...]()
        done: dict[int, list[ClientCost]] = {info.id: [] for info in clients}
        for place, exchange in enumerate(make_secure(request.phase, uploads.how)):
            round_id = replace(request.round_id, phase=exchange.name)
            step = request.first_step + place
            numbered = replace(request, phase=exchange, round_id=round_id, first_step=step)
            part = Round(replace(numbered, state=session, clients=clients), 0.0)
            for each in part:
                done[each.info.id].append(each)
            self.seconds += part.seconds
            reduced = part.reduced
            clients = reduced.clients
            if not session.sums:  # a client that fails after its upload is still in the sum
                self.failures |= part.failures
            session = exchange.update(request.server, session, reduced)
            if session.sums and not summed:
                summed = reduced.clients
                check_quorum(request.round_id, len(summed), len(request.clients), uploads.quorum, self.failures)
                if uploads.ledger is not None:
                    uploads.ledger.charge_sum(request.round_id, request.clients)
        self._reduced = Reduced(session.values, summed)
        for info in summed:
            parts = done[info.id]
            # Only the cost of a client's work is reported: a loss would be one more, unmasked upload.
            cost = {name: max(p.metrics.get(name, 0.0) for p in parts) for name in ("flops", "parameters")}
            yield ClientCost(
                info,
                sum(p.up_bytes for p in parts),
                sum(p.down_bytes for p in parts),
                sum(p.seconds for p in parts),
                cost if any(cost.values()) else {},
            )

    @property
    def reduced(self) -> Reduced:
        """See `OpenRound`."""
        return self._reduced
