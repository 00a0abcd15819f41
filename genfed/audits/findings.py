"""Findings of audits as records."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Verdict = Literal["leak", "no leak found", "underpowered", "false positive"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    unreadable: str = ""
    """Reason why the number says nothing; empty: it is valid."""


@dataclass(frozen=True)
class Reading:
    """One attack: its numbers on the run, on a planted leak that it must find, and where there is nothing to find."""

    attack: str
    """Name of the attack, in words."""
    judged_by: str
    """Name of the number that decides; the larger it is, the larger the leak."""
    chance: float
    """Value of that number where nothing leaks."""
    run: dict[str, Estimate]
    control: dict[str, Estimate]
    null: dict[str, Estimate]

    @property
    def verdict(self) -> Verdict:
        """Returns the outcome of the attack on the run, after its two controls.

        "underpowered": it misses the planted leak, so finding nothing on the run says nothing. "false positive": it
        finds a leak where there is none, so finding one on the run says nothing. Else "leak" where the run's whole
        interval lies above chance, and "no leak found" where it does not.
        """
        if not self._found(self.control):
            return "underpowered"
        if self._found(self.null):
            return "false positive"
        return "leak" if self._found(self.run) else "no leak found"

    def _found(self, numbers: dict[str, Estimate]) -> bool:
        return numbers[self.judged_by].low > self.chance


@dataclass(frozen=True)
class Picture:
    """Rows of images, one below the other."""

    caption: str
    rows: tuple[str, ...]
    """Content of each row."""
    images: Tensor
    """uint8 [rows, columns, C, H, W]."""


@dataclass(frozen=True)
class Findings:
    """The outcome of an audit."""

    readings: tuple[Reading, ...]
    sizes: dict[str, int]
    """Numbers of members, non-members, samples or shadow models."""
    notes: tuple[str, ...] = ()
    """Remarks that a reader needs to understand the numbers."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class ReportImage:
    """A picture as audits.json holds it."""

    caption: str
    rows: tuple[str, ...]
    png: tuple[str, ...]
    """Data URL of a PNG for each row."""
    width: int
    """Width at which a row is shown, in CSS pixels."""


@dataclass(frozen=True)
class AuditResult:
    """An audit of one trial as audits.json holds it."""

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
    """Reason why the audit could not be run; empty: it was run."""
    state: str = ""
    """Digest of the checkpoint that was attacked; empty: an older genfed wrote the result."""


@dataclass(frozen=True)
class Exchanged:
    """The messages of one phase of a method."""

    method: str
    phase: str
    down: str
    """Fields that the server sends to a client; empty: none."""
    up: str
    """Fields that a client uploads, and how they are aggregated; empty: none."""
    protection: str = ""
    """What protects the uploads, as `Phase.protection` states it; empty: nothing."""


@dataclass(frozen=True)
class Audits:
    """All audits of a run: audits.json."""

    shared: tuple[Exchanged, ...]
    results: tuple[AuditResult, ...]
