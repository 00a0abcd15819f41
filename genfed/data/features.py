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
from genfed.core.task import Column
from genfed.data.cells import Cells, plain_number
from genfed.data.column_summary import (
    CategorySummary,
    Cell,
    NumberSummary,
    divide_into_cells,
    find_median,
    summarize_categories,
    summarize_numbers,
)
from genfed.data.decimal_style import describe_marks
from genfed.data.numerals import PLAIN, Notation, describe_units, read_numbers, spell_value
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show

MISSING = "(missing)"
"""The category of a missing value."""
RARE = "(rare)"
"""The category of the values of which sites had too few rows to name them."""
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
    cells: tuple[Cell, ...] = ()
    """The cells into which the numbers are divided, from which rows are generated."""
    decimals: int | None = None
    """Decimals of generated numbers. None: as many as a float holds."""
    gaps: bool = False
    """Whether a number was missing in the training rows: then one more feature is 1 where it is."""


@dataclass(frozen=True)
class TableSchema:
    """How the columns of a table become features, fitted to the training rows. Numbers are scaled; a missing one
    becomes the median, and where training rows lacked one, a further feature says so. A category becomes a one-hot
    code; a missing value is a category of its own, and a category unseen in training is "(rare)", where there is such a
    category, or all zeros.
    """

    numbers: dict[str, NumberScaling]
    """Scaling by column, in the order of the features."""
    categories: dict[str, tuple[str, ...]]
    """Categories by column, one feature for each, after the numbers and what says that one is missing; "(missing)" is a
    missing value, "(rare)" any that too few rows have."""
    as_numbers: tuple[str, ...] = ()
    """Columns of categories that are numbers: 1.0 is the category 1."""
    missing: tuple[str, ...] | None = None
    """Texts that mean that there is no value, in every file. None: the usual ones."""
    kind: Literal["table"] = "table"

    @property
    def gaps(self) -> dict[str, int]:
        """Indices of the features that say that a number is missing, by column of numbers that have one."""
        return {name: len(self.numbers) + i for i, name in enumerate(n for n in self.numbers if self.numbers[n].gaps)}

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Indices of the features that are a column's one-hot code, by column of categories."""
        start, found = len(self.numbers) + len(self.gaps), {}
        for name, texts in self.categories.items():
            found[name] = tuple(range(start, start + len(texts)))
            start += len(texts)
        return found

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.numbers) + len(self.gaps) + sum(map(len, self.categories.values()))

    def columns(self) -> tuple[Column, ...]:
        """Returns the columns as generators of rows know them."""
        gaps, found = self.gaps, []
        for i, (name, about) in enumerate(self.numbers.items()):
            ends = np.array([(cell.low, cell.high) for cell in about.cells] or [(about.shift, about.shift)])
            scaled = ((ends - about.shift) / about.scale).astype(np.float32).astype(float)
            rows = sum(cell.rows for cell in about.cells)
            shares = tuple(cell.rows / rows for cell in about.cells) or (1.0,)
            fill = float(np.float32((about.missing - about.shift) / about.scale))
            cells = tuple((low, high) for low, high in scaled.tolist())
            found.append(Column(name, i, 1, cells, shares, gaps.get(name), fill))
        for name, places in self.places.items():
            found.append(Column(name, places[0], len(places)))
        return tuple(found)

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
            if about.gaps:
                x[:, self.gaps[name]] = torch.from_numpy(np.isnan(values)).float()
            misfits += self._compare(name, values, scaled, where)
        places = self.places
        for name, known in self.categories.items():
            codes, unseen = self._find_codes(name, columns[name], known)
            if unseen:
                count = count_of(sum(unseen.values()), "value was", "values were")
                misfits.append(
                    f"{where}: column {show(name)!r}: of {n:,}, {count} not in the training rows; the code is "
                    + ("that of rare ones" if RARE in known else "all zeros")
                )
            if n >= _ENOUGH and not columns[name].present and MISSING not in known:
                misfits.append(f"{where}: column {show(name)!r}: every value is missing; in training none was")
            rows = np.flatnonzero(codes >= 0)
            x[torch.from_numpy(rows), torch.from_numpy(codes[rows]) + places[name][0]] = 1
        if len(misfits) > _LINES + 1:
            misfits[_LINES:] = [f"{where}: … and {len(misfits) - _LINES:,} more values or columns that do not fit"]
        return EncodedRows(x, tuple(misfits))

    def decode(self, x: Tensor) -> dict[str, list[float | str | None]]:
        """Returns the columns that rows x [n, features] stand for; None: missing. Numbers have the decimals of the
        training rows, and are int where they have none; days are texts such as 2020-01-31.
        """
        found: dict[str, list[float | str | None]] = {}
        for place, (name, about) in enumerate(self.numbers.items()):
            numbers = x[:, place].double().numpy() * about.scale + about.shift
            if about.decimals is not None:
                numbers = np.round(numbers, about.decimals) + 0.0
            gone = np.zeros(len(x), bool) if not about.gaps else (x[:, self.gaps[name]] > 0.5).numpy()
            values: list[float | str] = numbers.tolist()
            if about.notation.kind == "day":
                values = [spell_value(value, "day") for value in numbers.tolist()]
            elif about.decimals == 0 and bool((np.abs(numbers) < 2**63).all()):
                values = [int(value) for value in numbers.tolist()]
            found[name] = [None if gap else value for value, gap in zip(values, gone.tolist(), strict=True)]
        for name, places in self.places.items():
            texts = [None if text == MISSING else text for text in self.categories[name]]
            found[name] = [texts[i] for i in x[:, places[0] : places[-1] + 1].argmax(1).tolist()]
        return found

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
        rare = place.get(RARE, -1)
        codes = np.array([place.get(text, rare) for text in texts.values] + [place.get(MISSING, -1)], np.int64)
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
    return build_schema(summarize_table(numbers, categories, where), scale, where)


