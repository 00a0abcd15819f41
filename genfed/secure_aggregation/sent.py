"""What a client was sent in a round, as far as the masks that it shares with another client depend on it."""

from dataclasses import dataclass, fields, replace
from typing import Any

from genfed.core.aggregate import ClientInfo
from genfed.core.phase import Phase
from genfed.core.record import digest, pack


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
