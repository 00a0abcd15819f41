"""One round of a phase under secure aggregation: its exchanges, one by one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.phase import Phase, Reduced
from genfed.engines.messages import RoundId
from genfed.engines.round import ClientCost, Engine, Round, check_quorum
from genfed.secure_aggregation.messages import SecureSession
from genfed.secure_aggregation.protocol import make_secure
from genfed.secure_aggregation.settings import SecureAggregation


class SecureRound:
    """What `Round` is to one exchange: iterate over it, then take `reduced` and `failures`."""

    def __init__(
        self,
        engine: Engine,
        phase: Phase[Any],
        step: RoundId,
        server: Server,
        state: Any,
        clients: Sequence[ClientInfo],
        quorum: float,
        how: SecureAggregation,
        charge: Callable[[], None] | None = None,
    ) -> None:
        """`quorum` is the fraction of `clients` whose upload must be in the sum. The exchanges take the numbers from
        that of the step on. `charge` is called before the sum can be uncovered.
        """
        self._engine, self._phase, self._step, self._server, self._state = engine, phase, step, server, state
        self._clients, self._quorum, self._how, self._charge = clients, quorum, how, charge
        self._reduced = Reduced({}, ())
        self.failures: dict[int, str] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[ClientCost]:
        session, asked, summed = SecureSession(self._state), list(self._clients), tuple[ClientInfo, ...]()
        done: dict[int, list[ClientCost]] = {info.id: [] for info in asked}
        for place, exchange in enumerate(make_secure(self._phase, self._how)):
            step = RoundId(exchange.name, self._step.round, self._step.number + place)
            ask = Round(self._engine, exchange, step, self._server, session, asked, 0.0)
            for each in ask:
                done[each.info.id].append(each)
            self.seconds += ask.seconds
            reduced = ask.reduced
            asked = list(reduced.clients)
            if not session.sums:  # who leaves after its upload is in the sum all the same
                self.failures |= ask.failures
            session = exchange.update(self._server, session, reduced)
            if session.sums and not summed:
                summed = reduced.clients
                check_quorum(self._step, len(summed), len(self._clients), self._quorum, self.failures)
                if self._charge is not None:
                    self._charge()
        self._reduced = Reduced(session.values, summed)
        for info in summed:
            parts = done[info.id]
            # Of a client nothing is told but what its work cost: a loss would be an upload of its own.
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
        """What the uploads came to; only once it has been iterated over."""
        return self._reduced
