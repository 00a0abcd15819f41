"""How like real rows synthetic rows are: columns, pairs of columns, a classifier that tells them apart, and what is
missing. The tables are DataFrames; see `table_columns` for how they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.metrics.table_columns import AlignedColumn, align_tables, joined_cells
from genfed.metrics.table_features import codes_with_gaps, fit_boosting, standardize

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 20_000
"""Largest number of rows of each table in distances and in `distinguish`; more are sampled."""
_BINS = 10
_RARE = 0.01
_TAILS = (0.01, 0.99)
_FOLDS = 3
_DENSE = 1_000_000  # cells of a joint table that are counted without sorting the rows


def compare_shapes(real: DataFrame, synthetic: DataFrame) -> dict[str, float]:
    """Returns how like each other each column is in both tables, in [0, 1]; 1: the same distribution.

    Numbers: 1 − the Kolmogorov–Smirnov distance, the largest difference of the two distribution functions. A missing
    number counts as larger than all others. Categories: 1 − the total variation distance, half the sum of the
    differences of all shares. Missing is a category of its own.

    >>> import pandas
    >>> real = pandas.DataFrame({"age": [1, 2, 3, 4], "sex": ["f", "f", "m", "m"]})
    >>> compare_shapes(real, pandas.DataFrame({"age": [1, 2, 3, 9], "sex": ["f", "m", "m", "m"]}))
    {'age': 0.75, 'sex': 0.75}

    Raises:
        GenfedError: see `align_tables`.
    """
    return {column.name: _compare_shape(column) for column in align_tables(real=real, synthetic=synthetic)}


def _compare_shape(column: AlignedColumn) -> float:
    real, synthetic = column.tables
    if column.categories is not None:
        return _overlap(real + 1, synthetic + 1, len(column.categories) + 1)
    one, other = (np.sort(np.nan_to_num(rows, nan=np.inf)) for rows in (real, synthetic))
    grid = np.concatenate([one, other])
    below = [np.searchsorted(rows, grid, side="right") / len(rows) for rows in (one, other)]
    return 1 - float(np.abs(below[0] - below[1]).max())


def _overlap(real: NDArray[np.int64], synthetic: NDArray[np.int64], size: int) -> float:
    """Returns 1 − the total variation distance of cells in [0, size)."""
    if size > _DENSE:
        distinct, places = np.unique(np.concatenate([real, synthetic]), return_inverse=True)
        real, synthetic, size = places[: len(real)], places[len(real) :], len(distinct)
    shares = [np.bincount(rows, minlength=size) / len(rows) for rows in (real, synthetic)]
    return 1 - float(np.abs(shares[0] - shares[1]).sum()) / 2


def compare_pairs(real: DataFrame, synthetic: DataFrame) -> NDArray[np.float64]:
    """Returns how alike the relation of each two columns is in both tables [columns, columns], in [0, 1], in the order
    of the real columns; 1: the same relation. The matrix is symmetric and has ones on its diagonal.

    Two numbers: 1 − |ρ − ρ'|/2 with Pearson's correlations of the rows that have both numbers; ρ is 0 where one of the
    two does not vary. Pairs with a category: 1 − the total variation distance of the joint shares, with numbers in 10
    bins of the real table's quantiles. Missing is a category and a bin of its own.

    Raises:
        GenfedError: see `align_tables`.
    """
    columns = align_tables(real=real, synthetic=synthetic)
    binned = [_bin_numbers(column) for column in columns]
    scores = np.eye(len(columns))
    for i, j in combinations(range(len(columns)), 2):
        if columns[i].categories is None and columns[j].categories is None:
            one, other = (correlate(columns[i].tables[t], columns[j].tables[t]) for t in range(2))
            score = 1 - abs(one - other) / 2
        else:
            pair = binned[i], binned[j]
            size = (len(pair[0].categories or ()) + 1) * (len(pair[1].categories or ()) + 1)
            score = _overlap(joined_cells(pair, 0), joined_cells(pair, 1), size)
        scores[i, j] = scores[j, i] = score
    return scores


def mean_pair(scores: NDArray[np.float64]) -> float:
    """Returns the mean of `compare_pairs` over the pairs of different columns; 1 where there is a single column."""
    above = scores[np.triu_indices(len(scores), 1)]
    return float(above.mean()) if len(above) else 1.0


def correlate(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Returns Pearson's correlation of the rows [n] that have both numbers; 0 where one of the two does not vary."""
    both = ~(np.isnan(x) | np.isnan(y))
    if both.sum() < 2:
        return 0.0
    parts = []
    for values in (x[both], y[both]):
        centered = values / (np.abs(values).max() or 1.0)  # no overflow in the squares
        centered = centered - centered.mean()
        length = float(np.linalg.norm(centered))
        if length <= 1e-12 * np.sqrt(len(values)):  # rounding of the mean of a constant
            return 0.0
        parts.append(centered / length)
    return float(np.clip(parts[0] @ parts[1], -1, 1))


