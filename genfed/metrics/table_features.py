"""Columns of tables as the inputs of scikit-learn's classifiers."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genfed.metrics.table_columns import AlignedColumn

_CATEGORIES = 100
"""Largest number of categories of a column with an input of their own in logistic regression; the rarest share one."""


def codes_with_gaps(columns: Sequence[AlignedColumn], table: int) -> NDArray[np.float64]:
    """Returns the rows of a table [n, columns]: numbers, and the places of categories; NaN where one is missing."""
    return np.stack([np.where(c.missing(table), np.nan, c.tables[table]) for c in columns], axis=1)


def fit_boosting(x: NDArray[np.float64], y: NDArray[np.int64], seed: int) -> Any:
    """Fits gradient boosting of trees on rows [n, d] with NaN for missing values."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    filled = np.where(np.isnan(x).all(axis=0), 0.0, x)  # no tree splits a column without values, and none can be fitted
    # without early stopping, which needs two rows of each class to set aside
    return HistGradientBoostingClassifier(early_stopping=False, random_state=seed).fit(filled, y)


def fit_logistic(x: Any, y: NDArray[np.int64]) -> Any:
    """Fits logistic regression on rows [n, d], dense or sparse."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are enough for a measure
        return LogisticRegression(max_iter=500).fit(x, y)


def one_hot(columns: Sequence[AlignedColumn]) -> list[Any]:
    """Returns the rows of each table [n, d] as sparse matrices, fitted on the first table: numbers less their mean, in
    standard deviations, with 0 and an input of its own for a missing one; an input for each category, and for missing.
    """
    from scipy.sparse import csr_array, hstack
    from sklearn.preprocessing import OneHotEncoder

    parts: list[list[Any]] = [[] for _ in columns[0].tables]
    for column in columns:
        if column.categories is None:
            scaled = standardize(column.tables)
            for part, rows in zip(parts, scaled, strict=True):
                part.append(csr_array(np.stack([np.nan_to_num(rows), np.isnan(rows)], axis=1)))
            continue
        encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=_CATEGORIES)
        encoder.fit(column.tables[0][:, None])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)
            for part, rows in zip(parts, column.tables, strict=True):
                part.append(encoder.transform(rows[:, None]))
    return [hstack(part, format="csr") for part in parts]


def standardize(tables: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Returns numbers less the first table's mean, in its standard deviations (1 where it does not vary)."""
    there = tables[0][~np.isnan(tables[0])]
    if not len(there):
        return list(tables)
    largest = float(np.abs(there).max()) or 1.0
    shrunk = there / largest  # no overflow in the squares
    deviation = float(shrunk.std())
    scale = deviation if deviation > 1e-12 else 1 / largest  # else the rounding of a constant's mean
    return [(rows / largest - float(shrunk.mean())) / scale for rows in tables]
