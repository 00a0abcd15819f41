"""Secure aggregation. Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, Practical Secure
Aggregation for Privacy-Preserving Machine Learning, CCS 2017, Figure 4 without signatures (the server follows the
protocol, and is curious); with few neighbors the graph of SecAgg+: Bell, Bonawitz, Gascón, Lepoint, Raykova, Secure
Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020, Algorithm 3.
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Collect, list_groups
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply, Wire
from genfed.secure_aggregation.crypto import (
    agree_key,
    expand_mask,
    new_key_pair,
    recover_secret,
    seal,
    split_secret,
    unseal,
)
from genfed.secure_aggregation.fixed_point import GroupVector, pack_vectors, unpack_sums
from genfed.secure_aggregation.messages import (
    SECRETS,
    ClientSecrets,
    MaskedUpload,
    MaskKeys,
    Neighbors,
    RevealedShares,
    SealedShares,
    SecureSession,
    SecureWork,
    Survivors,
)
from genfed.secure_aggregation.settings import SecureAggregation

EXCHANGES = ("keys", "shares", "masked", "reveal")
"""The exchanges that replace a phase p are the phases p.keys, p.shares, p.masked and p.reveal."""


@dataclass(frozen=True)
class WrappingSum(Aggregate):
    """The sum of masked vectors modulo 2⁶⁴, by group, with the ids of its clients."""

    def describe(self) -> str:
        return "added up under masks"

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {group: f"{vector.form} {tuple(vector.numbers.shape)}" for group, vector in value.items()}

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return {group: (vector.numbers.clone(), vector.form, (info.id,)) for group, vector in value.items()}

    def add(self, left: Any, right: Any) -> Any:
        out = dict(left)
        for group, (numbers, form, ids) in right.items():
            if group in out:
                numbers, ids = out[group][0] + numbers, out[group][2] + ids
            out[group] = (numbers, form, ids)
        return out

    def finish(self, total: Any) -> Any:
        return total or {}


def reason_to_refuse_secure(phase: Phase[Any]) -> str | None:
    """Returns why a phase cannot be aggregated securely. None: it can."""
    for name, aggregate in phase.aggregate.items():
        if not aggregate.linear:
            return f"its server needs every single {name} ({aggregate.describe()})"
    return "its server checks every single upload" if phase.check is not None else None


def neighbor_graph(members: Sequence[int], neighbors: int | None) -> dict[int, tuple[int, ...]]:
    """Returns each member's neighbors: all others, or the nearest on either side of a ring in random order (a Harary
    graph).

    Args:
        members: the ids of a group's clients.
        neighbors: the number of neighbors, even. None: all others.
    """
    if neighbors is None or neighbors >= len(members) - 1:
        return {one: tuple(other for other in sorted(members) if other != one) for one in sorted(members)}
    ring = random.SystemRandom().sample(sorted(members), len(members))
    reach = [step for step in range(-(neighbors // 2), neighbors // 2 + 1) if step]
    return {
        one: tuple(sorted(ring[(i + s) % len(ring)] for s in reach))
        for i, one in sorted(enumerate(ring), key=lambda p: p[1])
    }


def make_secure(phase: Phase[Any], settings: SecureAggregation) -> list[Phase[Any]]:
    """Returns the exchanges that replace one round of a phase. Their state is a `SecureSession`; after the last of them
    its `values` are what the phase's own `update` gets.

    Raises:
        GenfedError: the phase needs single uploads.
    """
    if why := reason_to_refuse_secure(phase):
        raise GenfedError(f"phase {phase.name} cannot be aggregated securely: {why}")
    exchanges = _Exchanges(phase, settings)
    generic: Any = SecureWork
    wire = Wire(generic[phase.wire_types.sent], MaskedUpload)
    names = [f"{phase.name}.{exchange}" for exchange in EXCHANGES]
    collect = Collect()
    parts = [
        Phase(names[0], exchanges.keep_keys, exchanges.send_nothing, exchanges.make_keys,
              {"sealing": collect, "masking": collect}, slots=(SECRETS,)),
        Phase(names[1], exchanges.keep_shares, exchanges.send_neighbors, exchanges.share_secrets,
              {"sealed": collect}, slots=(SECRETS,)),
        Phase(names[2], exchanges.keep_masked, exchanges.send_work, exchanges.mask_upload,
              {"masked": WrappingSum()}, slots=(SECRETS, *phase.slots), wire=wire, draws_as=phase.name),
        Phase(names[3], exchanges.keep_revealed, exchanges.send_survivors, exchanges.reveal_shares,
              {"shares": collect}, slots=(SECRETS,)),
    ]  # fmt: skip
    return [replace(part, exchange=place) for place, part in enumerate(parts)]


class _Exchanges:
    """The work and the server functions of the exchanges that replace one phase."""

    def __init__(self, phase: Phase[Any], settings: SecureAggregation) -> None:
        self._phase, self._settings = phase, settings

    # Round 0: keys.

    def send_nothing(self, server: Server, session: SecureSession, info: ClientInfo) -> Empty:
        return Empty()

    def make_keys(self, client: Client, sent: Empty) -> Reply[MaskKeys]:
        sealing, masking = new_key_pair(), new_key_pair()
        client.storage.put(SECRETS, ClientSecrets(sealing[0].hex(), masking[0].hex(), {}, {}, {}, {}))
        return Reply(MaskKeys(sealing[1].hex(), masking[1].hex()))

    def keep_keys(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        keys = {info.id: MaskKeys(reduced["sealing"][info.id], reduced["masking"][info.id]) for info in reduced.clients}
        members = _list_members(self._phase.aggregate, reduced.clients)
        for group, ids in members.items():
            _require(len(ids), self._settings.minimum_group, group)
        neighbors = {group: neighbor_graph(ids, self._settings.neighbors) for group, ids in members.items()}
        return SecureSession(session.state, keys, neighbors)

    # Round 1: shares of secrets.

    def send_neighbors(self, server: Server, session: SecureSession, info: ClientInfo) -> Neighbors:
        own = {group: graph[info.id] for group, graph in session.neighbors.items() if info.id in graph}
        return Neighbors({group: {other: session.keys[other] for other in ids} for group, ids in own.items()})

    def share_secrets(self, client: Client, sent: Neighbors) -> Reply[SealedShares]:
        me, secrets = client.info.id, _load_secrets(client)
        if secrets.neighbors:
            raise GenfedError("its keys were used in a round: it makes new ones first")
        seeds, shares, sealed = {}, {}, {}
        for group, neighbors in sent.neighbors.items():
            if len({key.masking for key in neighbors.values()}) < len(neighbors):
                raise GenfedError("two clients have one key")
            seed, needed = os.urandom(32), self._settings.needed(len(neighbors))
            holders = sorted([*neighbors, me])
            seed_shares = split_secret(seed, holders, needed)
            key_shares = split_secret(bytes.fromhex(secrets.masking), holders, needed)
            seeds[group], shares[group] = seed.hex(), seed_shares[me].hex()
            sealed[group] = {
                other: seal(_sealing_key(secrets, keys, group, me, other), seed_shares[other] + key_shares[other]).hex()
                for other, keys in neighbors.items()
            }
        client.storage.put(SECRETS, ClientSecrets(secrets.sealing, secrets.masking, sent.neighbors, seeds, shares, {}))
        return Reply(SealedShares(sealed))

    def keep_shares(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        return SecureSession(session.state, session.keys, session.neighbors, reduced["sealed"])

    # Round 2: masked uploads.

    def send_work(self, server: Server, session: SecureSession, info: ClientInfo) -> SecureWork[Any]:
        assert self._phase.send is not None
        inbox = {
            group: {o: session.sealed[o][group][info.id] for o in graph[info.id] if o in session.sealed}
            for group, graph in session.neighbors.items()
            if info.id in graph
        }
        members = {group: len(session.neighbors[group]) for group in inbox}
        return SecureWork(self._phase.send(server, session.state, info), inbox, members)

    def mask_upload(self, client: Client, sent: SecureWork[Any]) -> Reply[MaskedUpload]:
        assert self._phase.work is not None
        me, secrets = client.info.id, _load_secrets(client)
        for group, inbox in sent.inbox.items():  # fewer could not be unmasked, or would have too few masks
            _require(len(inbox) + 1, self._settings.needed(len(secrets.neighbors[group])), group)
        reply = self._phase.work(client, sent.sent)
        vectors = pack_vectors(reply.upload, reply.weight, self._phase.aggregate, client.info, sent.members)
        masked = {}
        for group, vector in vectors.items():
            numbers = vector.numbers + expand_mask(bytes.fromhex(secrets.seeds[group]), len(vector.numbers))
            for other in sent.inbox[group]:
                seed = _pair_seed(secrets.masking, secrets.neighbors[group][other].masking, group)
                numbers = numbers + _sign(me, other, expand_mask(seed, len(numbers)))
            masked[group] = GroupVector(numbers, vector.form)
        s = secrets
        client.storage.put(SECRETS, ClientSecrets(s.sealing, s.masking, s.neighbors, {}, s.shares, sent.inbox))
        return Reply(MaskedUpload(masked))  # without weight and metrics, which would reveal something of one client

    def keep_masked(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        sums = {group: GroupVector(numbers, form) for group, (numbers, form, _) in reduced["masked"].items()}
        survivors = {group: tuple(sorted(ids)) for group, (_, _, ids) in reduced["masked"].items()}
        for group, ids in survivors.items():
            _require(len(ids), self._settings.minimum_group, group)
        return SecureSession(session.state, session.keys, session.neighbors, session.sealed, sums, survivors)

    # Round 3: shares of the secrets that remove the masks from the sum.

    def send_survivors(self, server: Server, session: SecureSession, info: ClientInfo) -> Survivors:
        survivors, dropped = {}, {}
        for group, ids in session.survivors.items():
            if info.id in ids:
                near = [o for o in session.neighbors[group][info.id] if o in session.sealed]
                survivors[group] = tuple(o for o in near if o in ids)
                dropped[group] = tuple(o for o in near if o not in ids)
        return Survivors(survivors, dropped)

    def reveal_shares(self, client: Client, sent: Survivors) -> Reply[RevealedShares]:
        me, secrets, revealed = client.info.id, _load_secrets(client), {}
        # A client has one masking key for all groups, and replies for all of its groups at once.
        if {i for ids in sent.survivors.values() for i in ids} & {i for ids in sent.dropped.values() for i in ids}:
            raise GenfedError("both secrets of one client were requested, which would reveal its upload")
        for group, survivors in sent.survivors.items():
            dropped, neighbors = sent.dropped[group], secrets.neighbors[group]
            if len({*survivors, *dropped, me}) < len(survivors) + len(dropped) + 1:
                raise GenfedError("a client was named twice among survivors and dropped clients")
            knows_all = self._settings.neighbors is None or len(neighbors) < self._settings.neighbors
            minimum = self._settings.minimum_group if knows_all else 2
            _require(len(survivors) + 1, max(self._settings.needed(len(neighbors)), minimum), group)
            revealed[group] = {me: secrets.shares[group]}
            for other in (*survivors, *dropped):
                key = _sealing_key(secrets, neighbors[other], group, other, me)
                both = unseal(key, bytes.fromhex(secrets.inbox[group][other]))
                half = len(both) // 2
                revealed[group][other] = (both[:half] if other in survivors else both[half:]).hex()
        client.storage.put(SECRETS, ClientSecrets("", "", {}, {}, {}, {}))  # no more of this round is revealed
        return Reply(RevealedShares(revealed))

    def keep_revealed(self, server: Server, session: SecureSession, reduced: Reduced) -> SecureSession:
        shares: dict[int, dict[str, dict[int, str]]] = reduced["shares"]
        sums = {group: self._unmask(session, group, shares) for group in session.sums}
        return SecureSession(session.state, values=unpack_sums(sums, self._phase.aggregate))

    def _unmask(
        self, session: SecureSession, group: str, shares: Mapping[int, Mapping[str, Mapping[int, str]]]
    ) -> GroupVector:
        """Returns a group's sum without masks: the survivors' own ones, and those of their pairs with dropped clients.

        Args:
            session: the round, with the masked sum.
            group: the group.
            shares: by client that revealed them, group and owner.
        """
        total, neighbors, survivors = session.sums[group], session.neighbors[group], session.survivors[group]
        numbers, size = total.numbers, len(total.numbers)

        def recover(owner: int) -> bytes:
            known = {h: bytes.fromhex(s[group][owner]) for h, s in shares.items() if owner in s.get(group, {})}
            return recover_secret(known, self._settings.needed(len(neighbors[owner])))

        for client in survivors:
            numbers = numbers - expand_mask(recover(client), size)
        for client in neighbors:
            near = [other for other in neighbors[client] if other in survivors]
            if client not in survivors and client in session.sealed and near:
                key = recover(client).hex()
                for other in near:
                    seed = _pair_seed(key, session.keys[other].masking, group)
                    numbers = numbers - _sign(other, client, expand_mask(seed, size))
        return GroupVector(numbers, total.form)


def _list_members(aggregates: Mapping[str, Aggregate], clients: Sequence[ClientInfo]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for info in clients:
        for group in list_groups(aggregates, info):
            members.setdefault(group, []).append(info.id)
    return members


def _require(count: int, needed: int, group: str) -> None:
    if count < needed:
        where = f" of architecture {group}" if group else ""
        raise GenfedError(f"secure aggregation: {count} clients{where} are left, and {needed} are needed for a sum")


def _load_secrets(client: Client) -> ClientSecrets:
    secrets = client.storage.get(SECRETS)
    if secrets is None or not secrets.masking:
        raise GenfedError("it has no secrets of this round: it did not take part in the exchange before")
    return secrets


def _sealing_key(secrets: ClientSecrets, other: MaskKeys, group: str, sender: int, receiver: int) -> bytes:
    return agree_key(bytes.fromhex(secrets.sealing), bytes.fromhex(other.sealing), f"seal {sender} {receiver} {group}")


def _pair_seed(private: str, public: str, group: str) -> bytes:
    return agree_key(bytes.fromhex(private), bytes.fromhex(public), f"mask {group}")


def _sign(me: int, other: int, numbers: Tensor) -> Tensor:
    """Returns a pair's mask with the sign that `me` adds it with: the two of a pair cancel."""
    return numbers if me < other else torch.neg(numbers)
