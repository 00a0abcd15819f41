"""What the server sends, checks and keeps in the exchanges of secure aggregation. A message that does not fit is
refused when it comes (`check_…`): its client is excluded, and the others go on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from genfed.core.aggregate import Aggregate, ClientInfo, cap_weight, list_groups
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced
from genfed.core.record import pack, unpack
from genfed.secure_aggregation.client_exchanges import pair_seed, require_clients, signed_mask
from genfed.secure_aggregation.crypto import (
    SEALING_BYTES,
    SHARE_BYTES,
    MisfitSharesError,
    agree_key,
    expand_mask,
    is_signed,
    new_key_pair,
    public_key_of,
    recover_secret,
    share_digest,
)
from genfed.secure_aggregation.fixed_point import SCALE, GroupVector, check_form, unpack_sums
from genfed.secure_aggregation.graph import neighbor_graph
from genfed.secure_aggregation.messages import (
    Agreement,
    MaskedUpload,
    Neighbors,
    OfferedKeys,
    RevealedShares,
    RevealRequest,
    SealedShare,
    SealedShares,
    SecureSession,
    SecureWork,
    Survivors,
)
from genfed.secure_aggregation.sent import SentFingerprints, fingerprint_sent
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import state_keys, state_survivors


class UnusableSharesError(GenfedError):
    """Clients whose secrets cannot be recovered although enough others answered: the round is begun again without
    them.
    """

    def __init__(self, clients: Mapping[int, str]) -> None:
        """`clients`: the reason, by client."""
        super().__init__("; ".join(f"client {client}: {reason}" for client, reason in sorted(clients.items())))
        self.clients = dict(clients)


@dataclass(frozen=True)
class ServerExchanges:
    """The server's part of the exchanges that replace one round of a phase."""

    phase: Phase[Any]
    settings: SecureAggregation
    _seen: set[str] = field(default_factory=set)
    """Public keys that clients have offered, with the group."""

    # Exchange "keys".

    def send_nothing(self, server: Server, session: SecureSession, info: ClientInfo) -> Empty:
        return Empty()

    def check_keys(self, session: SecureSession, info: ClientInfo, upload: OfferedKeys) -> None:
        _check_groups(upload.keys, list_groups(self.phase.aggregate, info))
        probe, own = new_key_pair()[0], set()
        for group, keys in upload.keys.items():
            for key in (keys.sealing, keys.masking):
                agree_key(probe, _read_hex(key, 32, "a public key"), "probe")  # refuses a key that is no secret
            if not is_signed(keys.signing, keys.signature, state_keys(self.phase.name, group, info.id, keys)):
                raise GenfedError("its keys are not signed by it")
            if keys.architecture != info.architecture:
                raise GenfedError("its keys are for another architecture than its own")
            if keys.before:
                _read_hex(keys.before, 32, "a fingerprint of what it was sent before")
            offered = {f"{kind} {getattr(keys, kind)} {group}" for kind in ("sealing", "masking", "signing")}
            if offered & self._seen:
                raise GenfedError("it offers the key of another client")
            own |= offered
        self._seen.update(own)

    def keep_keys(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        members = _list_members(self.phase.aggregate, reduced.clients)
        for group, ids in members.items():
            require_clients(len(ids), self.settings.minimum_group, group)
        neighbors = {group: neighbor_graph(ids, self.settings.neighbors) for group, ids in members.items()}
        there = {info.id: info for info in reduced.clients}
        return SecureSession(session.state, dict(reduced["keys"]), there, neighbors)

    # Exchange "shares".

    def send_neighbors(self, server: Server, session: SecureSession, info: ClientInfo) -> Neighbors:
        own = {group: graph[info.id] for group, graph in session.neighbors.items() if info.id in graph}
        return Neighbors({group: {o: session.keys[o][group] for o in ids} for group, ids in own.items()})

    def check_shares(self, session: SecureSession, info: ClientInfo, upload: SealedShares) -> None:
        own = _own_neighbors(session, info.id)
        _check_groups(upload.sealed, own)
        _check_groups(upload.digests, own)
        for group, neighbors in own.items():
            _check_clients(upload.sealed[group], neighbors)
            _check_clients(upload.digests[group], (info.id, *neighbors))
            for sealed in upload.sealed[group].values():
                _read_hex(sealed, 2 * SHARE_BYTES + SEALING_BYTES, "a sealed share")
            for digest in upload.digests[group].values():
                _read_hex(digest, 64, "a fingerprint")

    def keep_shares(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        sealed, digests = reduced["sealed"], reduced["digests"]
        kept = {info.id: SealedShares(sealed[info.id], digests[info.id]) for info in reduced.clients}
        return replace(session, sealed=kept)

    # Exchange "masked".

    def send_work(self, server: Server, session: SecureSession, info: ClientInfo) -> SecureWork[Any]:
        assert self.phase.send is not None
        inbox = {
            group: {
                o: SealedShare(session.sealed[o].sealed[group][info.id], session.sealed[o].digests[group][info.id])
                for o in neighbors
                if o in session.sealed
            }
            for group, neighbors in _own_neighbors(session, info.id).items()
        }
        members = {group: len(session.neighbors[group]) for group in inbox}
        return SecureWork(self.phase.send(server, session.state, info), inbox, members)

    def check_masked(self, session: SecureSession, info: ClientInfo, upload: MaskedUpload) -> None:
        own = _own_neighbors(session, info.id)
        fields = list_groups(self.phase.aggregate, info)
        _check_groups(upload.masked, own)
        _check_groups(upload.unopened, own)
        for group, vector in upload.masked.items():
            if vector.numbers.dtype != torch.int64 or vector.numbers.ndim != 1:
                raise GenfedError("its masked upload is no vector of whole numbers")
            check_form(vector.form, fields[group], len(vector.numbers) - 1)
            unopened = upload.unopened[group]
            if len(set(unopened)) < len(unopened) or not set(unopened) <= {
                o for o in own[group] if o in session.sealed
            }:
                raise GenfedError("it names a client that is no neighbor, or one twice")

    def keep_masked(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        sums, survivors, misfits = {}, {}, dict[int, str]()
        for group, by_form in reduced["masked"].items():
            (form, size), (numbers, ids) = max(by_form.items(), key=lambda item: (len(item[1][1]), -min(item[1][1])))
            sums[group], survivors[group] = GroupVector(numbers, form), tuple(sorted(ids))
            for other, (_, strangers) in by_form.items():
                if other != (form, size):
                    misfits |= dict.fromkeys(strangers, "its upload has other names, shapes or types than the others")
        after = replace(session, sums=sums, survivors=survivors, unopened=dict(reduced["unopened"]), misfits=misfits)
        for group, ids in survivors.items():
            require_clients(len(ids), self.settings.minimum_group, group)
        if useless := {o: why for group in sums for o, why in self._find_unopened(after, group).items()}:
            raise UnusableSharesError(useless)
        return after

    def _find_unopened(self, session: SecureSession, group: str) -> dict[int, str]:
        """Returns the clients whose secrets cannot be recovered since too few others could open their shares, with the
        reason. Where too few are left anyway, it is no client's fault.
        """
        found, survivors = {}, set(session.survivors[group])
        for owner, neighbors in session.neighbors[group].items():
            if owner not in session.sealed:
                continue
            near, needed = {*neighbors, owner} & survivors, self.settings.needed(len(neighbors))
            without = {i for i in near if owner in session.unopened[i][group]}
            if len(near) >= needed > len(near - without):
                found[owner] = f"{len(without)} clients could not open the shares of its secrets"
        return found

    # Exchange "agree".

    def send_survivors(self, server: Server, session: SecureSession, info: ClientInfo) -> Survivors:
        return Survivors(*_survivors_and_dropped(session, info.id))

    def check_agreement(self, session: SecureSession, info: ClientInfo, upload: Agreement) -> None:
        survivors, _ = _survivors_and_dropped(session, info.id)
        _check_groups(upload.signatures, survivors)
        for group, signature in upload.signatures.items():
            keys = {client: session.keys[client][group] for client in session.neighbors[group]}
            senders = [client for client in keys if client in session.sealed]
            statement = state_survivors(self.phase.name, group, keys, senders, session.survivors[group])
            if not is_signed(keys[info.id].signing, signature, statement):
                raise GenfedError("it has not signed the list of survivors")

    def keep_agreement(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        return replace(session, signatures=dict(reduced["signatures"]))

    # Exchange "reveal": shares of the secrets that remove the masks from the sum.

    def send_request(self, server: Server, session: SecureSession, info: ClientInfo) -> RevealRequest:
        survivors, dropped = _survivors_and_dropped(session, info.id)
        signatures = {
            group: {o: session.signatures[o][group] for o in ids if group in session.signatures.get(o, {})}
            for group, ids in survivors.items()
            if self.settings.agrees
        }
        return RevealRequest(survivors, dropped, signatures)

    def check_revealed(self, session: SecureSession, info: ClientInfo, upload: RevealedShares) -> None:
        survivors, dropped = _survivors_and_dropped(session, info.id)
        _check_groups(upload.shares, survivors)
        for group, shares in upload.shares.items():
            unopened = session.unopened[info.id][group]
            _check_clients(shares, [info.id, *(o for o in (*survivors[group], *dropped[group]) if o not in unopened)])
            for owner, share in shares.items():
                digest = session.sealed[owner].digests[group][info.id]
                expected = digest[64:] if owner in dropped[group] else digest[:64]
                if share_digest(_read_hex(share, SHARE_BYTES, "a share")) != expected:
                    raise GenfedError(f"its share of a secret of client {owner} is not the one that it was given")

    def keep_revealed(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        shares: dict[int, dict[str, dict[int, str]]] = reduced["shares"]
        sums = {group: self._unmask(server, session, group, shares) for group in session.sums}
        for group, total in sums.items():
            _check_weight(int(total.numbers[0]), session, group)
        return SecureSession(session.state, sums=sums, values=unpack_sums(sums, self.phase.aggregate))

    def _fingerprint_sent(
        self, server: Server, session: SecureSession, group: str, info: ClientInfo
    ) -> SentFingerprints:
        """Returns fingerprints of what a client of the group was sent, as the client saw it."""
        assert self.phase.send is not None
        sent = unpack(self.phase.wire_types.sent, pack(self.phase.send(server, session.state, info)))
        return fingerprint_sent(self.phase, info, group, sent)

    def _unmask(
        self,
        server: Server,
        session: SecureSession,
        group: str,
        shares: Mapping[int, Mapping[str, Mapping[int, str]]],
    ) -> GroupVector:
        """Returns a group's sum without masks: the survivors' own ones, and those of their pairs with dropped clients.

        Args:
            server: the server.
            session: the round, with the masked sum.
            group: the group.
            shares: by client that revealed them, group and owner.

        Raises:
            UnusableSharesError: the shares of a client are of no secret of its own.
        """
        total, neighbors, survivors = session.sums[group], session.neighbors[group], session.survivors[group]
        numbers, size = total.numbers, len(total.numbers)

        def recover(owner: int) -> bytes:
            known = {h: bytes.fromhex(s[group][owner]) for h, s in shares.items() if owner in s.get(group, {})}
            try:
                return recover_secret(known, self.settings.needed(len(neighbors[owner])))
            except MisfitSharesError as error:
                raise UnusableSharesError({owner: str(error)}) from None

        for client in survivors:
            numbers = numbers - expand_mask(recover(client), size)
        sent_to: dict[str, SentFingerprints] = {}  # by architecture
        for client in neighbors:
            near = [other for other in neighbors[client] if other in survivors]
            if client not in survivors and client in session.sealed and near:
                key = recover(client)
                if public_key_of(key).hex() != session.keys[client][group].masking:
                    raise UnusableSharesError({client: "the shares of its key are of another key"})
                for other in near:
                    info = session.clients[other]
                    if info.architecture not in sent_to:
                        sent_to[info.architecture] = self._fingerprint_sent(server, session, group, info)
                    sent = sent_to[info.architecture].common_with(session.clients[client].architecture)
                    seed = pair_seed(key.hex(), session.keys[other][group].masking, group, sent)
                    numbers = numbers - signed_mask(other, client, seed, size)
        return GroupVector(numbers, total.form)


def _check_weight(weight: int, session: SecureSession, group: str) -> None:
    """Refuses a sum of weights, in steps, that clients with the declared examples cannot have."""
    most = sum(int(cap_weight(math.inf, session.clients[client])) for client in session.survivors[group])
    if not 0 < weight <= most * int(SCALE):
        where = f" of architecture {group}" if group else ""
        raise GenfedError(
            f"secure aggregation: the weights{where} add up to {weight / SCALE:g}, and those clients declared {most} "
            "examples: one of them uploaded something else than its part, and masks hide which"
        )


def _own_neighbors(session: SecureSession, client: int) -> dict[str, tuple[int, ...]]:
    """Returns a client's neighbors by group."""
    return {group: graph[client] for group, graph in session.neighbors.items() if client in graph}


def _survivors_and_dropped(
    session: SecureSession, client: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Returns by group the client's neighbors that are in the sum and those that are not, where it is in the sum."""
    survivors, dropped = {}, {}
    for group, ids in session.survivors.items():
        if client in ids:
            near = [o for o in session.neighbors[group][client] if o in session.sealed]
            survivors[group] = tuple(o for o in near if o in ids)
            dropped[group] = tuple(o for o in near if o not in ids)
    return survivors, dropped


def _list_members(aggregates: Mapping[str, Aggregate], clients: Sequence[ClientInfo]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for info in clients:
        for group in list_groups(aggregates, info):
            members.setdefault(group, []).append(info.id)
    return members


def _check_groups(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if found.keys() != expected.keys():
        raise GenfedError("its message is about other groups than its own")


def _check_clients(found: Mapping[int, Any], expected: Sequence[int]) -> None:
    if found.keys() != set(expected):
        raise GenfedError("its message is about other clients than was requested")


def _read_hex(text: str, size: int, what: str) -> bytes:
    if len(text) == 2 * size:
        try:
            read = bytes.fromhex(text)
        except ValueError:
            pass
        else:
            if len(read) == size:  # fromhex ignores spaces
                return read
    raise GenfedError(f"{what} is not {size} bytes in hexadecimal")