@dataclass(frozen=True)
class TableSummary:
    """What a site says of the columns of its rows."""

    numbers: dict[str, NumberSummary]
    notations: dict[str, Notation]
    """How the numbers of each column are written."""
    categories: dict[str, CategorySummary]
    rows: int
    """Number of rows."""
    missing: tuple[str, ...] = ()
    """Texts that mean that there is no value; empty: the usual ones."""

    def has(self, name: str) -> bool:
        """Returns whether the site uses a column."""
        return name in self.numbers or name in self.categories


def summarize_table(
    numbers: Mapping[str, tuple[Cells, Notation]], categories: Mapping[str, Cells], where: str, least: int = 1
) -> TableSummary:
    """Returns the summary of a site's rows.

    Args:
        numbers: The columns used as numbers, and how each is written.
        categories: The columns used as categories.
        where: Text that begins an error message.
        least: Least number of rows of what is said: of a group of numbers, and of a category that is named.

    Raises:
        GenfedError: a number is infinite, or too large for its square to be computed.
    """
    found = {}
    for name, (cells, notation) in numbers.items():
        values = read_numbers(cells, notation)[0]
        _refuse_infinite(name, values, where)
        with np.errstate(over="ignore", invalid="ignore"):
            found[name] = summarize_numbers(values, least)
        if not np.isfinite((found[name].mean, found[name].spread)).all():
            raise GenfedError(f"{where}: column {name!r} holds numbers that are too large to be scaled")
    notations = {name: notation for name, (_, notation) in numbers.items()}
    codes = {name: summarize_categories(cells, least) for name, cells in categories.items()}
    rows = next((len(cells) for cells in (*(c for c, _ in numbers.values()), *categories.values())), 0)
    return TableSummary(found, notations, codes, rows)


def build_schema(summary: TableSummary, scale: Scale, where: str) -> TableSchema:
    """Returns the schema of the rows that a summary is of.

    Args:
        summary: The summary of the rows of all sites.
        scale: See `fit_schema`.
        where: Text that begins an error message.

    Raises:
        GenfedError: there are no features, or a column has more than 1,000 categories.
    """
    if not summary.numbers and not summary.categories:
        raise GenfedError(f"{where}: there are no feature columns")
    categories = {}
    for name, about in summary.categories.items():
        if len(about.counts) > _CATEGORIES:
            raise GenfedError(
                f"{where}: column {name!r} has {len(about.counts)} categories; {_CATEGORIES} are allowed; name it in "
                "drop, or in numeric if it is of numbers"
            )
        marks = {MISSING: about.gaps, RARE: about.rare}
        categories[name] = tuple(sorted({*about.counts, *(mark for mark, rows in marks.items() if rows)}))
    scaled = {name: _scale_numbers(each, summary.notations[name], scale) for name, each in summary.numbers.items()}
    as_numbers = tuple(name for name, about in summary.categories.items() if about.as_numbers)
    return TableSchema(scaled, categories, as_numbers)


def _scale_numbers(about: NumberSummary, notation: Notation, scale: Scale) -> NumberScaling:
    """Returns the scaling of a column of numbers. A column without any number becomes zeros, so that no feature is
    dropped.
    """
    median, rows = find_median(about), about.present + about.gaps
    shift, size = 0.0, 1.0
    if scale == "standard" and about.present:
        away = median - about.mean  # missing numbers become the median
        shift = about.mean + away * about.gaps / rows
        variance = (about.spread + away**2 * about.gaps * about.present / rows) / rows
        size = float(np.sqrt(variance))
        if size <= 10 * np.finfo(np.float64).eps * max(1.0, abs(shift)):  # a constant column
            size = 1.0
    elif scale == "range":
        size = (about.high - about.low) / 2 or 0.5  # a constant column becomes −1
        shift = about.low + size
    cells = divide_into_cells(about)
    return NumberScaling(median, shift, size, notation, cells, about.decimals, bool(about.gaps and about.present))


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
