"""Columns of real and synthetic tables, read in one way so that they can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.core.text import one_line
from genfed.data.cells import spell_number

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
_TIMES = ("datetime", "datetime64", "date")
_SHOWN = 8  # names of columns in a message


@dataclass(frozen=True)
class AlignedColumn:
    """One column of several tables. Numbers, days, times and durations are numbers (the last three in seconds). All
    else, truth values too, are categories, which are compared by their texts.
    """

    name: str
    categories: tuple[str, ...] | None
    """The categories of all tables in sorted order; None: the column is of numbers."""
    tables: tuple[NDArray[Any], ...]
    """The rows of each table [n]: numbers, NaN where one is missing or infinite; or places among the categories, −1
    where one is missing."""
    times: bool = False
    """Whether its numbers are days or times, in seconds since 1970."""

    def show(self, number: float) -> str:
        """Returns one of its numbers as a text: 12.5, or 2024-01-31 and 2024-01-31 08:00:00."""
        if not self.times:
            return f"{number:.6g}"
        return str(np.datetime64(round(number), "s")).replace("T", " ").removesuffix(" 00:00:00")

    def missing(self, table: int) -> NDArray[np.bool_]:
        """Returns where the column has no value in the table at this place, [n]."""
        rows = self.tables[table]
        return np.isnan(rows) if self.categories is None else rows < 0


@dataclass(frozen=True)
class _Texts:
    """Categories as they were read from one table."""

    values: tuple[str, ...]
    places: NDArray[np.int64]

    @property
    def empty(self) -> bool:
        return not self.values

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class _Numbers:
    """Numbers as they were read from one table."""

    values: NDArray[np.float64]
    kind: str
    """numbers, times or durations"""

    @property
    def empty(self) -> bool:
        return bool(np.isnan(self.values).all())

    def __len__(self) -> int:
        return len(self.values)


def align_tables(**frames: DataFrame) -> tuple[AlignedColumn, ...]:
    """Returns the columns of the first table, aligned with the same columns of the others. Further columns of the
    others are ignored. A column without any value is of the type that it has in the other tables.

    Args:
        frames: The tables, by the words for them in messages.

    Raises:
        GenfedError: a table is empty, repeats the name of a column or lacks a column; or a column is of numbers in one
            table and of categories in another.
    """
    first = next(iter(frames))
    for where, frame in frames.items():
        _check_table(where, frame)
        if lost := [str(name) for name in frames[first].columns if name not in set(frame.columns)]:
            raise GenfedError(f"{where} lacks columns of {first}: {_list_names(lost)}")
    return tuple(
        _align(str(name), {where: _read(frame[name]) for where, frame in frames.items()})
        for name in frames[first].columns
    )


def align_categories(column: str, **frames: DataFrame) -> AlignedColumn:
    """Returns a column of several tables as categories, of whichever type it is; 1.0 is the category "1". Categories
    that are numbers in every table are sorted as numbers.

    Args:
        column: The name of the column.
        frames: The tables, by the words for them in messages.

    Raises:
        GenfedError: a table is empty or lacks the column.
    """
    found = {}
    for where, frame in frames.items():
        _check_table(where, frame)
        if column not in {str(name) for name in frame.columns}:
            known = _list_names([str(name) for name in frame.columns])
            raise GenfedError(f"{where}: there is no column {one_line(column)!r}; it has {known}")
        found[where] = _read(frame.iloc[:, [str(name) for name in frame.columns].index(column)])
    as_numbers = not any(isinstance(read, _Texts) for read in found.values())
    texts = {where: read if isinstance(read, _Texts) else _spell(read.values) for where, read in found.items()}
    aligned = _align_texts(column, texts)
    if not as_numbers or aligned.categories is None:
        return aligned
    order = np.argsort([float(text) for text in aligned.categories], kind="stable")
    place = np.append(np.argsort(order), -1)
    return AlignedColumn(
        column, tuple(aligned.categories[i] for i in order), tuple(place[rows] for rows in aligned.tables)
    )


def joined_cells(columns: tuple[AlignedColumn, AlignedColumn], table: int) -> NDArray[np.int64]:
    """Returns for each row [n] of a table the place of its pair of categories; missing is a category of its own."""
    one, other = (column.tables[table] + 1 for column in columns)
    return one * (len(columns[1].categories or ()) + 1) + other  # type: ignore[no-any-return]


def _check_table(where: str, frame: DataFrame) -> None:
    names = [str(name) for name in frame.columns]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise GenfedError(f"{where}: several columns are named {_list_names(repeated)}; each name must stand once")
    if not len(frame):
        raise GenfedError(f"{where}: there are no rows")


def _list_names(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(repr(one_line(name, 80)) for name in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _align(name: str, found: Mapping[str, _Numbers | _Texts]) -> AlignedColumn:
    """Returns a column from what was read in each table."""
    full = {where: read for where, read in found.items() if not read.empty}
    kinds = {where: read.kind if isinstance(read, _Numbers) else "categories" for where, read in full.items()}
    if len(set(kinds.values())) > 1:
        (one, first), *others = kinds.items()
        other, second = next((where, kind) for where, kind in others if kind != first)
        raise GenfedError(
            f"column {one_line(name, 80)!r} holds {first} in {one} and {second} in {other}; "
            "it must be of one type in both"
        )
    if "categories" in kinds.values():
        texts = {w: r if isinstance(r, _Texts) else _Texts((), np.full(len(r), -1)) for w, r in found.items()}
        return _align_texts(name, texts)
    numbers = tuple(r.values if isinstance(r, _Numbers) else np.full(len(r), np.nan) for r in found.values())
    return AlignedColumn(name, None, numbers, "times" in kinds.values())


def _align_texts(name: str, found: Mapping[str, _Texts]) -> AlignedColumn:
    categories = sorted({value for read in found.values() for value in read.values})
    places = {value: place for place, value in enumerate(categories)}
    tables = [np.array([*(places[v] for v in read.values), -1])[read.places] for read in found.values()]
    return AlignedColumn(name, tuple(categories), tuple(tables))


def _read(series: Series) -> _Numbers | _Texts:
    """Returns a column as numbers or as texts."""
    import pandas
    from pandas.api import types

    kind = types.infer_dtype(series, skipna=True) if series.dtype == object else ""
    if kind in _TIMES:
        series = pandas.to_datetime(series, utc=True, errors="coerce")
    if types.is_datetime64_any_dtype(series.dtype):
        series = series.dt.tz_convert(None) if getattr(series.dt, "tz", None) else series
        return _Numbers(_seconds(series.to_numpy("datetime64[us]")), "times")
    if types.is_timedelta64_dtype(series.dtype) or kind == "timedelta":
        return _Numbers(_seconds(pandas.to_timedelta(series).to_numpy("timedelta64[us]")), "durations")
    numeric = types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype)
    if kind in _NUMBERS or (numeric and not types.is_bool_dtype(series.dtype)):
        numbers = np.array(pandas.to_numeric(series, errors="coerce").astype("float64").to_numpy(na_value=np.nan))
        numbers[np.isinf(numbers)] = np.nan
        return _Numbers(numbers, "numbers")
    return _read_texts(series)


def _seconds(microseconds: NDArray[Any]) -> NDArray[np.float64]:
    return np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 1e6)


def _read_texts(series: Series) -> _Texts:
    import pandas

    try:
        codes, distinct = pandas.factorize(series)
    except TypeError:  # lists and other values that Python does not hash
        codes, distinct = pandas.factorize(series.map(str, na_action="ignore"))
    places = dict[str, int]()
    merged = [places.setdefault(str(value), len(places)) for value in distinct]
    return _Texts(tuple(places), np.array([*merged, -1], np.int64)[codes])


def _spell(numbers: NDArray[np.float64]) -> _Texts:
    """Returns numbers as texts."""
    values, places = np.unique(numbers, return_inverse=True)
    there = values[~np.isnan(values)]
    return _Texts(tuple(spell_number(float(v)) for v in there), np.where(np.isnan(numbers), -1, places))
