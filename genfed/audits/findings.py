"""What audits found, as records."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Verdict = Literal["leak", "no leak found", "underpowered", "false positive"]


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    low: float
    high: float
    """Of the 95 % bootstrap interval."""
    unreadable: str = ""
    """Why the number says nothing; empty: it may be read."""


@dataclass(frozen=True)
class Reading:
    """One attack: its numbers on the run, on a planted leak that it must find, and where there is nothing to find."""

    attack: str
    """In words."""
    judged_by: str
    """Which of the numbers decides; the larger it is, the more leaks."""
    chance: float
    """Its value where nothing leaks."""
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
    """Something to look at: rows of images, one below the other."""

    caption: str
    rows: tuple[str, ...]
    """What each row shows."""
    images: Tensor
    """uint8 [rows, columns, C, H, W]."""


@dataclass(frozen=True)
class Findings:
    """What came of an audit."""

    readings: tuple[Reading, ...]
    sizes: dict[str, int]
    """How many of what: members, non-members, samples, shadow models."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class ReportImage:
    """A picture as a report keeps it."""

    caption: str
    rows: tuple[str, ...]
    png: tuple[str, ...]
    """A data URL of a PNG per row."""
    width: int
    """At which a row is shown, in CSS pixels."""


@dataclass(frozen=True)
class AuditResult:
    """An audit of one trial as `audits.json` has it."""

    audit: str
    """Its label."""
    method: str
    seed: int
    step: int
    """Rounds that had been done."""
    sees: tuple[str, ...]
    attacker: str
    settings: dict[str, Any]
    seconds: float
    readings: tuple[Reading, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    images: tuple[ReportImage, ...] = ()
    not_possible: str = ""
    """Why it was not made; empty: it was."""


@dataclass(frozen=True)
class Exchanged:
    """What one phase of a method sends."""

    method: str
    phase: str
    down: str
    """Fields that the server sends to a client; empty: none."""
    up: str
    """Fields that a client uploads, and how they are reduced; empty: none."""
    protection: str = ""
    """The phase's own statement, as `Phase.protection` has it."""


@dataclass(frozen=True)
class Audits:
    """All audits of a run: audits.json."""

    shared: tuple[Exchanged, ...]
    results: tuple[AuditResult, ...]
