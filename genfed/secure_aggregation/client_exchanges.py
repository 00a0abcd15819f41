"""What a client does in the exchanges of secure aggregation, and what it refuses. It trusts the server with nothing but
the phase's own record: every list that it is sent is checked before a secret leaves.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from genfed.core.aggregate import cap_weight, list_groups
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reply
from genfed.core.text import one_line
from genfed.secure_aggregation.crypto import (
    SHARE_BYTES,
    Signer,
    agree_key,
    expand_mask,
    is_signed,
    new_key_pair,
    new_signing_key,
    seal,
    share_digest,
    signer_of,
    split_secret,
    unseal,
)
from genfed.secure_aggregation.fixed_point import GroupVector, pack_vectors
from genfed.secure_aggregation.messages import (
    SECRETS,
    Agreement,
    ClientSecrets,
    GroupSecrets,
    MaskedUpload,
    MaskKeys,
    Neighbors,
    OfferedKeys,
    RevealedShares,
    RevealRequest,
    SealedShare,
    SealedShares,
    SecureWork,
    Survivors,
)
from genfed.secure_aggregation.sent import (
    HISTORY,
    ForgetfulStorage,
    SentFingerprints,
    continue_history,
    fingerprint_sent,
)
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import fingerprint, state_keys, state_survivors


@dataclass(frozen=True)
class ClientExchanges:
    """The work of a client in the exchanges that replace one phase. Each group is a run of the protocol by itself, with
    keys of its own.
    """

    phase: Phase[Any]
    settings: SecureAggregation
    clients: int
    """Number of clients of the federation: ids are below it."""
    signer: Signer | None = None
    """Key of the client's own, and those that it trusts. None: a new key in every round, and it trusts all."""
    trial: str = ""
    """Fingerprint of the description of the trial by which the client acts. It masks nothing with clients that act by
    another one. Empty: there is none."""

    def make_keys(self, client: Client, sent: Empty) -> Reply[OfferedKeys]:
        """Makes new keys for every group."""
        private = "" if self.signer else new_signing_key()
        signer, groups = self.signer or signer_of(private), {}
        history = client.storage.get(HISTORY) if self._remembers else None
        before = history.sent if history else ""
        for group in list_groups(self.phase.aggregate, client.info):
            (sealing, public_sealing), (masking, public_masking) = new_key_pair(), new_key_pair()
            offered, architecture = (public_sealing.hex(), public_masking.hex()), client.info.architecture
            public = MaskKeys(*offered, signer.public, self.trial, architecture, before)
            signature = signer.sign(state_keys(self.phase.name, group, client.info.id, public))
            groups[group] = GroupSecrets(sealing.hex(), masking.hex(), replace(public, signature=signature))
        client.storage.put(SECRETS, ClientSecrets(groups, private))
        return Reply(OfferedKeys({group: secrets.public for group, secrets in groups.items()}))

    def share_secrets(self, client: Client, sent: Neighbors) -> Reply[SealedShares]:
        """Shares the seed of its own mask and its masking key with its neighbors, in every group.

        Raises:
            GenfedError: a group is not its own or too small, or a key is not that of a client that it trusts and that
                acts by the same description of the trial.
        """
        me, secrets = client.info.id, _load_secrets(client)
        if any(group.neighbors for group in secrets.groups.values()):
            raise GenfedError("its keys were used in a round: it makes new ones first")
        _check_groups(secrets, sent.neighbors)
        groups, sealed, digests = {}, {}, {}
        for group, neighbors in sent.neighbors.items():
            own = replace(secrets.groups[group], neighbors=neighbors)
            self._check_neighbors(me, secrets, own, group)
            seed, needed = os.urandom(32), self.settings.needed(len(neighbors))
            holders = sorted([*neighbors, me])
            seed_shares = split_secret(seed, holders, needed)
            key_shares = split_secret(bytes.fromhex(own.masking), holders, needed)
            sealed[group] = {
                other: seal(_sealing_key(own, keys, group, me, other), seed_shares[other] + key_shares[other]).hex()
                for other, keys in neighbors.items()
            }
            digests[group] = {h: share_digest(seed_shares[h]) + share_digest(key_shares[h]) for h in holders}
            groups[group] = replace(own, seed=seed.hex(), share=seed_shares[me].hex())
        client.storage.put(SECRETS, replace(secrets, groups=groups))
        return Reply(SealedShares(sealed, digests))

    def _check_neighbors(self, me: int, secrets: ClientSecrets, own: GroupSecrets, group: str) -> None:
        """Refuses neighbors that could be the server itself, or one client under several names."""
        neighbors = own.neighbors
        self._check_ids(me, neighbors)
        everyone = [own.public, *neighbors.values()]
        for kind in ("sealing", "masking", "signing"):
            if len({getattr(keys, kind) for keys in everyone}) < len(everyone):
                raise GenfedError("two clients have one key")
        for other, keys in neighbors.items():
            if self.signer and self.signer.trusted is not None and keys.signing not in self.signer.trusted:
                raise GenfedError(f"client {other} signs with a key that this site does not know")
            if not is_signed(keys.signing, keys.signature, state_keys(self.phase.name, group, other, keys)):
                raise GenfedError(f"the keys of client {other} are not signed by it")
            if keys.trial != self.trial:
                raise GenfedError(f"the server describes this trial otherwise to client {other}")
        self._require_enough(secrets, own, group, neighbors)

    def _require_enough(self, secrets: ClientSecrets, own: GroupSecrets, group: str, others: Iterable[int]) -> None:
        """Refuses a sum of the client's own upload and those of others, if they are too few. If clients of one
        architecture also have a group of their own, the server may send them what it sends no other. Then each
        architecture needs `minimum_group` clients: else others could be sent what makes the sum say most about these.
        """
        clients = [own.public, *(own.neighbors[other] for other in others)]
        require_clients(len(clients), self.settings.quorum(len(own.neighbors)), group)
        if self.settings.agrees and secrets.groups.keys() - {"", group}:
            for architecture, count in sorted(Counter(keys.architecture for keys in clients).items()):
                require_clients(count, self.settings.minimum_group, one_line(architecture))

    def _check_ids(self, me: int, ids: Iterable[int]) -> None:
        """Refuses ids of no client, its own id, and ids that come twice. (A share at −1 would be the secret itself.)"""
        listed = list(ids)
        if invalid := [i for i in listed if not 0 <= i < self.clients]:
            raise GenfedError(f"{invalid[0]} is no client: ids are from 0 to {self.clients - 1}")
        if me in listed or len(set(listed)) < len(listed):
            raise GenfedError("a client was named twice, or the client itself was named among the others")

    def mask_upload(self, client: Client, sent: SecureWork[Any]) -> Reply[MaskedUpload]:
        """Does the phase's own work, and adds the masks to what it would upload.

        Raises:
            GenfedError: too few neighbors shared their secrets: it could not be unmasked, or would have too few masks.
        """
        me, secrets = client.info.id, _load_secrets(client)
        _check_groups(secrets, sent.inbox)
        if secrets.masked or not all(group.seed for group in secrets.groups.values()):
            raise GenfedError("its masks were used before, or it has shared no secrets: it makes new keys first")
        opened, unopened = {}, {}
        for group, inbox in sent.inbox.items():
            own = secrets.groups[group]
            self._check_ids(me, inbox)
            if unknown := inbox.keys() - own.neighbors.keys():
                raise GenfedError(f"shares of client {min(unknown)}, which is no neighbor")
            self._require_enough(secrets, own, group, inbox)
            if sent.members.get(group, 0) <= len(own.neighbors):
                raise GenfedError("a sum is said to have fewer uploads than the client has neighbors")
            if sent.members[group] > self.clients:  # so that the server cannot make a number too large for the sum
                raise GenfedError(f"a sum is said to have {sent.members[group]} uploads of {self.clients} clients")
            opened[group] = _open_shares(own, group, me, inbox)
            unopened[group] = tuple(sorted(inbox.keys() - opened[group].keys()))
        reply = self._work(client, secrets, sent.sent)
        weight = cap_weight(reply.weight, client.info)
        vectors = pack_vectors(reply.upload, weight, self.phase.aggregate, client.info, sent.members)
        known = {group: fingerprint_sent(self.phase, client.info, group, sent.sent) for group in vectors}
        masked = {
            group: _add_masks(secrets.groups[group], group, known[group], me, sent.inbox[group], v)
            for group, v in vectors.items()
        }
        groups = {
            group: replace(own, seed="", inbox=tuple(sorted(sent.inbox[group])), opened=opened[group])
            for group, own in secrets.groups.items()
        }
        client.storage.put(SECRETS, replace(secrets, groups=groups, masked=True))
        return Reply(MaskedUpload(masked, unopened))  # without weight and metrics, which would reveal something

    @property
    def _remembers(self) -> bool:
        """Whether a client learns from what it was sent before, in a way that it can forget."""
        return self.settings.agrees and any(slot.forget for slot in self.phase.slots)

    def _work(self, client: Client, secrets: ClientSecrets, sent: Any) -> Reply[Any]:
        """Does the phase's own work. If another client of its groups was sent something else before, both forget: else
        the server could have made all others unable to learn, and the sum would say most about one client.
        """
        assert self.phase.work is not None
        if not self._remembers:
            return self.phase.work(client, sent)
        keys = [keys for own in secrets.groups.values() for keys in (own.public, *own.neighbors.values())]
        before, storage = keys[0].before, client.storage
        remembered = storage.get(HISTORY)
        if (remembered.sent if remembered else "") != before:  # a server that counts rounds otherwise could have it so
            raise GenfedError("what it remembers is not what it signed in this round: it makes new keys first")
        if any(each.before != before for each in keys):
            before, storage = "", ForgetfulStorage(client.storage)
        reply = self.phase.work(replace(client, storage=storage), sent)
        client.storage.put(HISTORY, continue_history(before, sent))
        return reply

    def agree(self, client: Client, sent: Survivors) -> Reply[Agreement]:
        """Signs what the server says of its groups: the keys, the senders of shares, and the survivors. It signs once
        in a round: with signatures of two lists, a server could show each client the list that it wants to see.

        Raises:
            GenfedError: the lists are not those of its round, or it has signed others.
        """
        me, secrets = client.info.id, _load_secrets(client)
        signer, groups, signatures = self.signer or signer_of(secrets.signing), dict(secrets.groups), {}
        for group, survivors in self._checked_survivors(me, secrets, sent.survivors, sent.dropped).items():
            own, statement = secrets.groups[group], self._statement(me, secrets.groups[group], group, survivors)
            if own.agreed not in ("", fingerprint(statement)):
                raise GenfedError("it has signed another list of survivors in this round")
            signatures[group] = signer.sign(statement)
            groups[group] = replace(own, agreed=fingerprint(statement))
        client.storage.put(SECRETS, replace(secrets, groups=groups))
        return Reply(Agreement(signatures))

    def _statement(self, me: int, own: GroupSecrets, group: str, survivors: Iterable[int]) -> bytes:
        keys = {me: own.public, **own.neighbors}
        return state_survivors(self.phase.name, group, keys, (me, *own.inbox), (me, *survivors))

    def _checked_survivors(
        self,
        me: int,
        secrets: ClientSecrets,
        survivors: Mapping[str, tuple[int, ...]],
        dropped: Mapping[str, tuple[int, ...]],
    ) -> dict[str, tuple[int, ...]]:
        """Returns the survivors of each group, after a check that they and those dropped are exactly the clients that
        shared secrets with this one, and that the sum is large enough.
        """
        if not secrets.masked:
            raise GenfedError("it has uploaded nothing in this round")
        if survivors.keys() - secrets.groups.keys() or survivors.keys() != dropped.keys():
            raise GenfedError("the message is about another group than its own")
        for group, ids in survivors.items():
            own = secrets.groups[group]
            self._check_ids(me, (*ids, *dropped[group]))
            if {*ids, *dropped[group]} != {*own.inbox}:
                raise GenfedError("the survivors and those that left are not the clients that shared secrets with it")
            self._require_enough(secrets, own, group, ids)
        return dict(survivors)

    def reveal_shares(self, client: Client, sent: RevealRequest) -> Reply[RevealedShares]:
        """Reveals, of each survivor, a share of the seed of its mask, and of each other neighbor one of its key.

        Raises:
            GenfedError: the lists are not those of its round, or too few survivors have signed the same.
        """
        me, secrets, revealed = client.info.id, _load_secrets(client), {}
        for group, survivors in self._checked_survivors(me, secrets, sent.survivors, sent.dropped).items():
            own = secrets.groups[group]
            if self.settings.agrees:
                self._check_agreement(me, own, group, survivors, sent.signatures.get(group, {}))
            shares = {me: own.share}
            for other in (*survivors, *sent.dropped[group]):
                if (both := own.opened.get(other)) is not None:
                    half = len(both) // 2
                    shares[other] = both[:half] if other in survivors else both[half:]
            revealed[group] = shares
        client.storage.put(SECRETS, ClientSecrets({}))  # no more of this round is revealed
        return Reply(RevealedShares(revealed))

    def _check_agreement(
        self, me: int, own: GroupSecrets, group: str, survivors: tuple[int, ...], signatures: Mapping[int, str]
    ) -> None:
        """Refuses a list of survivors that fewer of them have signed than must be in a sum, this client included."""
        statement = self._statement(me, own, group, survivors)
        if fingerprint(statement) != own.agreed:
            raise GenfedError("the survivors are not those that it has signed")
        signed = [
            other
            for other in survivors
            if other in signatures and is_signed(own.neighbors[other].signing, signatures[other], statement)
        ]
        require_clients(len(signed) + 1, self.settings.quorum(len(own.neighbors)), group)


