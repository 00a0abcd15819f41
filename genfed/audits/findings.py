"""The findings of audits, as records."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Verdict = Literal["leak", "none found", "blind", "deceived"]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    """Upper bound of the interval."""
    unreadable: str = ""
    """Reason why the number cannot be interpreted. Empty: it can."""


@dataclass(frozen=True)
class Reading:
    """One attack: its numbers on the run, on a planted leak that it must find, and on a control without any leak."""

    attack: str
    """Name of the attack."""
    judged_by: str
    """Name of the number that decides. A larger number means a larger leak."""
    chance: float
    """Value of that number without a leak."""
    run: dict[str, Estimate]
    control: dict[str, Estimate]
    null: dict[str, Estimate]

    @property
    def verdict(self) -> Verdict:
        """Returns "blind" if the attack misses the planted leak, "deceived" if it finds a leak in the control without
        any, else whether the whole interval of the run is above chance.
        """
        if not self._found(self.control):
            return "blind"
        if self._found(self.null):
            return "deceived"
        return "leak" if self._found(self.run) else "none found"

    def _found(self, numbers: dict[str, Estimate]) -> bool:
        return numbers[self.judged_by].low > self.chance


@dataclass(frozen=True)
class Picture:
    """Rows of images for the report."""

    caption: str
    rows: tuple[str, ...]
    """Title of each row."""
    images: Tensor
    """Images uint8 [rows, columns, C, H, W]."""


@dataclass(frozen=True)
class Findings:
    """The findings of one audit."""

    readings: tuple[Reading, ...]
    sizes: dict[str, int]
    """Numbers of members, non-members, samples, shadow models."""
    notes: tuple[str, ...] = ()
    """Notes that a reader needs to understand the numbers."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class ReportImage:
    """A picture in a report."""

    caption: str
    rows: tuple[str, ...]
    png: tuple[str, ...]
    """Data URL of a PNG for each row."""
    width: int
    """Width of a row in CSS pixels."""


@dataclass(frozen=True)
class AuditResult:
    """An audit of one trial in `audits.json`."""

    audit: str
    """Label of the audit."""
    method: str
    seed: int
    step: int
    """Number of rounds before the audit."""
    sees: tuple[str, ...]
    attacker: str
    settings: dict[str, Any]
    seconds: float
    readings: tuple[Reading, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    images: tuple[ReportImage, ...] = ()
    not_possible: str = ""
    """Reason why the audit was not possible. Empty: it was."""


@dataclass(frozen=True)
class Exchanged:
    """What one phase of a method sends and uploads."""

    method: str
    phase: str
    down: str
    """Fields that the server sends to a client. Empty: none."""
    up: str
    """Fields that a client uploads, and how they are reduced. Empty: none."""
    protection: str = ""
    """Statement of the phase, as in `Phase.protection`."""


@dataclass(frozen=True)
class Audits:
    """All audits of a run: audits.json."""

    shared: tuple[Exchanged, ...]
    results: tuple[AuditResult, ...]
