"""Cuts the parts that a data set does not bring itself, stratified by class."""

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


# A string under an inherited field does not reach the field's description, so these say theirs in `Field`.
@settings
class SplitSource(Source):
    """A source that cuts a validation part and a test part from its training examples where it has none."""

    validation: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Fraction of the examples kept for choices, where the data brings no validation part; 0: none.",
    )
    test: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Fraction of the examples kept for the final score, where the data brings no test part.",
    )
    split_seed: int = Field(
        default=0, description="Seed of these cuts; apart from the run's, so that all runs share one test part."
    )

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise GenfedError(f"validation + test is {self.validation + self.test:g}; below 1 is allowed")

    @abstractmethod
    def load(self) -> Dataset: ...

    def cut(self, y: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, tuple[str, Tensor]]:
        """Where each of the three parts comes from: part → (a given part, its rows). `y` holds the labels [n] of the
        parts that the data brings: "train" and maybe others.

        Raises:
            GenfedError: a class has too few examples.
        """
        missing = [part for part in PARTS if part not in y]
        fractions = [self.validation if part == "validation" else self.test for part in missing]
        train, *cuts = split_stratified(y["train"], fractions, self.split_seed, classes)
        given = {part: (part, torch.arange(len(labels))) for part, labels in y.items()}
        return given | {"train": ("train", train)} | {p: ("train", rows) for p, rows in zip(missing, cuts, strict=True)}

    def dataset(
        self,
        kind: Literal["image", "table"],
        given: Mapping[str, Data],
        classes: tuple[str, ...],
        columns: Mapping[str, Sequence[str]],
        encoder: Encoder | None = None,
        other_columns: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> Dataset:
        """The whole data set from the parts that the data brings; `columns` go with the given "train", `other_columns`
        with the other given parts, by part (None: not known), and `encoder` made a table's features.

        Raises:
            GenfedError: the parts have examples of different shapes, or a class has too few.
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
            **parts,
            columns=natural["train"],
            validation_columns=natural["validation"],
            test_columns=natural["test"],
            encoder=encoder,
        )


def split_stratified(y: Tensor, fractions: Sequence[float], seed: int, classes: Sequence[str]) -> list[Tensor]:
    """Sorted rows of the rest and then of each fraction: disjoint, together everything, each with the same shares of
    the classes (rounded, at least one example; none where the fraction is 0).

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
        # a stream per class: more examples of one leave the cut of the others as it was
        rows = rows[torch.randperm(len(rows), generator=stream(seed, "split", label))]
        for part, taken in zip(parts, torch.split(rows, [rest, *sizes]), strict=True):
            part.append(taken)
    return [torch.cat(part).sort().values for part in parts]
