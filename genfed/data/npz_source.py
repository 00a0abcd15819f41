"""Labelled arrays of one NumPy .npz file: what sources of images, tables and series in such files have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.cells import MISSING_WORDS, Cells, spell_names, text_cells
from genfed.data.dataset import Dataset
from genfed.data.labels import describe_names, doubt_classes, encode_labels
from genfed.data.split import SplitSource
from genfed.preprocessing.array_names import ExampleArrays, find_arrays, is_like_examples
from genfed.preprocessing.arrays import Array, read_arrays, read_texts
from genfed.preprocessing.checks import require_known
from genfed.preprocessing.part_names import PARTS, UNCLEAR, read_part_name
from genfed.preprocessing.source_summary import SourceSummary, list_some, show


@dataclass(frozen=True)
class LabelledArrays:
    """What an .npz file holds, by given part: "train" and optionally others."""

    x: dict[str, Array]
    """Examples as they are stored."""
    y: dict[str, Tensor]
    """Labels [n]."""
    classes: tuple[str, ...]
    natural: dict[str, dict[str, list[str]]]
    """Natural columns, n texts each; only "train" has all of them."""
    summary: SourceSummary
    """What was read, and what looks wrong in it."""


@settings
class NpzSource(SplitSource):
    """A source of labelled arrays in an .npz file."""

    path: str = Field(description="The .npz file.")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="Names of the classes, in the order of their sorted labels; None: those of an array `classes` that "
        "has one for each label, from 0 or from 1, else the labels themselves.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None,
        description='Arrays of natural columns to partition by, such as ["subject"]: NAME_train or NAME, and '
        "NAME_validation and NAME_test if they exist. None: none.",
    )
    split: str | None = Field(
        default=None,
        description='Array that gives the part of each row of x: "train", "validation" or "test"; or 0 (false) and 1 '
        "(true), where 1 is test, or the part that the array's name speaks of, as in is_train. None: there is none.",
    )
    encoding: str = Field(
        default="utf-8", description="Encoding of labels and natural columns that are stored as bytes."
    )

    @abstractmethod
    def load(self) -> Dataset: ...

    def read_file(self) -> LabelledArrays:
        """Reads the file.

        Raises:
            GenfedError: it is missing or unreadable, or lacks an array, or arrays do not go together.
        """
        arrays = read_arrays(self.path, self._choose_arrays)
        found = find_arrays(list(arrays), self.path)
        given = self._read_parts(arrays, found)
        raw_labels = {part: self._read_labels(labels, part) for part, (_, labels) in given.items()}
        y, classes = encode_labels(raw_labels, self.classes, self.path)
        classes = self._name_classes(arrays, classes)
        natural = self._read_natural(arrays, {part: len(labels) for part, labels in y.items()})
        summary = self._describe_arrays(arrays, found) + describe_names(raw_labels, y, classes)
        summary += doubt_classes(classes, self.classes or (), "data.classes")
        return LabelledArrays({part: x for part, (x, _) in given.items()}, y, classes, natural, summary)

    @property
    def natural_names(self) -> tuple[str, ...]:
        """The natural columns, the group among them."""
        return tuple(dict.fromkeys((*(self.columns or ()), *(() if self.group is None else (self.group,)))))

    def _choose_arrays(self, names: Sequence[str]) -> set[str]:
        found = find_arrays(names, self.path)
        wanted = {name for pair in found.parts.values() for name in pair}
        natural = {name for name in names if self._is_natural(name)}
        return wanted | natural | ({self.split or "", "classes"} & set(names))

    def _is_natural(self, name: str) -> bool:
        return any(name in [column, *(f"{column}_{part}" for part in PARTS)] for column in self.natural_names)

    def _read_parts(self, arrays: Mapping[str, Array], found: ExampleArrays) -> dict[str, tuple[Array, Array]]:
        """Returns (x, y) of each part in the file."""
        given = {part: (arrays[x], arrays[y]) for part, (x, y) in found.parts.items()}
        for part, (x, y) in given.items():
            if x.shape[:1] != y.shape[:1] or not x.ndim:
                names = found.parts[part]
                raise GenfedError(f"{self.path}: {names[0]} has shape {x.shape}, {names[1]} {y.shape}")
        return given if self.split is None else self._divide(*given["train"], arrays, found.divided)

    def _divide(self, x: Array, y: Array, arrays: Mapping[str, Array], divided: bool) -> dict[str, tuple[Array, Array]]:
        assert self.split is not None
        marks = arrays[require_known(self.split, arrays, f"{self.path}: array")]
        if marks.shape != (len(x),) or divided:
            raise GenfedError(f"{self.path}: {self.split} has shape {marks.shape}; one mark per row of x is allowed")
        parts = self._name_parts(marks)
        if len(other := np.setdiff1d(parts, PARTS)):
            raise GenfedError(
                f"{self.path}: {self.split} holds {str(other[0])!r}; {', '.join(PARTS)}, 0, 1 are allowed"
            )
        if "train" not in parts:
            raise GenfedError(f"{self.path}: {self.split} has no row of train")
        return {part: (x[parts == part], y[parts == part]) for part in PARTS if part in parts}

    def _name_parts(self, marks: Array) -> Array:
        """Returns the name of each row's part."""
        about = read_part_name(self.split or "")
        one = "test" if about is None or about.part == UNCLEAR else about.part
        numbers = {"1": one, "0": "test" if one == "train" else "train"}
        numbers |= {"True": numbers["1"], "False": numbers["0"], "1.0": numbers["1"], "0.0": numbers["0"]}
        texts = read_texts(marks, self.encoding, f"{self.path}: {self.split}")
        known = {}
        for text in np.unique(texts):
            word = read_part_name(str(text))
            spelled = word is not None and not word.own and word.part != UNCLEAR
            known[str(text)] = word.part if word is not None and spelled else numbers.get(str(text), str(text))
        return np.array([known[str(text)] for text in texts])

    def _read_labels(self, labels: Array, part: str) -> Array:
        if labels.dtype.kind != "S":
            return labels
        return read_texts(labels, self.encoding, f"{self.path}: labels of {part}")

    def _name_classes(self, arrays: Mapping[str, Array], classes: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of an array `classes`, if it has one for each label, from 0 or from 1; else `classes`.

        Raises:
            GenfedError: the names can be counted from 0 and from 1.
        """
        names = arrays.get("classes", np.empty(0))
        if self.classes is not None or names.ndim != 1 or names.dtype.kind not in "US":
            return classes
        places = [int(name) if name.isdecimal() else -1 for name in classes]
        texts = read_texts(names, self.encoding, f"{self.path}: classes")
        if min(places) < 0 or max(places) > len(texts) or len(set(texts.tolist())) < len(texts):
            return classes
        if max(places) == len(texts):
            return tuple(str(texts[place - 1]) for place in places) if 0 not in places else classes
        if 0 not in places:
            first, second = (show(str(texts[places[0] - start])) for start in (0, 1))
            raise GenfedError(
                f"{self.path}: no label is 0, so label {places[0]} may be {first!r} or {second!r} of the array "
                f"classes; name the {len(places)} classes in data.classes"
            )
        return tuple(str(texts[place]) for place in places)

    def _read_natural(self, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, dict[str, list[str]]]:
        """Returns the natural columns of each part as texts. `sizes`: the number of examples of each part.

        Raises:
            GenfedError: "train" lacks a column, or a column has another length or a missing value.
        """
        cells = {part: self._read_columns(arrays, part, n) for part, n in sizes.items()}
        natural: dict[str, dict[str, list[str]]] = {part: {} for part in sizes}
        for name in self.natural_names:
            for part, texts in spell_names({part: c[name] for part, c in cells.items() if name in c}).items():
                natural[part][name] = texts
        return natural

    def _read_columns(self, arrays: Mapping[str, Array], part: str, n: int) -> dict[str, Cells]:
        """Returns the natural columns of a part's n examples; only "train" must have all of them."""
        found = {}
        for name in self.natural_names:
            stored = f"{name}_{part}" if f"{name}_{part}" in arrays else name
            marks = None if self.split is None else arrays[self.split]
            divided = marks is not None and stored in arrays and len(arrays[stored]) == len(marks)
            if part != "train" and stored == name and not divided:
                continue
            values = arrays[require_known(stored, arrays, f"{self.path}: array")]
            if marks is not None and divided:
                values = values[self._name_parts(marks) == part]
            if values.shape != (n,):
                raise GenfedError(f"{self.path}: {stored} has shape {values.shape}; the examples have ({n},)")
            where = f"{self.path}: {stored}"
            cells = text_cells(read_texts(values, self.encoding, where).tolist(), (*MISSING_WORDS, "NaT"))
            if gaps := n - cells.present:
                raise GenfedError(f"{where} lacks {gaps} values (NaN, None, NA and the like); each example needs one")
            found[name] = cells
        return found

    def _describe_arrays(self, arrays: Mapping[str, Array], found: ExampleArrays) -> SourceSummary:
        read = {name for pair in found.parts.values() for name in pair} | {self.split, "classes", *found.unlabelled}
        unread = [name for name in arrays if name not in read and not self._is_natural(name)]
        pairs = [f"{part} {show(x)} and {show(y)}" for part, (x, y) in found.parts.items()]
        facts = [f"{self.path}: {', '.join(pairs) if found.divided else ' and '.join(map(show, found.parts['train']))}"]
        warnings = [
            f"{show(name)} has no labels: not used; `genfed predict` classifies such examples"
            for name in found.unlabelled
        ]
        if strange := [show(name) for name in unread if is_like_examples(name)]:
            warnings.append(
                f"arrays that are not read: {list_some(strange)}; x_train, x_validation, x_test with y_train, "
                "y_validation, y_test, or x with y are read"
            )
        if other := [show(name) for name in unread if not is_like_examples(name)]:
            facts.append(f"arrays that are not read: {list_some(other)}; name natural columns in columns")
        return SourceSummary(tuple(facts), tuple(warnings))
