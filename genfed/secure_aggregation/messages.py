"""The messages of secure aggregation."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from genfed.core.client import Slot
from genfed.secure_aggregation.fixed_point import GroupVector

D = TypeVar("D")


@dataclass(frozen=True)
class MaskKeys:
    """What a client makes known: a key to seal messages to it, and one to agree on masks."""

    sealing: str
    masking: str


@dataclass(frozen=True)
class Neighbors:
    """Whom a client shares masks with, by group: their keys by client."""

    circle: dict[str, dict[int, MaskKeys]]


@dataclass(frozen=True)
class SealedShares:
    """Shares of a client's secrets, sealed for each neighbour: by group and client."""

    sealed: dict[str, dict[int, str]]


@dataclass(frozen=True)
class SecureWork(Generic[D]):
    """What was to be sent, and by group the shares that neighbours sealed for this client."""

    sent: D
    inbox: dict[str, dict[int, str]]
    members: dict[str, int]
    """How many may be added up."""


@dataclass(frozen=True)
class MaskedUpload:
    """An upload under its masks, by group."""

    masked: dict[str, GroupVector]


@dataclass(frozen=True)
class Survivors:
    """Of a client's neighbours, by group, those whose masked upload came, and those who went before it."""

    stayed: dict[str, tuple[int, ...]]
    went: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RevealedShares:
    """Shares by group and client: of the seed of its own mask for who stayed, of its masking key for who went."""

    shares: dict[str, dict[int, str]]


@dataclass(frozen=True)
class ClientSecrets:
    """What a client keeps to itself during a round."""

    sealing: str
    masking: str
    circle: dict[str, dict[int, MaskKeys]]
    own: dict[str, str]
    """By group the seed of its own mask."""
    mine: dict[str, str]
    """By group its share of its own secrets."""
    inbox: dict[str, dict[int, str]]


SECRETS = Slot("secure", ClientSecrets)


@dataclass(frozen=True)
class SecureSession:
    """What the server knows in the course of a round."""

    state: Any
    """Of the method."""
    keys: dict[int, MaskKeys] = field(default_factory=dict)
    circle: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """By group and client its neighbours."""
    sealed: dict[int, dict[str, dict[int, str]]] = field(default_factory=dict)
    """By who sealed them."""
    sums: dict[str, GroupVector] = field(default_factory=dict)
    stayed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