def require_clients(count: int, needed: int, group: str) -> None:
    """Refuses a group in which too few clients are left.

    Raises:
        GenfedError: `count` is below `needed`.
    """
    if count < needed:
        where = f" of architecture {group}" if group else ""
        raise GenfedError(f"secure aggregation: {count} clients{where} are left, and {needed} are needed for a sum")


def pair_seed(private: str, public: str, group: str, sent: str) -> bytes:
    """Returns the seed of a pair's mask. It depends on what the two were sent: had a server sent them different models,
    their masks would not cancel, so it learns no sum that says most about one of them.

    Args:
        private: the private masking key of one of the pair.
        public: the public masking key of the other.
        group: the group.
        sent: fingerprint of what the two were sent, as far as it is the same.
    """
    return agree_key(bytes.fromhex(private), bytes.fromhex(public), f"mask {sent} {group}")


def signed_mask(me: int, other: int, seed: bytes, size: int) -> Tensor:
    """Returns a pair's mask with the sign that `me` adds it with: the two of a pair cancel."""
    mask = expand_mask(seed, size)
    return mask if me < other else -mask


def _load_secrets(client: Client) -> ClientSecrets:
    secrets = client.storage.get(SECRETS)
    if secrets is None or not secrets.groups:
        raise GenfedError("it has no secrets of this round: it did not take part in the exchange before")
    return secrets


