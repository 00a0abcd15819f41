"""Secure aggregation. Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, Practical Secure
Aggregation for Privacy-Preserving Machine Learning, CCS 2017, Figure 4 with the parts for active adversaries
(signatures, and the consistency check); with few neighbors the graph of SecAgg+: Bell, Bonawitz, Gascón, Lepoint,
Raykova, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020, Algorithm 3, whose server follows
the protocol, without the consistency check.
"""

# differs from the paper: clients publish fingerprints of the shares, so that the server sees whose share is wrong. They
# sign the keys and the senders of shares together with the list of survivors, since here the server says which clients
# form a group. They sign the description of the trial with the keys: it too is the server's word. Masks depend on what
# the phase sent, so that only uploads of clients that were sent the same add up. What they were sent before is stated
# with the keys, and forgotten where it differs.

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from genfed.core.aggregate import Aggregate, ClientInfo, Collect
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Wire
from genfed.secure_aggregation.client_exchanges import ClientExchanges
from genfed.secure_aggregation.crypto import Signer
from genfed.secure_aggregation.messages import SECRETS, MaskedUpload, SecureSession, SecureWork
from genfed.secure_aggregation.sent import HISTORY
from genfed.secure_aggregation.server_exchanges import ServerExchanges
from genfed.secure_aggregation.settings import SecureAggregation

Check = Callable[[SecureSession, ClientInfo, Any], None]
"""(what the server knows, client, upload): raises GenfedError about a message that does not fit."""


@dataclass(frozen=True)
class WrappingSum(Aggregate):
    """The sums of masked vectors modulo 2⁶⁴, by group and then by form and size, with the ids of their clients. So an
    upload that fits no other spoils none.
    """

    def describe(self) -> str:
        return "added up under masks"

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return {
            group: {(vector.form, len(vector.numbers)): (vector.numbers.clone(), (info.id,))}
            for group, vector in value.items()
        }

    def add(self, left: Any, right: Any) -> Any:
        out = {group: dict(by_form) for group, by_form in left.items()}
        for group, by_form in right.items():
            mine = out.setdefault(group, {})
            for form, (numbers, ids) in by_form.items():
                mine[form] = (mine[form][0] + numbers, mine[form][1] + ids) if form in mine else (numbers, ids)
        return out

    def finish(self, total: Any) -> Any:
        return total or {}


def reason_to_refuse_secure(phase: Phase[Any]) -> str | None:
    """Returns why a phase cannot be aggregated securely. None: it can."""
    for name, aggregate in phase.aggregate.items():
        if not aggregate.linear:
            return f"its server needs every single {name} ({aggregate.describe()})"
    return "its server checks every single upload" if phase.check is not None else None


def name_exchanges(settings: SecureAggregation) -> tuple[str, ...]:
    """Returns the exchanges that replace a phase p: they are phases named p.keys, p.shares and so on."""
    return ("keys", "shares", "masked", *(("agree",) if settings.agrees else ()), "reveal")


def make_secure(
    phase: Phase[Any], settings: SecureAggregation, clients: int, signer: Signer | None = None, trial: str = ""
) -> list[Phase[Any]]:
    """Returns the exchanges that replace one round of a phase. Their state is a `SecureSession`; after the last of them
    its `values` are what the phase's own `update` gets.

    Args:
        phase: the phase.
        settings: the settings of secure aggregation.
        clients: the number of clients of the federation, with those that are excluded: ids are below it.
        signer: signs for the client of this process. None: clients sign with a new key in every round.
        trial: fingerprint of the description by which the client of this process acts. Empty: there is none.

    Raises:
        GenfedError: the phase needs single uploads.
    """
    return [replace(part, check=None) for part, _ in _make_exchanges(phase, settings, clients, signer, trial)]


def make_checked(
    phase: Phase[Any], settings: SecureAggregation, clients: int
) -> list[Callable[[SecureSession], Phase[Any]]]:
    """Returns, for each exchange of one round, a function from what the server knows to the exchange as the server runs
    it: it refuses a message that does not fit. As `make_secure` otherwise.

    Raises:
        GenfedError: the phase needs single uploads.
    """
    exchanges = _make_exchanges(phase, settings, clients, None, "")
    return [functools.partial(_bind, part, check) for part, check in exchanges]


def _bind(part: Phase[Any], check: Check, session: SecureSession) -> Phase[Any]:
    def check_upload(server: Server, info: ClientInfo, upload: Any) -> None:
        check(session, info, upload)

    return replace(part, check=check_upload)


def _make_exchanges(
    phase: Phase[Any], settings: SecureAggregation, clients: int, signer: Signer | None, trial: str
) -> list[tuple[Phase[Any], Check]]:
    if why := reason_to_refuse_secure(phase):
        raise GenfedError(f"phase {phase.name} cannot be aggregated securely: {why}")
    client, server = ClientExchanges(phase, settings, clients, signer, trial), ServerExchanges(phase, settings)
    generic: Any = SecureWork
    wire, collect, name = Wire(generic[phase.wire_types.sent], MaskedUpload), Collect(), phase.name
    parts: list[tuple[Phase[Any], Check]] = [
        (Phase(f"{name}.keys", server.keep_keys, server.send_nothing, client.make_keys,
               {"keys": collect}, slots=(SECRETS, HISTORY)), server.check_keys),
        (Phase(f"{name}.shares", server.keep_shares, server.send_neighbors, client.share_secrets,
               {"sealed": collect, "digests": collect}, slots=(SECRETS,)), server.check_shares),
        (Phase(f"{name}.masked", server.keep_masked, server.send_work, client.mask_upload,
               {"masked": WrappingSum(), "unopened": collect}, slots=(SECRETS, HISTORY, *phase.slots), wire=wire,
               draws_as=name), server.check_masked),
        (Phase(f"{name}.agree", server.keep_agreement, server.send_survivors, client.agree,
               {"signatures": collect}, slots=(SECRETS,)), server.check_agreement),
        (Phase(f"{name}.reveal", server.keep_revealed, server.send_request, client.reveal_shares,
               {"shares": collect}, slots=(SECRETS,)), server.check_revealed),
    ]  # fmt: skip
    kept = {f"{name}.{exchange}" for exchange in name_exchanges(settings)}
    parts = [(part, check) for part, check in parts if part.name in kept]
    before = ["", *(part.name for part, _ in parts)]
    return [(replace(part, follows=last), check) for last, (part, check) in zip(before, parts, strict=False)]
