"""What a data source read, said before training begins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from genfed.core.text import one_line


@dataclass(frozen=True)
class SourceSummary:
    """What a data source read, and what looks wrong in it. Every line is one short sentence without a full stop.

    >>> from genfed.preprocessing.source_summary import SourceSummary
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


RARE = 5
"""A class with fewer training examples is warned of."""
_SHOWN = 60
"""Characters of a name that are shown."""


def list_some(items: Iterable[str], most: int = 8) -> str:
    """Joins items by commas; of more than `most` and one, the rest is counted.

    >>> from genfed.preprocessing.source_summary import list_some
    >>> list_some("abcde", 3)
    'a, b, c … and 2 more'
    """
    known = list(items)
    if len(known) <= most + 1:
        return ", ".join(known)
    return f"{', '.join(known[:most])} … and {len(known) - most} more"


def show(name: str, most: int = _SHOWN) -> str:
    """Returns a name from a file as it can stand in a line: control characters escaped, cut to `most` characters."""
    return one_line(name, most)


def count_of(n: int, one: str, many: str | None = None) -> str:
    """Returns a number with its noun.

    >>> from genfed.preprocessing.source_summary import count_of
    >>> count_of(1, "row"), count_of(1200, "row"), count_of(2, "copy", "copies")
    ('1 row', '1,200 rows', '2 copies')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def describe_parts(
    counts: Mapping[str, Sequence[int]], classes: Sequence[str], split_off: Iterable[str]
) -> SourceSummary:
    """Describes the parts of a data set and their classes.

    Args:
        counts: The number of examples of each class, by part.
        classes: The names of the classes.
        split_off: The parts that were split off from the training examples.
    """
    own = set(split_off)
    sizes = {part: sum(numbers) for part, numbers in counts.items()}
    parts = [f"{part} {n:,}" + (" (split off)" if part in own and n else "") for part, n in sizes.items()]
    filled = [part for part, n in sizes.items() if n]
    by_class = [f"{show(name)} {'/'.join(f'{counts[part][c]:,}' for part in filled)}" for c, name in enumerate(classes)]
    warnings = []
    if rare := [f"{show(classes[c])} {n}" for c, n in enumerate(counts["train"]) if n < RARE]:
        warnings.append(f"few training examples of a class: {list_some(rare)}")
    for part in filled:
        lacking = [show(classes[c]) for c, n in enumerate(counts[part]) if not n]
        warnings += [f"the {part} part has no example of class {list_some(lacking)}"] if lacking else []
    kinds = {" ".join(name.casefold().split()) for name in classes}
    warnings += ["classes differ only in capitals or spaces; write them alike"] if len(kinds) < len(classes) else []
    facts = (f"examples: {', '.join(parts)}", f"classes ({'/'.join(filled)}): {list_some(by_class)}")
    return SourceSummary(facts, tuple(warnings))