def _check_groups(secrets: ClientSecrets, groups: Mapping[str, Any]) -> None:
    if groups.keys() != secrets.groups.keys():
        raise GenfedError("the message is about other groups than its own")


def _sealing_key(own: GroupSecrets, other: MaskKeys, group: str, sender: int, receiver: int) -> bytes:
    return agree_key(bytes.fromhex(own.sealing), bytes.fromhex(other.sealing), f"seal {sender} {receiver} {group}")


def _open_shares(own: GroupSecrets, group: str, me: int, inbox: Mapping[int, SealedShare]) -> dict[int, str]:
    """Returns the two shares of each neighbor, without those that do not open, or not to what was announced."""
    opened = {}
    for other, share in inbox.items():
        try:
            both = unseal(_sealing_key(own, own.neighbors[other], group, other, me), bytes.fromhex(share.sealed))
        except (GenfedError, ValueError):  # not sealed for it, or not hexadecimal
            continue
        halves = both[:SHARE_BYTES], both[SHARE_BYTES:]
        if share.digest == "".join(map(share_digest, halves)):
            opened[other] = both.hex()
    return opened


def _add_masks(
    own: GroupSecrets, group: str, sent: SentFingerprints, me: int, others: Iterable[int], vector: GroupVector
) -> GroupVector:
    size = len(vector.numbers)
    numbers = vector.numbers + expand_mask(bytes.fromhex(own.seed), size)
    for other in others:
        keys = own.neighbors[other]
        seed = pair_seed(own.masking, keys.masking, group, sent.common_with(keys.architecture))
        numbers = numbers + signed_mask(me, other, seed, size)
    return GroupVector(numbers, vector.form)
