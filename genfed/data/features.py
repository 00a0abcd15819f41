"""The schema of a table: how its columns become float32 features, with statistics of the training rows only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.data.cells import Cells, plain_number, same_numbers
from genfed.data.decimal_style import describe_marks
from genfed.data.numerals import PLAIN, Notation, describe_units, read_numbers
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show

MISSING = "(missing)"
"""The category of a missing value."""
_CATEGORIES = 1000
_ENOUGH = 10
"""Rows from which a column of a file is compared with that of training."""
_FAR = 8
"""Scaled values above which most of a column are far from those of training."""
_LINES = 20
"""Lines about the misfits of one file; of more, the rest is counted."""
Scale = Literal["standard", "range", "none"]


@dataclass(frozen=True)
class NumberScaling:
    """Encoding of a number: (value − shift) / scale."""

    missing: float
    """Value that replaces a missing one: the median."""
    shift: float
    scale: Annotated[float, Field(gt=0)]
    notation: Notation = PLAIN
    """How the numbers are written in text files."""


@dataclass(frozen=True)
class TableSchema:
    """How the columns of a table become features, fitted to the training rows. A missing number becomes the median,
    then numbers are scaled. A category becomes a one-hot code; a missing value is a category of its own, and a category
    unseen in training is all zeros.
    """

    numbers: dict[str, NumberScaling]
    """Scaling by column, in the order of the features."""
    categories: dict[str, tuple[str, ...]]
    """Categories by column, one feature for each, after the numbers; "(missing)" is a missing value."""
    as_numbers: tuple[str, ...] = ()
    """Columns of categories that are numbers: 1.0 is the category 1."""
    missing: tuple[str, ...] | None = None
    """Texts that mean that there is no value, in every file. None: the usual ones."""
    kind: Literal["table"] = "table"

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Indices of the features that are a column's one-hot code, by column of categories."""
        start, found = len(self.numbers), {}
        for name, texts in self.categories.items():
            found[name] = tuple(range(start, start + len(texts)))
            start += len(texts)
        return found

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.numbers) + sum(map(len, self.categories.values()))

    def encode(self, columns: Mapping[str, Cells], where: str) -> "EncodedRows":
        """Encodes the columns of a file; `where` names it in messages.

        Raises:
            GenfedError: a number is infinite or far too large, or a column of numbers holds none.
        """
        n = len(columns[next(iter((*self.numbers, *self.categories)))])
        x, misfits = torch.zeros(n, self.width), []
        for place, (name, about) in enumerate(self.numbers.items()):
            values, doubts = _read_column(name, columns[name], about, where)
            misfits += doubts
            x[:, place] = torch.from_numpy(scaled := _scale(name, values, about, where))
            misfits += self._compare(name, values, scaled, where)
        places = self.places
        for name, known in self.categories.items():
            codes, unseen = self._find_codes(name, columns[name], known)
            if unseen:
                count = count_of(sum(unseen.values()), "value was", "values were")
                misfits.append(
                    f"{where}: column {show(name)!r}: of {n:,}, {count} not in the training rows; the code is all zeros"
                )
            if n >= _ENOUGH and not columns[name].present and MISSING not in known:
                misfits.append(f"{where}: column {show(name)!r}: every value is missing; in training none was")
            rows = np.flatnonzero(codes >= 0)
            x[torch.from_numpy(rows), torch.from_numpy(codes[rows]) + places[name][0]] = 1
        if len(misfits) > _LINES + 1:
            misfits[_LINES:] = [f"{where}: … and {len(misfits) - _LINES:,} more values or columns that do not fit"]
        return EncodedRows(x, tuple(misfits))

    def _compare(self, name: str, values: NDArray[np.float64], scaled: NDArray[np.float32], where: str) -> list[str]:
        """Returns a line if a column of a file is empty, or unlike that of training."""
        there, about = values[~np.isnan(values)], self.numbers[name]
        if len(values) < _ENOUGH:
            return []
        if not len(there) and (about.shift, about.missing) != (0, 0):
            return [f"{where}: column {show(name)!r}: every value is missing; in training none or few were"]
        if len(there) and (about.shift, about.scale) != (0, 1) and np.median(np.abs(scaled)) > _FAR:
            return [
                f"{where}: column {show(name)!r}: most values are far from those of training (median "
                f"{np.median(there):.6g}, in training {about.missing:.6g}); is it in another unit?"
            ]
        return []

    def _find_codes(self, name: str, cells: Cells, known: Sequence[str]) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Returns the place of each row's category [n], −1 where it is unknown, and the unseen texts with counts."""
        place = {text: i for i, text in enumerate(known)}
        texts = self._spell(name, cells)
        codes = np.array([place.get(text, -1) for text in texts.values] + [place.get(MISSING, -1)], np.int64)
        counts = texts.counts().tolist()
        unseen = {text: n for text, n in zip(texts.values, counts, strict=True) if n and text not in place}
        return codes[texts.index], unseen

    def _spell(self, name: str, cells: Cells) -> Cells:
        """Returns a column of categories as texts that are compared; some of them may be equal."""
        texts = cells.as_texts()
        plain = map(plain_number, texts.values) if name in self.as_numbers else texts.values
        return replace(texts, values=tuple(plain))

    def read(self, columns: Mapping[str, Cells]) -> dict[str, Cells]:
        """Returns the columns of a file as they are read before they are encoded, so that rows of several files can be
        compared: numbers, NaN where one is missing, and the texts of categories.
        """
        found = {}
        for name, about in self.numbers.items():
            found[name] = replace(columns[name], numbers=read_numbers(columns[name], about.notation)[0])
        return found | {name: self._spell(name, columns[name]) for name in self.categories}


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a file, encoded."""

    x: Tensor
    """float32 [n, features]."""
    misfits: tuple[str, ...] = ()
    """A line for each column with values that do not fit the schema; of very many, the rest is counted."""


def gather_misfits(encoded: Iterable[EncodedRows]) -> SourceSummary:
    """Returns what is said of the rows of all files or parts."""
    return SourceSummary((), tuple(line for rows in encoded for line in rows.misfits))


def fit_schema(
    numbers: Mapping[str, tuple[Cells, Notation]], categories: Mapping[str, Cells], scale: Scale, where: str
) -> TableSchema:
    """Fits a schema to the training rows.

    Args:
        numbers: The columns used as numbers, and how each is written.
        categories: The columns used as categories.
        scale: "standard" (mean 0, variance 1), "range" (the training rows lie in [−1, 1]) or "none" (unchanged).
        where: Text that begins an error message.

    Raises:
        GenfedError: there are no features, a number is infinite, or a column has more than 1,000 categories.
    """
    if not numbers and not categories:
        raise GenfedError(f"{where}: there are no feature columns")
    found, as_numbers = {}, []
    for name, cells in categories.items():
        texts = cells.as_texts()
        if same_numbers(texts):
            as_numbers.append(name)
        plain = {plain_number(text) if name in as_numbers else text for text in texts.values}
        if len(plain) > _CATEGORIES:
            raise GenfedError(
                f"{where}: column {name!r} has {len(plain)} categories; {_CATEGORIES} are allowed; name it in drop, or "
                "in numeric if it is of numbers"
            )
        found[name] = tuple(sorted(plain | ({MISSING} if texts.present < len(texts) else set())))
    values = {name: read_numbers(cells, notation)[0] for name, (cells, notation) in numbers.items()}
    scalings = fit_scalings(values, scale, where)
    written = {name: NumberScaling(*scalings[name], notation) for name, (_, notation) in numbers.items()}
    return TableSchema(written, found, tuple(as_numbers))


def fit_scalings(
    numbers: Mapping[str, NDArray[np.float64]], scale: Scale, where: str
) -> dict[str, tuple[float, float, float]]:
    """Returns, for each column of numbers [n] (NaN: missing), its median, the shift and the scale.

    Raises:
        GenfedError: a number is infinite, or too large for its square to be computed.
    """
    # Takes seconds to import, and every worker that reads a config imports this file.
    from sklearn.preprocessing import StandardScaler

    filled, medians = [], []
    for name, values in numbers.items():
        _refuse_infinite(name, values, where)
        gaps = np.isnan(values)
        # a column without any number in training becomes zeros, so that no feature is dropped
        medians.append(0.0 if gaps.all() else float(np.median(values[~gaps])))
        filled.append(np.where(gaps, medians[-1], values))
    if not filled:
        return {}
    shifts: Sequence[float]
    scales: Sequence[float]
    if scale == "none":
        shifts, scales = [0.0] * len(filled), [1.0] * len(filled)
    elif scale == "standard":
        with np.errstate(over="ignore", invalid="ignore"):
            fit = StandardScaler().fit(np.stack(filled, axis=1))
        shifts, scales = fit.mean_, fit.scale_
    else:
        scales = [(values.max() - values.min()) / 2 or 0.5 for values in filled]  # a constant column becomes −1
        shifts = [values.min() + half for values, half in zip(filled, scales, strict=True)]
    fitted = {}
    for name, median, shift, size in zip(numbers, medians, shifts, scales, strict=True):
        if not (np.isfinite(shift) and np.isfinite(size)):
            raise GenfedError(f"{where}: column {name!r} holds numbers that are too large to be scaled")
        fitted[name] = (median, float(shift), float(size))
    return fitted


def _read_column(name: str, cells: Cells, about: NumberScaling, where: str) -> tuple[NDArray[np.float64], list[str]]:
    """Returns the numbers [n] of a file's column, and a line for each kind of value that does not fit the notation.

    Raises:
        GenfedError: there are values, and none fits.
    """
    values, strange = read_numbers(cells, about.notation)
    units = describe_units(cells, about.notation)
    if (strange or units) and np.isnan(values).all():
        words = f"is not of the training rows' numbers: {units}" if units else f"is not of numbers ({_quote(strange)})"
        raise GenfedError(f"{where}: column {name!r} {words}")
    marks = describe_marks(cells, values, about.notation, about.missing)
    lines = [f"{where}: column {show(name)!r}: {words}" for words in (units, marks) if words]
    if strange:
        count = count_of(sum(strange.values()), "value is no number", "values are no numbers")
        lines.append(
            f"{where}: column {show(name)!r}: of {len(cells):,}, {count} ({_quote(strange)}) and taken as missing"
        )
    return values, lines


def _scale(name: str, values: NDArray[np.float64], about: NumberScaling, where: str) -> NDArray[np.float32]:
    _refuse_infinite(name, values, where)
    scaled = (np.where(np.isnan(values), about.missing, values) - about.shift) / about.scale
    with np.errstate(over="ignore"):
        small: NDArray[np.float32] = scaled.astype(np.float32)
    if not np.isfinite(small).all():
        raise GenfedError(f"{where}: column {name!r} holds {values[~np.isfinite(small)][0]:g}: too large")
    return small


def _refuse_infinite(name: str, values: NDArray[np.float64], where: str) -> None:
    if np.isinf(values).any():
        raise GenfedError(f"{where}: column {name!r} holds infinite values")


def _quote(texts: Mapping[str, int]) -> str:
    return list_some((repr(show(text)) for text in sorted(texts)), 3)
