"""Stratified split of the training examples into the parts that a data set lacks."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.dataset import Dataset, Source
from genfed.data.features import Encoder

PARTS = ("train", "validation", "test")


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

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise GenfedError(f"validation + test is {self.validation + self.test:g}; below 1 is allowed")

    @abstractmethod
    def load(self) -> Dataset: ...

    def cut(self, y: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, tuple[str, Tensor]]:
        """Returns the origin of each of the three parts: (a given part, the rows taken from it).

        Args:
            y: The labels [n] of each given part: "train" and optionally others.
            classes: The names of the classes.

        Raises:
            GenfedError: a class has too few examples.
        """
        missing = [part for part in PARTS if part not in y]
        fractions = [self.validation if part == "validation" else self.test for part in missing]
        train, *cuts = split_stratified(y["train"], fractions, self.split_seed, classes)
        given = {part: (part, torch.arange(len(labels))) for part, labels in y.items()}
        return given | {"train": ("train", train)} | {p: ("train", rows) for p, rows in zip(missing, cuts, strict=True)}

    def build_dataset(
        self,
        kind: Literal["image", "table"],
        given: Mapping[str, Data],
        classes: tuple[str, ...],
        columns: Mapping[str, Sequence[str]],
        encoder: Encoder | None = None,
        other_columns: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> Dataset:
        """Builds the whole data set from the given parts.

        Args:
            kind: The kind of the task.
            given: The given parts: "train" and optionally others.
            classes: The names of the classes.
            columns: The natural columns of the given "train".
            encoder: The encoder of a table's features; None: there is none.
            other_columns: The natural columns of the other given parts, by part; None: unknown.

        Raises:
            GenfedError: the parts have examples of different shapes, or a class has too few examples.
        """
        shapes = {part: tuple(data.x.shape[1:]) for part, data in given.items()}
        for part, shape in shapes.items():
            if shape != shapes["train"]:
                raise GenfedError(f"one example of train has shape {shapes['train']}, one of {part} {shape}")
        rows = self.cut({part: data.y for part, data in given.items()}, classes)
        parts = {part: given[source][chosen] for part, (source, chosen) in rows.items()}
        brought = {**(other_columns or {}), "train": columns}
        natural = {
            part: {name: tuple(values[i] for i in chosen.tolist()) for name, values in brought.get(source, {}).items()}
            for part, (source, chosen) in rows.items()
        }
        return Dataset(
            Task(kind, shapes["train"], classes),
            parts["train"],
            parts["validation"],
            parts["test"],
            columns=natural["train"],
            validation_columns=natural["validation"],
            test_columns=natural["test"],
            encoder=encoder,
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
