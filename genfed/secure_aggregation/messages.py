"""The messages of secure aggregation. Keys, signatures and shares are in hexadecimal."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Slot
from genfed.secure_aggregation.fixed_point import GroupVector

D = TypeVar("D")


@dataclass(frozen=True)
class MaskKeys:
    """A client's public keys for one group and one round."""

    sealing: str
    """The key with which messages to it are sealed, 32 bytes."""
    masking: str
    """The key with which others agree on masks with it, 32 bytes."""
    signing: str
    """The key that its signatures are checked with."""
    trial: str
    """Fingerprint of the description of the trial by which the client acts. Empty: there is none."""
    architecture: str
    """The client's architecture."""
    before: str
    """Fingerprint of all that the client was sent in the rounds that it remembers. Empty: there were none, or they do
    not matter."""
    signature: str = ""
    """Its signature of the others. Empty: it has not signed them yet."""


@dataclass(frozen=True)
class OfferedKeys:
    """A client's public keys for one round."""

    keys: dict[str, MaskKeys]
    """Public keys by group."""


@dataclass(frozen=True)
class Neighbors:
    """The clients with which a client shares masks and secrets."""

    neighbors: dict[str, dict[int, MaskKeys]]
    """Public keys by group and neighbor."""


@dataclass(frozen=True)
class SealedShares:
    """The shares of a client's secrets, sealed for each neighbor."""

    sealed: dict[str, dict[int, str]]
    """Sealed shares by group and neighbor."""
    digests: dict[str, dict[int, str]]
    """Fingerprints of the two shares, one after the other, by group and holder (itself too)."""


@dataclass(frozen=True)
class SealedShare:
    """The shares that one neighbor sealed for a client."""

    sealed: str
    digest: str
    """Fingerprints of the two shares, one after the other."""


@dataclass(frozen=True)
class SecureWork(Generic[D]):
    """What the phase sends, and the shares that neighbors sealed for this client."""

    sent: D
    """The record that the phase sends."""
    inbox: dict[str, dict[int, SealedShare]]
    """Sealed shares by group and neighbor."""
    members: dict[str, int]
    """Largest number of uploads in the sum, by group."""


@dataclass(frozen=True)
class MaskedUpload:
    """An upload under its masks."""

    masked: dict[str, GroupVector]
    """Masked vector by group."""
    unopened: dict[str, tuple[int, ...]]
    """Neighbors whose sealed shares it could not open, by group."""


@dataclass(frozen=True)
class Survivors:
    """The fate of a client's neighbors before the sum."""

    survivors: dict[str, tuple[int, ...]]
    """Neighbors whose masked upload is in the sum, by group."""
    dropped: dict[str, tuple[int, ...]]
    """Neighbors that shared secrets and are not in the sum, by group."""


@dataclass(frozen=True)
class Agreement:
    """A client's consent to what the server says of its groups."""

    signatures: dict[str, str]
    """Signature of keys, senders of shares, and survivors, by group."""


@dataclass(frozen=True)
class RevealRequest:
    """What a client needs to know before it reveals shares."""

    survivors: dict[str, tuple[int, ...]]
    """Neighbors whose masked upload is in the sum, by group."""
    dropped: dict[str, tuple[int, ...]]
    """Neighbors that shared secrets and are not in the sum, by group."""
    signatures: dict[str, dict[int, str]]
    """Signatures of the survivors, by group and survivor. Empty: clients do not agree, since they have few
    neighbors."""


@dataclass(frozen=True)
class RevealedShares:
    """Shares of the secrets that unmask a sum."""

    shares: dict[str, dict[int, str]]
    """Shares by group and owner: of a survivor's own mask's seed, or of a dropped client's masking key."""


@dataclass(frozen=True)
class GroupSecrets:
    """A client's secrets of one group during a round."""

    sealing: str
    """Private key, to unseal messages."""
    masking: str
    """Private key, to agree on masks."""
    public: MaskKeys
    """The public keys of both."""
    neighbors: dict[int, MaskKeys] = field(default_factory=dict)
    """Public keys by neighbor."""
    seed: str = ""
    """Seed of its own mask. Empty: there is none yet, or it was used."""
    share: str = ""
    """Its own share of that seed."""
    inbox: tuple[int, ...] = ()
    """Neighbors that shared secrets with it."""
    opened: dict[int, str] = field(default_factory=dict)
    """The two shares, one after the other, by neighbor."""
    agreed: str = ""
    """Fingerprint of the statement that it has signed. Empty: it has signed none."""


@dataclass(frozen=True)
class ClientSecrets:
    """A client's secrets during a round."""

    groups: dict[str, GroupSecrets]
    """Secrets by group. Empty: the round is over."""
    signing: str = ""
    """Private key for its signatures in this round. Empty: it signs with a key of its own that outlives the run."""
    masked: bool = False
    """Whether it has sent its masked upload."""


SECRETS = Slot("secure", ClientSecrets)


@dataclass(frozen=True)
class SecureSession:
    """The server's knowledge during a round."""

    state: Any
    """The method's state."""
    keys: dict[int, dict[str, MaskKeys]] = field(default_factory=dict)
    """Public keys by client and group."""
    clients: dict[int, ClientInfo] = field(default_factory=dict)
    """Clients that offered keys, by id."""
    neighbors: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """Neighbors by group and client."""
    sealed: dict[int, SealedShares] = field(default_factory=dict)
    """Sealed shares by owner."""
    sums: dict[str, GroupVector] = field(default_factory=dict)
    """Sum by group, under masks."""
    survivors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Clients whose upload is in the sum, by group."""
    unopened: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    """Owners whose shares a client could not open, by client and group."""
    misfits: dict[int, str] = field(default_factory=dict)
    """Reason why an upload fits no other, by client."""
    signatures: dict[int, dict[str, str]] = field(default_factory=dict)
    """Signatures of the lists of survivors, by client and group."""
    values: dict[str, Any] = field(default_factory=dict)
    """Reduced value by upload field, once the sums are unmasked."""
