"""Rules that all real rows of a table obey, and the synthetic rows that break them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genfed.metrics.table_columns import AlignedColumn, align_tables, joined_cells

if TYPE_CHECKING:
    from pandas import DataFrame

_ENOUGH = 100  # real rows from which a relation of two columns is taken for a rule
_DISTINCT = 50  # distinct numbers up to which a column is also tried as categories


@dataclass(frozen=True)
class Rule:
    """A rule that every real row obeys."""

    text: str
    """The rule in words, such as "start ≤ end"."""
    broken: float
    """Share of the synthetic rows that break it."""


def find_broken_rules(real: DataFrame, synthetic: DataFrame) -> tuple[Rule, ...]:
    """Returns the rules that all real rows obey and some synthetic rows break, the most often broken first.

    Of one column: numbers lie within the real range; they are whole where all real ones are; categories are known;
    nothing is missing where nothing is. Of two columns, from 100 real rows on: one number is never above another
    (their ranges overlap); a category, or one of few numbers, decides the value of another. Some may hold for the real
    rows by chance only: each is to be judged by someone who knows the data.

    Raises:
        GenfedError: see `align_tables`.
    """
    columns = align_tables(real=real, synthetic=synthetic)
    found = [rule for column in columns for rule in _rules_of_one(column)]
    if len(real) >= _ENOUGH:
        numbers = [column for column in columns if column.categories is None]
        found += [
            rule for one, other in combinations(numbers, 2) if one.times == other.times for rule in _orders(one, other)
        ]
        few = [coded for column in columns if (coded := _as_categories(column)) is not None]
        found += [rule for one, other in permutations(few, 2) for rule in _decides(one, other)]
    return tuple(sorted((rule for rule in found if rule.broken), key=lambda rule: -rule.broken))


def _rules_of_one(column: AlignedColumn) -> Iterator[Rule]:
    name, (real, synthetic) = column.name, column.tables
    if not column.missing(0).any():
        yield Rule(f"{name} is not missing", float(column.missing(1).mean()))
    if column.categories is not None:
        known = np.isin(synthetic, real) | (synthetic < 0)
        yield Rule(f"{name} is a category that real rows have", float((~known).mean()))
        return
    there = real[~np.isnan(real)]
    if not len(there):
        return
    low, high = float(there.min()), float(there.max())
    outside = (synthetic < low) | (synthetic > high)
    yield Rule(
        f"{name} lies in the range of the real rows, {column.show(low)} to {column.show(high)}", float(outside.mean())
    )
    if not column.times and (there == np.round(there)).all():
        yield Rule(f"{name} is a whole number", float((np.nan_to_num(synthetic) % 1 != 0).mean()))


def _orders(one: AlignedColumn, other: AlignedColumn) -> Iterator[Rule]:
    """Yields that one number is never above the other, in either order."""
    for low, high in ((one, other), (other, one)):
        x, y = low.tables[0], high.tables[0]
        both = ~(np.isnan(x) | np.isnan(y))
        if both.sum() < _ENOUGH or (x[both] > y[both]).any() or x[both].max() <= y[both].min():
            continue
        yield Rule(f"{low.name} ≤ {high.name}", float((low.tables[1] > high.tables[1]).mean()))


def _as_categories(column: AlignedColumn) -> AlignedColumn | None:
    """Returns a column of categories, or of few distinct numbers as such; None where it has many, or only one."""
    if column.categories is not None:
        return column if len(np.unique(column.tables[0])) > 1 else None
    distinct = np.unique(np.concatenate(column.tables))
    distinct = distinct[~np.isnan(distinct)]
    if not 1 < len(distinct) <= _DISTINCT:
        return None
    places = [np.where(np.isnan(rows), -1, np.searchsorted(distinct, rows)) for rows in column.tables]
    return AlignedColumn(column.name, tuple(map(str, distinct)), tuple(places))


def _decides(one: AlignedColumn, other: AlignedColumn) -> Iterator[Rule]:
    """Yields that the value of the first column decides that of the second one. Each value stands in 5 rows on average,
    so that a column of names or numbers of rows decides nothing.
    """
    values, pairs = np.unique(one.tables[0]), np.unique(joined_cells((one, other), 0))
    if len(pairs) > len(values) or 5 * len(values) > len(one.tables[0]) or len(np.unique(other.tables[0])) < 2:
        return
    known = np.isin(one.tables[1], values)
    broken: NDArray[np.bool_] = known & ~np.isin(joined_cells((one, other), 1), pairs)
    yield Rule(f"{one.name} decides {other.name}", float(broken.mean()))