def _bin_numbers(column: AlignedColumn) -> AlignedColumn:
    """Returns a column of numbers as categories: 10 bins of the first table's quantiles, fewer where they are equal."""
    if column.categories is not None:
        return column
    there = column.tables[0][~np.isnan(column.tables[0])]
    edges = np.unique(np.quantile(there, np.arange(1, _BINS) / _BINS)) if len(there) else np.zeros(0)
    tables = [np.where(np.isnan(rows), -1, np.searchsorted(edges, rows)) for rows in column.tables]
    return AlignedColumn(column.name, tuple(map(str, range(len(edges) + 1))), tuple(tables))


def distinguish(real: DataFrame, synthetic: DataFrame, rng: np.random.Generator) -> float:
    """Returns the AUC of gradient boosting that has to tell real rows from synthetic ones (a classifier two-sample
    test), the mean over 3 folds; 0.5: it cannot, 1: it always can. Both tables are sampled to equal sizes, at most
    `ROWS`. A value below 0.5 means that rows of one table are near copies of rows of the other.

    The real rows should be rows that the generator has not seen.

    Raises:
        GenfedError: see `align_tables`; or a table has fewer than 3 rows.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    size = min(len(real), len(synthetic), ROWS)
    if size < _FOLDS:
        raise GenfedError(f"real and synthetic rows are compared in {_FOLDS} folds, but one table has {size} rows")
    columns = align_tables(real=sample_rows(real, size, rng), synthetic=sample_rows(synthetic, size, rng))
    x = np.concatenate([codes_with_gaps(columns, table) for table in range(2)])
    y = np.repeat([0, 1], size)
    seed = int(rng.integers(2**31))
    scores = []
    for fit, held in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(x, y):
        chances = fit_boosting(x[fit], y[fit], seed).predict_proba(x[held])[:, 1]
        scores.append(roc_auc_score(y[held], chances))
    return float(np.mean(scores))


def sample_rows(frame: DataFrame, most: int, rng: np.random.Generator) -> DataFrame:
    """Returns at most `most` rows of a table, drawn without replacement; the table itself where it has no more."""
    return frame if len(frame) <= most else frame.iloc[rng.choice(len(frame), most, replace=False)]


def shuffle_columns(frame: DataFrame, rng: np.random.Generator) -> DataFrame:
    """Returns the table with every column shuffled by itself: the same columns, and no relation between any two."""
    import pandas

    columns = {name: frame[name].iloc[rng.permutation(len(frame))].reset_index(drop=True) for name in frame.columns}
    return pandas.DataFrame(columns)


@dataclass(frozen=True)
class Coverage:
    """What of the real rows the synthetic rows have."""

    categories: float | None
    """Share of the categories of all columns that occur; None: no column has categories."""
    rare_categories: float | None
    """The same for categories that fewer than 1 % of the real rows have; None: there is none."""
    tails: dict[str, tuple[float, float]]
    """How far the 1 % and the 99 % quantile of each column of numbers lie from the real ones, in standard deviations of
    the real column; negative: below. A column that does not vary counts in its own unit."""
    missing: dict[str, float]
    """Share of missing values in the synthetic rows minus that in the real ones, of each column with any."""
    missing_together: float
    """Largest difference, over pairs of columns, of the share of rows in which both are missing."""


def measure_coverage(real: DataFrame, synthetic: DataFrame) -> Coverage:
    """Returns which categories, tails and patterns of missing values of the real rows the synthetic rows have.

    Raises:
        GenfedError: see `align_tables`.
    """
    columns = align_tables(real=real, synthetic=synthetic)
    found, rare = list[bool](), list[bool]()
    for column in columns:
        if column.categories:
            counts = [np.bincount(rows + 1, minlength=len(column.categories) + 1)[1:] for rows in column.tables]
            there = counts[0] > 0
            found += (counts[1][there] > 0).tolist()
            rare += (counts[0][there] < _RARE * len(real)).tolist()
    gaps = [np.stack([column.missing(table) for column in columns]).astype(np.float64) for table in range(2)]
    together = [rows @ rows.T / rows.shape[1] for rows in gaps]  # [columns, columns]
    difference = together[1] - together[0]
    apart = ~np.eye(len(columns), dtype=bool)
    return Coverage(
        float(np.mean(found)) if found else None,
        float(np.mean([f for f, r in zip(found, rare, strict=True) if r])) if any(rare) else None,
        {column.name: tails for column in columns if (tails := _compare_tails(column)) is not None},
        {
            column.name: float(difference[i, i])
            for i, column in enumerate(columns)
            if together[0][i, i] or together[1][i, i]
        },
        float(np.abs(difference[apart]).max(initial=0.0)),
    )


def _compare_tails(column: AlignedColumn) -> tuple[float, float] | None:
    if column.categories is not None:
        return None
    real, synthetic = (rows[~np.isnan(rows)] for rows in standardize(column.tables))
    if not len(real) or not len(synthetic):
        return None
    low, high = np.quantile(synthetic, _TAILS) - np.quantile(real, _TAILS)
    return float(low), float(high)
