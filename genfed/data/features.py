"""Encoding of numbers and categories as float32 features, with statistics of the training rows only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.files import write_file

MISSING = "(missing)"
"""The category of a missing value."""
_CATEGORIES = 1000


@dataclass(frozen=True)
class Columns:
    """Features of n rows before they are encoded."""

    numbers: dict[str, NDArray[np.float64]]
    """Numbers [n] by column; NaN: missing."""
    categories: dict[str, Sequence[str | None]]
    """The n texts by column; None: missing."""

    def select(self, rows: Tensor) -> "Columns":
        """Returns the chosen rows [m]."""
        chosen = rows.tolist()
        return Columns(
            {name: values[chosen] for name, values in self.numbers.items()},
            {name: [values[row] for row in chosen] for name, values in self.categories.items()},
        )


@dataclass(frozen=True)
class NumberScaling:
    """Encoding of a number: (value − shift) / scale."""

    missing: float
    """Value that replaces a missing one: the median."""
    shift: float
    scale: float


@dataclass(frozen=True)
class TableSchema:
    """An encoder of tables, fitted to the training rows. A missing number becomes the median, then numbers are scaled.
    A category becomes a one-hot code; a missing value is a category of its own, and a category unseen in training is
    all zeros.
    """

    numbers: dict[str, NumberScaling]
    """Scaling by column, in the order of the features."""
    categories: dict[str, tuple[str, ...]]
    """Categories by column, one feature for each, after the numbers; "(missing)" is a missing value."""
    kind: Literal["table"] = "table"

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Indices of the features that are a column's one-hot code, by column of categories."""
        start, found = len(self.numbers), {}
        for name, texts in self.categories.items():
            found[name] = tuple(range(start, start + len(texts)))
            start += len(texts)
        return found

    def __call__(self, columns: Columns, where: str) -> Tensor:
        """Encodes the columns as float32 [n, features]; `where` begins an error message.

        Raises:
            GenfedError: a number is infinite.
        """
        parts = [self._scale(name, values, where)[:, None] for name, values in columns.numbers.items()]
        for name, values in columns.categories.items():
            texts = np.array([MISSING if value is None else value for value in values], dtype=object)
            parts.append((texts[:, None] == np.array(self.categories[name], dtype=object)).astype(np.float64))
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def _scale(self, name: str, values: NDArray[np.float64], where: str) -> NDArray[np.float64]:
        _refuse_infinite(name, values, where)
        about = self.numbers[name]
        scaled: NDArray[np.float64] = (np.where(np.isnan(values), about.missing, values) - about.shift) / about.scale
        return scaled


def fit_encoder(train: Columns, scale: Literal["standard", "range"], where: str) -> TableSchema:
    """Fits an encoder to the training rows.

    Args:
        train: The training rows.
        scale: "standard" (mean 0, variance 1) or "range" (the training rows lie in [−1, 1]).
        where: Text that begins an error message.

    Raises:
        GenfedError: there are no features, a number is infinite, or a column has more than 1,000 categories.
    """
    if not train.numbers and not train.categories:
        raise GenfedError(f"{where}: there are no feature columns")
    for name, texts in train.categories.items():
        if (count := len(set(texts))) > _CATEGORIES:
            raise GenfedError(f"{where}: column {name!r} has {count} categories; {_CATEGORIES} are allowed")
    return TableSchema(
        _fit_scalings(train.numbers, scale, where),
        {
            name: tuple(sorted({MISSING if text is None else text for text in texts}))
            for name, texts in train.categories.items()
        },
    )



def _fit_scalings(
    numbers: dict[str, NDArray[np.float64]], scale: Literal["standard", "range"], where: str
) -> dict[str, NumberScaling]:
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
    if scale == "standard":
        fit = StandardScaler().fit(np.stack(filled, axis=1))
        shifts, scales = fit.mean_, fit.scale_
    else:
        halves = [(values.max() - values.min()) / 2 or 0.5 for values in filled]  # a constant column becomes −1
        shifts, scales = [values.min() + half for values, half in zip(filled, halves, strict=True)], halves
    return {
        name: NumberScaling(median, float(shift), float(scale))
        for name, median, shift, scale in zip(numbers, medians, shifts, scales, strict=True)
    }


def _refuse_infinite(name: str, values: NDArray[np.float64], where: str) -> None:
    if np.isinf(values).any():
        raise GenfedError(f"{where}: column {name!r} holds infinite values")
