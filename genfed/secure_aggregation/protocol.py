"""Secure aggregation. Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, Practical Secure
Aggregation for Privacy-Preserving Machine Learning, CCS 2017, Figure 4 without signatures (the server follows the
protocol, and is curious); with few neighbours the graph of SecAgg+: Bell, Bonawitz, Gascón, Lepoint, Raykova, Secure
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
"""Of a phase p they are the phases p.keys, p.shares, p.masked and p.reveal."""


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


def neighbor_graph(members: Sequence[int], neighbours: int | None) -> dict[int, tuple[int, ...]]:
    """Each one's neighbours: all others, or on a ring in random order the nearest on either side (a Harary graph)."""
    if neighbours is None or neighbours >= len(members) - 1:
        return {one: tuple(other for other in sorted(members) if other != one) for one in sorted(members)}
    ring = random.SystemRandom().sample(sorted(members), len(members))
    reach = [step for step in range(-(neighbours // 2), neighbours // 2 + 1) if step]
    return {
        one: tuple(sorted(ring[(i + s) % len(ring)] for s in reach))
        for i, one in sorted(enumerate(ring), key=lambda p: p[1])
    }


def make_secure(phase: Phase[Any], how: SecureAggregation) -> list[Phase[Any]]:
    """Returns the exchanges that stand for one round of a phase. Their state is a `SecureSession`, which ends with the
    `values` that the phase's own `update` gets.

    Raises:
        GenfedError: the phase needs single uploads.
    """
    if why := reason_to_refuse_secure(phase):
        raise GenfedError(f"phase {phase.name} cannot be aggregated securely: {why}")
    rounds = _Rounds(phase, how)
    generic: Any = SecureWork
    wire = Wire(generic[phase.wire_types.sent], MaskedUpload)
    names = [f"{phase.name}.{exchange}" for exchange in EXCHANGES]
    collect = Collect()
    parts = [
        Phase(names[0], rounds.keep_keys, rounds.send_nothing, rounds.keys, {"sealing": collect, "masking": collect},
              slots=(SECRETS,)),
        Phase(names[1], rounds.keep_shares, rounds.send_circle, rounds.shares, {"sealed": collect}, slots=(SECRETS,)),
        Phase(names[2], rounds.keep_masked, rounds.send_work, rounds.masked, {"masked": WrappingSum()},
              slots=(SECRETS, *phase.slots), wire=wire, draws_as=phase.name),
        Phase(names[3], rounds.keep_revealed, rounds.send_ended, rounds.reveal, {"shares": collect}, slots=(SECRETS,)),
    ]  # fmt: skip
    return [replace(part, exchange=place) for place, part in enumerate(parts)]


class _Rounds:
    """The work and the server functions of one phase's exchanges."""

    def __init__(self, phase: Phase[Any], how: SecureAggregation) -> None:
        self._phase, self._how = phase, how

    # Round 0: keys.

    def send_nothing(self, server: Server, session: SecureSession, info: ClientInfo) -> Empty:
        return Empty()

    def keys(self, client: Client, sent: Empty) -> Reply[MaskKeys]:
        sealing, masking = new_key_pair(), new_key_pair()
        client.storage.put(SECRETS, ClientSecrets(sealing[0].hex(), masking[0].hex(), {}, {}, {}, {}))
        return Reply(MaskKeys(sealing[1].hex(), masking[1].hex()))

    def keep_keys(self, server: Server, session: SecureSession, got: Reduced) -> SecureSession:
        keys = {info.id: MaskKeys(got["sealing"][info.id], got["masking"][info.id]) for info in got.clients}
        members = _members(self._phase.aggregate, got.clients)
        for group, ids in members.items():
            _enough(len(ids), self._how.minimum_group, group)
        circle = {group: neighbor_graph(ids, self._how.neighbours) for group, ids in members.items()}
        return SecureSession(session.state, keys, circle)

    # Round 1: shares of secrets.

    def send_circle(self, server: Server, session: SecureSession, info: ClientInfo) -> Neighbors:
        mine = {group: of[info.id] for group, of in session.circle.items() if info.id in of}
        return Neighbors({group: {other: session.keys[other] for other in ids} for group, ids in mine.items()})

    def shares(self, client: Client, sent: Neighbors) -> Reply[SealedShares]:
        me, secrets = client.info.id, _kept(client)
        if secrets.circle:
            raise GenfedError("its keys have served a round: it makes new ones first")
        own, mine, sealed = {}, {}, {}
        for group, circle in sent.circle.items():
            if len({key.masking for key in circle.values()}) < len(circle):
                raise GenfedError("two clients have one key")
            seed, needed = os.urandom(32), self._how.needed(len(circle))
            holders = sorted([*circle, me])
            of_seed = split_secret(seed, holders, needed)
            of_key = split_secret(bytes.fromhex(secrets.masking), holders, needed)
            own[group], mine[group] = seed.hex(), of_seed[me].hex()
            sealed[group] = {
                other: seal(_sealing(secrets, keys, group, me, other), of_seed[other] + of_key[other]).hex()
                for other, keys in circle.items()
            }
        client.storage.put(SECRETS, ClientSecrets(secrets.sealing, secrets.masking, sent.circle, own, mine, {}))
        return Reply(SealedShares(sealed))

    def keep_shares(self, server: Server, session: SecureSession, got: Reduced) -> SecureSession:
        return SecureSession(session.state, session.keys, session.circle, got["sealed"])

    # Round 2: masked uploads.

    def send_work(self, server: Server, session: SecureSession, info: ClientInfo) -> SecureWork[Any]:
        assert self._phase.send is not None
        inbox = {
            group: {o: session.sealed[o][group][info.id] for o in of[info.id] if o in session.sealed}
            for group, of in session.circle.items()
            if info.id in of
        }
        members = {group: len(session.circle[group]) for group in inbox}
        return SecureWork(self._phase.send(server, session.state, info), inbox, members)

    def masked(self, client: Client, sent: SecureWork[Any]) -> Reply[MaskedUpload]:
        assert self._phase.work is not None
        me, secrets = client.info.id, _kept(client)
        for group, inbox in sent.inbox.items():  # fewer could never be unmasked, or would be masked by too few
            _enough(len(inbox) + 1, self._how.needed(len(secrets.circle[group])), group)
        reply = self._phase.work(client, sent.sent)
        made = pack_vectors(reply.upload, reply.weight, self._phase.aggregate, client.info, sent.members)
        hidden = {}
        for group, vector in made.items():
            numbers = vector.numbers + expand_mask(bytes.fromhex(secrets.own[group]), len(vector.numbers))
            for other in sent.inbox[group]:
                seed = _pair(secrets.masking, secrets.circle[group][other].masking, group)
                numbers = numbers + _signed(me, other, expand_mask(seed, len(numbers)))
            hidden[group] = GroupVector(numbers, vector.form)
        s = secrets
        client.storage.put(SECRETS, ClientSecrets(s.sealing, s.masking, s.circle, {}, s.mine, sent.inbox))
        return Reply(MaskedUpload(hidden))  # no weight and no metrics: they would tell of one client

    def keep_masked(self, server: Server, session: SecureSession, got: Reduced) -> SecureSession:
        sums = {group: GroupVector(numbers, form) for group, (numbers, form, _) in got["masked"].items()}
        stayed = {group: tuple(sorted(ids)) for group, (_, _, ids) in got["masked"].items()}
        for group, ids in stayed.items():
            _enough(len(ids), self._how.minimum_group, group)
        return SecureSession(session.state, session.keys, session.circle, session.sealed, sums, stayed)

    # Round 3: shares of what is needed to take the masks off the sum.

    def send_ended(self, server: Server, session: SecureSession, info: ClientInfo) -> Survivors:
        stayed, went = {}, {}
        for group, ids in session.stayed.items():
            if info.id in ids:
                near = [o for o in session.circle[group][info.id] if o in session.sealed]
                stayed[group] = tuple(o for o in near if o in ids)
                went[group] = tuple(o for o in near if o not in ids)
        return Survivors(stayed, went)

    def reveal(self, client: Client, sent: Survivors) -> Reply[RevealedShares]:
        me, secrets, shown = client.info.id, _kept(client), {}
        # One masking key serves all groups, and whoever answers does so for all of its own.
        if {i for ids in sent.stayed.values() for i in ids} & {i for ids in sent.went.values() for i in ids}:
            raise GenfedError("both secrets of one client were asked for, which would uncover its upload")
        for group, stayed in sent.stayed.items():
            went, circle = sent.went[group], secrets.circle[group]
            if len({*stayed, *went, me}) < len(stayed) + len(went) + 1:
                raise GenfedError("a client was named twice among those who stayed or went")
            whole = self._how.neighbours is None or len(circle) < self._how.neighbours
            least = self._how.minimum_group if whole else 2
            _enough(len(stayed) + 1, max(self._how.needed(len(circle)), least), group)
            shown[group] = {me: secrets.mine[group]}
            for other in (*stayed, *went):
                key = _sealing(secrets, circle[other], group, other, me)
                both = unseal(key, bytes.fromhex(secrets.inbox[group][other]))
                half = len(both) // 2
                shown[group][other] = (both[:half] if other in stayed else both[half:]).hex()
        client.storage.put(SECRETS, ClientSecrets("", "", {}, {}, {}, {}))  # nobody is shown more of this round
        return Reply(RevealedShares(shown))

    def keep_revealed(self, server: Server, session: SecureSession, got: Reduced) -> SecureSession:
        shares: dict[int, dict[str, dict[int, str]]] = got["shares"]
        sums = {}
        for group, total in session.sums.items():
            numbers, size, circle, stayed = (
                total.numbers,
                len(total.numbers),
                session.circle[group],
                session.stayed[group],
            )

            def secret(of: int, group: str = group, circle: Any = circle) -> bytes:
                there = {h: bytes.fromhex(s[group][of]) for h, s in shares.items() if of in s.get(group, {})}
                return recover_secret(there, self._how.needed(len(circle[of])))

            for one in stayed:
                numbers = numbers - expand_mask(secret(one), size)
            for one in circle:
                near = [other for other in circle[one] if other in stayed]
                if one not in stayed and one in session.sealed and near:
                    key = secret(one).hex()
                    for other in near:
                        seed = _pair(key, session.keys[other].masking, group)
                        numbers = numbers - _signed(other, one, expand_mask(seed, size))
            sums[group] = GroupVector(numbers, total.form)
        return SecureSession(session.state, values=unpack_sums(sums, self._phase.aggregate))


def _members(aggregates: Mapping[str, Aggregate], clients: Sequence[ClientInfo]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for info in clients:
        for group in list_groups(aggregates, info):
            members.setdefault(group, []).append(info.id)
    return members


def _enough(count: int, needed: int, group: str) -> None:
    if count < needed:
        where = f" of architecture {group}" if group else ""
        raise GenfedError(f"secure aggregation: {count} clients{where} are left, and {needed} are needed for a sum")


def _kept(client: Client) -> ClientSecrets:
    secrets = client.storage.get(SECRETS)
    if secrets is None or not secrets.masking:
        raise GenfedError("it has no secrets of this round: it took no part in the exchange before")
    return secrets


def _sealing(secrets: ClientSecrets, other: MaskKeys, group: str, sender: int, receiver: int) -> bytes:
    return agree_key(bytes.fromhex(secrets.sealing), bytes.fromhex(other.sealing), f"seal {sender} {receiver} {group}")


def _pair(private: str, public: str, group: str) -> bytes:
    return agree_key(bytes.fromhex(private), bytes.fromhex(public), f"mask {group}")


def _signed(me: int, other: int, numbers: Tensor) -> Tensor:
    """What one of a pair adds the other takes away."""
    return numbers if me < other else torch.neg(numbers)
