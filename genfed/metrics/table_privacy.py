"""Whether synthetic rows lie nearer to the rows that a generator was trained on than to other real rows.

These distances find copies. They do not find every leak that membership attacks find, and prove no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genfed.metrics.table_columns import AlignedColumn, align_tables
from genfed.metrics.table_features import standardize
from genfed.metrics.table_fidelity import ROWS, sample_rows

if TYPE_CHECKING:
    from pandas import DataFrame

_TIE = 1e-9  # difference of two squared distances that is rounding
_WIDE = 500  # inputs above which most of them are the zeros of categories
_CONTROL = 2000


@dataclass(frozen=True)
class ShareWithInterval:
    """A share, and its 95 % interval (Wilson) over the rows that were counted."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Nearness:
    """How near synthetic rows lie to training rows, beside as many held-out rows."""

    nearer: ShareWithInterval
    """Share of synthetic rows that are nearer to a training row than to a held-out row (DCR share); ties count half.
    0.5: no nearer to training rows than to others."""
    nearer_of_copies: float
    """The same share for copies of training rows: what a generator that only copies would have."""
    copies: float
    """Share of all synthetic rows that equal a training row."""
    copies_of_held_out: float
    """Share of all held-out rows that equal a training row: so common are such rows without copying."""
    ratio: float
    """Median of the distance to the nearest training row over that to the second nearest (NNDR), in [0, 1]; near 0:
    the synthetic rows sit on single training rows."""
    ratio_of_held_out: float
    """The same for held-out rows in the place of synthetic ones."""
    rows: int
    """Number of training rows, and of held-out rows, that were compared."""


def share_nearer_to_training(
    synthetic: DataFrame, train: DataFrame, held_out: DataFrame, rng: np.random.Generator
) -> Nearness:
    """Returns how near synthetic rows lie to training rows. As many training rows are drawn as there are held-out rows
    (or fewer of these), at most `ROWS` of each table.

    The distance is Euclidean: a number counts by its difference in standard deviations of the training rows, a category
    as 0 (the same) or 1. A missing number counts as the mean, and adds 1 where the other row has one. Both sides are
    treated alike, so rows that depend on no training row have a share of 0.5.

    Args:
        synthetic: The rows to judge.
        train: The rows that the generator was trained on.
        held_out: Real rows of the same kind that it was not trained on.
        rng: Draws the rows.

    Raises:
        GenfedError: see `align_tables`.
    """
    size = min(len(train), len(held_out), ROWS)
    copied = sample_rows(train, _CONTROL, rng)  # of all training rows: those compared are only a part of them
    columns = align_tables(
        train=sample_rows(train, size, rng),
        held_out=sample_rows(held_out, size, rng),
        synthetic=sample_rows(synthetic, ROWS, rng),
        copies=copied,
    )
    scaled = [AlignedColumn(c.name, None, tuple(standardize(c.tables))) if c.categories is None else c for c in columns]
    to_train, to_held_out = _nearest(scaled, 2, 0), _nearest(scaled, 2, 1)
    copies = _share_nearer(_nearest(scaled, 3, 0), _nearest(scaled, 3, 1))
    others = _nearest(scaled, 1, 0)
    share, equal = _share_nearer(to_train, to_held_out), _share_copies(train, synthetic, held_out)
    return Nearness(
        wilson_interval(share, len(to_train)),
        copies,
        equal[0],
        equal[1],
        _median_ratio(to_train),
        _median_ratio(others),
        size,
    )


def _share_copies(train: DataFrame, *others: DataFrame) -> list[float]:
    """Returns for each other table the share of its rows that equal a row of the first one."""
    tables = {"train": train} | {f"table {i}": frame for i, frame in enumerate(others)}
    sizes = [len(frame) for frame in tables.values()]
    row = np.zeros(sum(sizes), np.int64)  # equal rows have equal numbers
    for column in align_tables(**tables):
        place = np.unique(np.concatenate(column.tables), return_inverse=True)[1]
        row = np.unique(row * (int(place.max()) + 1) + place, return_inverse=True)[1]
    parts = np.split(row, np.cumsum(sizes)[:-1])
    return [float(np.isin(part, parts[0]).mean()) for part in parts[1:]]


def wilson_interval(share: float, count: int, z: float = 1.96) -> ShareWithInterval:
    """Returns a share of `count` rows with its interval after Wilson (1927); `z` standard deviations: 1.96 is 95 %.

    >>> interval = wilson_interval(0.5, 100)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.404, 0.596)
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return ShareWithInterval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def _share_nearer(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Returns the share of rows that the first squared distances [n, 2] are smaller for; ties count half."""
    difference = one[:, 0] - other[:, 0]
    return float(np.where(np.abs(difference) <= _TIE, 0.5, difference < 0).mean())


def _median_ratio(squared: NDArray[np.float64]) -> float:
    """Returns the median ratio of the first to the second distance; 1 where both are 0, or there is no second one."""
    if squared.shape[1] < 2:
        return 1.0
    nearest, second = np.where(squared <= _TIE, 0.0, squared).T
    return float(np.median(np.sqrt(np.divide(nearest, second, out=np.ones_like(second), where=second > 0))))


def _nearest(columns: Sequence[AlignedColumn], queries: int, reference: int) -> NDArray[np.float64]:
    """Returns the squared distances [n, 2] from each row of one table to the two nearest of another, ascending."""
    from sklearn.neighbors import NearestNeighbors

    placed = _place(columns, reference)
    search = NearestNeighbors(n_neighbors=min(2, placed.shape[0]), algorithm="brute").fit(placed)  # in chunks
    rows = search.kneighbors(_place(columns, queries), return_distance=False)
    # the search rounds; a copy has a distance of exactly 0
    squared = np.zeros(rows.shape)
    for column in columns:
        one, other = column.tables[queries][:, None], column.tables[reference][rows]
        if column.categories is not None:
            squared += one != other
        else:
            squared += (np.nan_to_num(one) - np.nan_to_num(other)) ** 2 + (np.isnan(one) != np.isnan(other))
    return np.sort(squared, axis=1)


def _place(columns: Sequence[AlignedColumn], table: int) -> Any:
    """Returns rows as points [n, d] whose distances are those between rows, dense or sparse."""
    from scipy.sparse import csr_array, hstack

    parts = []
    for column in columns:
        rows = column.tables[table]
        if column.categories is None:
            parts.append(csr_array(np.stack([np.nan_to_num(rows), np.isnan(rows)], axis=1)))
            continue
        size = len(column.categories) + 1
        half = np.full(len(rows), math.sqrt(0.5))  # two rows with unlike categories are 1 apart
        parts.append(csr_array((half, (np.arange(len(rows)), rows + 1)), shape=(len(rows), size)))
    placed = hstack(parts, format="csr")
    return placed.toarray() if placed.shape[1] <= _WIDE else placed
