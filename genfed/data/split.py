"""Stratified split of the training examples into the parts that a data set lacks."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.copies import describe_copies, digest_examples, digest_images, find_copies
from genfed.data.dataset import Dataset, Source
from genfed.data.encoder import Encoder
from genfed.data.features import TableSchema
from genfed.data.group_split import split_by_group
from genfed.preprocessing.checks import require_known
from genfed.preprocessing.part_names import PARTS
from genfed.preprocessing.source_summary import SourceSummary, describe_parts, show

NOTHING_SAID = SourceSummary()


@dataclass(frozen=True)
class Cut:
    """Which rows of the given parts make the three parts of a data set."""

    rows: dict[str, tuple[str, Tensor]]
    """Origin of each part: a given part, and the rows taken from it, sorted."""
    summary: SourceSummary
    """The sizes of the parts, their classes, groups and copies."""
    split_off: tuple[str, ...] = ()
    """Parts that were split off from the training examples."""


# A string under an inherited field does not become its description, so these have theirs in `Field`.
@settings
class SplitSource(Source):
    """A source that splits a validation part and a test part off from its training examples if it has none."""

    validation: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Fraction of the examples for the validation part, if the data have none; 0: no validation part.",
    )
    test: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Fraction of the examples for the test part, if the data have none.",
    )
    split_seed: int = Field(
        default=0, description="Seed of this split; separate from the run's, so that all runs have the same test part."
    )
    deduplicate: bool = Field(
        default=False,
        description="Whether exact copies of an example with the same label are removed, before the split. A copy in "
        "the test part stays rather than one in the others.",
    )
    group: str | None = Field(
        default=None,
        description="Natural column whose values stay together, such as "
        '"patient": no value has examples in two parts. None: examples are split one by one.',
    )
    validation_groups: tuple[str, ...] | None = Field(
        default=None,
        description="Values of `group` whose examples are the validation part, if the data have none, in place of "
        "`validation`. None: groups are drawn.",
    )
    test_groups: tuple[str, ...] | None = Field(
        default=None,
        description="Values of `group` whose examples are the test part, if the data have none, in place of `test`. "
        "None: groups are drawn.",
    )

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise GenfedError(f"validation + test is {self.validation + self.test:g}; below 1 is allowed")
        named = self._named_groups()
        if named and self.group is None:
            raise GenfedError(f"{min(named)}_groups: set group, the natural column that they are values of")
        if both := set.intersection(*map(set, named.values())) if len(named) > 1 else ():
            raise GenfedError(f"validation_groups and test_groups both name {min(both)!r}; one part each is allowed")

    def _named_groups(self) -> dict[str, tuple[str, ...]]:
        """Returns the groups of each part that has a list of them."""
        named = {"validation": self.validation_groups, "test": self.test_groups}
        return {part: groups for part, groups in named.items() if groups is not None}

    @abstractmethod
    def load(self) -> Dataset: ...

    def cut(
        self,
        y: Mapping[str, Tensor],
        classes: Sequence[str],
        keys: Mapping[str, Sequence[bytes]] | None = None,
        natural: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> Cut:
        """Returns which rows of the given parts make the three parts.

        Args:
            y: The labels [n] of each given part: "train" and optionally others.
            classes: The names of the classes.
            keys: A digest of each example, by given part: equal ones are copies. None: copies are not looked for.
            natural: The natural columns by given part, for `group`. None: there are none.

        Raises:
            GenfedError: a class has too few examples, or a group has examples in two given parts.
        """
        groups = self._read_groups(y, natural or {})
        copies = find_copies(y, keys or {})
        kept = {part: torch.arange(len(labels)) for part, labels in y.items()}
        if self.deduplicate:
            kept |= {part: (~copy).nonzero()[:, 0] for part, copy in copies.items()}
        own = None if groups is None else groups["train"]
        named = self._take_groups(own or (), kept["train"], y)
        missing = {part: self._fraction(part) for part in PARTS if part not in y and part not in named}
        off = named | self._split_off(y["train"], kept["train"], own, classes, named, missing)
        rows = {part: ("train", off[part]) if part in off else (part, kept[part]) for part in PARTS}
        count = sum(int(copy.sum()) for copy in copies.values())
        summary = self._describe_parts(y, classes, rows, [*missing], groups)
        split_off = tuple(part for part, fraction in missing.items() if fraction)
        return Cut(rows, summary + describe_copies(count, self.deduplicate, y, keys or {}, rows), split_off)

    def _fraction(self, part: str) -> float:
        return self.validation if part == "validation" else self.test

    def _take_groups(self, own: Sequence[str], rows: Tensor, y: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the rows of the parts whose groups are named.

        Args:
            own: The group of each row of "train".
            rows: The rows of "train" that are not removed.
            y: The labels of each given part.

        Raises:
            GenfedError: the data have such a part already, or no such group.
        """
        found = {}
        for part, names in self._named_groups().items():
            if part in y:
                raise GenfedError(f"{part}_groups: the data have a {part} part already; leave it unset")
            for name in names:
                require_known(name, set(own), f"{part}_groups: {self.group}")
            found[part] = rows[torch.tensor([own[row] in names for row in rows.tolist()])]
        return found

    def _split_off(
        self,
        y: Tensor,
        rows: Tensor,
        own: Sequence[str] | None,
        classes: Sequence[str],
        named: Mapping[str, Tensor],
        missing: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """Splits parts off from "train", at random. Returns the rows of the rest, as "train", and of each of them.

        Args:
            y: The labels of "train".
            rows: Its rows that are not removed.
            own: The group of each of its rows. None: rows are split one by one.
            classes: The names of the classes.
            named: The rows of parts whose groups are named; these are left out.
            missing: The share of each part to split off.
        """
        rest = rows[~torch.isin(rows, torch.cat([rows[:0], *named.values()]))]
        shares = [*missing.values()]
        if own is None:
            cuts = split_stratified(y[rest], shares, self.split_seed, classes)
        else:
            groups = [own[row] for row in rest.tolist()]
            cuts = split_by_group(y[rest], groups, shares, self.split_seed, classes)
        return {part: rest[cut] for part, cut in zip(("train", *missing), cuts, strict=True)}

    def _describe_parts(
        self,
        y: Mapping[str, Tensor],
        classes: Sequence[str],
        rows: Mapping[str, tuple[str, Tensor]],
        split_off: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None,
    ) -> SourceSummary:
        counts = {
            part: torch.bincount(y[given][chosen], minlength=len(classes)).tolist()
            for part, (given, chosen) in rows.items()
        }
        summary = describe_parts(counts, classes, split_off)
        if groups is None:
            return summary
        kinds = {part: len({groups[given][row] for row in chosen.tolist()}) for part, (given, chosen) in rows.items()}
        names = {name for given in groups.values() for name in given}
        alike = len({" ".join(name.casefold().split()) for name in names}) < len(names)
        doubt = f"groups by {self.group} that differ only in capitals or spaces are kept apart; write them alike"
        return summary + SourceSummary(
            (f"groups by {self.group}: {', '.join(f'{part} {n:,}' for part, n in kinds.items())}",),
            (doubt,) if alike else (),
        )

    def _read_groups(
        self, y: Mapping[str, Tensor], natural: Mapping[str, Mapping[str, Sequence[str]]]
    ) -> dict[str, Sequence[str]] | None:
        """Returns the group of each row of each given part. None: `group` is not set."""
        if self.group is None:
            return None
        groups, home = {}, dict[str, str]()
        for part in y:
            there = natural.get(part, {})
            groups[part] = there[require_known(self.group, there, f"group: natural column of the {part} part")]
            for value in dict.fromkeys(groups[part]):
                if home.setdefault(value, part) != part:
                    raise GenfedError(
                        f"group {self.group!r}: {show(value)!r} is in the given {home[value]} and {part} parts; keep "
                        "each group in one of them, or give all rows as the training part"
                    )
        return groups

    def build_dataset(
        self,
        kind: Literal["image", "table", "series"],
        given: Mapping[str, Data],
        classes: tuple[str, ...],
        columns: Mapping[str, Sequence[str]],
        encoder: Encoder | None = None,
        other_columns: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        summary: SourceSummary = NOTHING_SAID,
        cut: Cut | None = None,
    ) -> Dataset:
        """Builds the whole data set from the given parts.

        Args:
            kind: The kind of the task.
            given: The given parts: "train" and optionally others.
            classes: The names of the classes.
            columns: The natural columns of the given "train".
            encoder: How new examples become features or pixels; None: unchanged.
            other_columns: The natural columns of the other given parts, by part; None: unknown.
            summary: What the source says of its reading. Parts, classes and copies are added to it.
            cut: The rows of each part, from `cut`; None: they are chosen here, and copies are looked for in x.

        Raises:
            GenfedError: the parts have examples of different shapes, or a class has too few examples.
        """
        shapes = {part: tuple(data.x.shape[1:]) for part, data in given.items()}
        if other := next((part for part, shape in shapes.items() if shape != shapes["train"]), None):
            raise GenfedError(f"one example of train has shape {shapes['train']}, one of {other} {shapes[other]}")
        brought = {**(other_columns or {}), "train": columns}
        if cut is None:
            keys = {part: (digest_images if kind == "image" else digest_examples)(d.x) for part, d in given.items()}
            cut = self.cut({part: data.y for part, data in given.items()}, classes, keys, brought)
        parts = {part: given[source][chosen] for part, (source, chosen) in cut.rows.items()}
        natural = {
            part: {name: tuple(values[i] for i in chosen.tolist()) for name, values in brought.get(source, {}).items()}
            for part, (source, chosen) in cut.rows.items()
        }
        return Dataset(
            Task(kind, shapes["train"], classes, encoder.columns() if isinstance(encoder, TableSchema) else ()),
            parts["train"],
            parts["validation"],
            parts["test"],
            columns=natural["train"],
            validation_columns=natural["validation"],
            test_columns=natural["test"],
            encoder=encoder,
            summary=summary + cut.summary,
            split_off=cut.split_off,
        )


def split_stratified(y: Tensor, fractions: Sequence[float], seed: int, classes: Sequence[str]) -> list[Tensor]:
    """Splits the rows by class. Returns the sorted rows of the rest, then of each fraction.

    The parts are disjoint and together hold every row. Each has the same shares of the classes, rounded, but at least
    one example of each class.

    Args:
        y: The labels, int64 [n].
        fractions: The share of each part but the rest; 0: an empty part.
        seed: The seed of the split.
        classes: The names of the classes.

    Raises:
        GenfedError: a class has too few examples to be in every part.
    """
    parts: list[list[Tensor]] = [[] for _ in range(1 + len(fractions))]
    for label, name in enumerate(classes):
        rows = (y == label).nonzero()[:, 0]
        sizes = [max(1, round(len(rows) * fraction)) if fraction else 0 for fraction in fractions]
        if (rest := len(rows) - sum(sizes)) < 1:
            raise GenfedError(
                f"class {name!r} has {len(rows)} examples: too few for a training part and {sum(sizes)} set aside"
            )
        # one stream per class: more examples of one class do not change the split of the others
        rows = rows[torch.randperm(len(rows), generator=stream(seed, "split", label))]
        for part, taken in zip(parts, torch.split(rows, [rest, *sizes]), strict=True):
            part.append(taken)
    return [torch.cat(part).sort().values for part in parts]
