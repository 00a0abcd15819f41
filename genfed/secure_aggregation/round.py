"""One round of a phase under secure aggregation: its exchanges, one after another."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.phase import Reduced
from genfed.core.schedule import Schedule
from genfed.engines.messages import RoundId
from genfed.engines.round import ClientCost, Round, RoundRequest, check_quorum, check_reduced
from genfed.secure_aggregation.messages import SecureSession
from genfed.secure_aggregation.protocol import make_checked
from genfed.secure_aggregation.server_exchanges import UnusableSharesError
from genfed.secure_aggregation.settings import SecureAggregation

log = logging.getLogger(__name__)


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
        self._costs: dict[int, list[ClientCost]] = {info.id: [] for info in request.clients}
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[ClientCost]:
        excluded: dict[int, str] = {}
        while True:
            self.failures = dict(excluded)
            clients = [info for info in self._request.clients if info.id not in excluded]
            try:
                self._reduced = self._sum_up(clients)
                break
            except UnusableSharesError as error:
                log.warning("%s is begun again without some clients: %s", self._request.round_id, error)
                excluded |= error.clients
            except GenfedError as error:
                raise GenfedError(f"{error}{self._first_failure(str(error))}") from None
        for info in self._reduced.clients:
            parts = self._costs[info.id]
            up_bytes, down_bytes = sum(p.up_bytes for p in parts), sum(p.down_bytes for p in parts)
            # No metrics: each would be one more upload, without a mask.
            yield ClientCost(info, up_bytes, down_bytes, sum(p.seconds for p in parts), {})

    def _sum_up(self, clients: Sequence[ClientInfo]) -> Reduced:
        """Runs the exchanges with some clients, and returns the reduced uploads.

        Raises:
            UnusableSharesError: the secrets of some clients cannot be recovered.
            GenfedError: too few clients are left.
        """
        request, uploads = self._request, self._uploads
        session, summed = SecureSession(request.state), tuple[ClientInfo, ...]()
        for place, bind in enumerate(make_checked(request.phase, uploads.how, len(uploads.schedule.clients))):
            exchange = bind(session)
            round_id, step = replace(request.round_id, phase=exchange.name), request.first_step + place
            numbered = replace(request, phase=exchange, round_id=round_id, first_step=step)
            part = Round(replace(numbered, state=session, clients=clients), 0.0)
            for each in part:
                self._costs[each.info.id].append(each)
            self.seconds += part.seconds
            in_sum = "its upload is in the sum, but then: " if summed else ""
            self.failures |= {client: in_sum + reason for client, reason in part.failures.items()}
            reduced = part.reduced
            clients = reduced.clients
            session = exchange.update(request.server, session, reduced)
            if session.survivors and not summed:
                self.failures |= session.misfits
                summed = tuple(info for info in reduced.clients if info.id not in session.misfits)
                check_quorum(request.round_id, len(summed), len(request.clients), uploads.quorum, self.failures)
                if uploads.ledger is not None:
                    uploads.ledger.charge_sum(request.round_id, request.clients)
        check_reduced(request.round_id, session.values, request.phase, request.clients)
        return Reduced(session.values, summed)

    def _first_failure(self, known: str) -> str:
        """Returns the end of a line that names the first client that failed, unless the line says it already."""
        client, reason = next(iter(sorted(self.failures.items())), (0, ""))
        return f"; client {client}: {reason}" if reason and reason not in known else ""

    @property
    def reduced(self) -> Reduced:
        """See `OpenRound`."""
        return self._reduced
