"""What a client was sent, in a round and before it, as far as the masks that it shares with others depend on it."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from genfed.core.aggregate import ClientInfo
from genfed.core.client import ClientStorage, Slot
from genfed.core.phase import Phase
from genfed.core.record import digest, pack
from genfed.secure_aggregation.statements import fingerprint

R = TypeVar("R")


@dataclass(frozen=True)
class SentFingerprints:
    """Fingerprints of what a client was sent. Empty: it depends on the client."""

    architecture: str
    """The client's architecture."""
    whole: str
    """Fingerprint of the whole record, which all clients of the architecture are sent."""
    alike: str
    """Fingerprint of what clients of all architectures are sent."""

    def common_with(self, architecture: str) -> str:
        """Returns the fingerprint of what a client of this architecture must have been sent too."""
        return self.whole if architecture == self.architecture else self.alike


def fingerprint_sent(phase: Phase[Any], info: ClientInfo, group: str, sent: Any) -> SentFingerprints:
    """Returns fingerprints of what a phase sent to one client of a group. Clients of another architecture are not sent
    the same in fields that are uploaded by architecture, which none of the group share with them.
    """
    if not phase.sends_alike:
        return SentFingerprints(info.architecture, "", "")
    groups = {name: aggregate.group(info) for name, aggregate in phase.aggregate.items()}
    apart = [each.name for each in fields(sent) if groups.get(each.name, "") not in ("", group)]
    whole = digest(pack(sent), 32)
    alike = digest(pack(replace(sent, **dict.fromkeys(apart))), 32) if apart else whole
    return SentFingerprints(info.architecture, whole, alike)


@dataclass(frozen=True)
class History:
    """What a client was sent in the rounds that it remembers."""

    sent: str
    """Fingerprint of these records, in their order."""


HISTORY = Slot("history", History)


def continue_history(before: str, sent: Any) -> History:
    """Returns what a client was sent, after one record more. `before`: fingerprint of the others. Empty: none."""
    return History(fingerprint(f"{before} {digest(pack(sent), 32)}".encode()))


class ForgetfulStorage:
    """A client's private records, as if it had not learned from what it was sent before (`Slot.forget`)."""

    def __init__(self, storage: ClientStorage) -> None:
        self._storage = storage

    def get(self, slot: Slot[R]) -> R | None:
        """See `ClientStorage`."""
        record = self._storage.get(slot)
        return record if record is None or slot.forget is None else slot.forget(record)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `ClientStorage`."""
        self._storage.put(slot, record)
