"""The messages of secure aggregation."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genfed.core.client import Slot
from genfed.secure_aggregation.fixed_point import GroupVector

D = TypeVar("D")


@dataclass(frozen=True)
class MaskKeys:
    """A client's public keys, 32 bytes each in hexadecimal."""

    sealing: str
    """The key with which messages to it are sealed."""
    masking: str
    """The key with which others agree on masks with it."""


@dataclass(frozen=True)
class Neighbors:
    """The clients with which a client shares masks and secrets."""

    neighbors: dict[str, dict[int, MaskKeys]]
    """Public keys by group and neighbor."""


@dataclass(frozen=True)
class SealedShares:
    """The shares of a client's secrets, sealed for each neighbor."""

    sealed: dict[str, dict[int, str]]
    """Sealed shares by group and neighbor, in hexadecimal."""


@dataclass(frozen=True)
class SecureWork(Generic[D]):
    """What the phase sends, and the shares that neighbors sealed for this client."""

    sent: D
    """The record that the phase sends."""
    inbox: dict[str, dict[int, str]]
    """Sealed shares by group and neighbor."""
    members: dict[str, int]
    """Largest number of uploads in the sum, by group."""


@dataclass(frozen=True)
class MaskedUpload:
    """An upload under its masks."""

    masked: dict[str, GroupVector]
    """Masked vector by group."""


@dataclass(frozen=True)
class Survivors:
    """The fate of a client's neighbors before the sum."""

    survivors: dict[str, tuple[int, ...]]
    """Neighbors whose masked upload is in the sum, by group."""
    dropped: dict[str, tuple[int, ...]]
    """Neighbors that shared secrets and did not upload, by group."""


@dataclass(frozen=True)
class RevealedShares:
    """Shares of the secrets that unmask a sum."""

    shares: dict[str, dict[int, str]]
    """Shares by group and owner: of a survivor's own mask's seed, or of a dropped client's masking key."""


@dataclass(frozen=True)
class ClientSecrets:
    """A client's secrets during a round. Keys, seeds and shares are in hexadecimal."""

    sealing: str
    """Private key, to unseal messages. Empty: the round is over."""
    masking: str
    """Private key, to agree on masks. Empty: the round is over."""
    neighbors: dict[str, dict[int, MaskKeys]]
    """Public keys by group and neighbor."""
    seeds: dict[str, str]
    """Seed of its own mask, by group."""
    shares: dict[str, str]
    """Its own share of that seed, by group."""
    inbox: dict[str, dict[int, str]]
    """Sealed shares by group and neighbor."""


SECRETS = Slot("secure", ClientSecrets)


@dataclass(frozen=True)
class SecureSession:
    """The server's knowledge during a round."""

    state: Any
    """The method's state."""
    keys: dict[int, MaskKeys] = field(default_factory=dict)
    """Public keys by client."""
    neighbors: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """Neighbors by group and client."""
    sealed: dict[int, dict[str, dict[int, str]]] = field(default_factory=dict)
    """Sealed shares by owner, group and holder."""
    sums: dict[str, GroupVector] = field(default_factory=dict)
    """Sum by group, under masks."""
    survivors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Clients whose upload is in the sum, by group."""
    values: dict[str, Any] = field(default_factory=dict)
    """Reduced value by upload field, once the sums are unmasked."""
