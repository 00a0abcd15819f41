"""What a data source read, said before training begins."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceSummary:
    """What a data source read, and what looks wrong in it. Every line is one short sentence without a full stop.

    >>> from genfed.data.source_summary import SourceSummary
    >>> first = SourceSummary(("a.csv: 60 rows",), ("a.csv: 4 rows stand twice; set data.deduplicate = true",))
    >>> (first + SourceSummary(("classes: ill 30, well 30",))).facts
    ('a.csv: 60 rows', 'classes: ill 30, well 30')
    """

    facts: tuple[str, ...] = ()
    """Files, parts, classes and columns with their numbers, and the range of pixels."""
    warnings: tuple[str, ...] = ()
    """Suspicious readings, each with the setting that mends it."""

    def __add__(self, other: "SourceSummary") -> "SourceSummary":
        return SourceSummary(self.facts + other.facts, self.warnings + other.warnings)
