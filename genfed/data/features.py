"""Numbers and categories → float32 features, with statistics of the training rows alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError

MISSING = "(missing)"
"""The category of a missing value."""
_CATEGORIES = 1000


@dataclass(frozen=True)
class Columns:
    """The features of n rows before they are encoded."""

    numbers: dict[str, NDArray[np.float64]]
    """By column, [n]; NaN is a missing value."""
    categories: dict[str, Sequence[str | None]]
    """By column, n texts; None is a missing value."""

    def rows(self, rows: Tensor) -> "Columns":
        """The rows chosen, [m]."""
        chosen = rows.tolist()
        return Columns(
            {name: values[chosen] for name, values in self.numbers.items()},
            {name: [values[row] for row in chosen] for name, values in self.categories.items()},
        )


@dataclass(frozen=True)
class Scaling:
    """How a number is encoded: (value − shift) / scale."""

    missing: float
    """Stands for a value that is missing: the median."""
    shift: float
    scale: float


@dataclass(frozen=True)
class Encoder:
    """What the training rows taught: a missing number becomes the median, then numbers are scaled; a category becomes
    a one-hot code in which a missing value is a category of its own, and one not seen in training is all zeros.
    """

    numbers: dict[str, Scaling]
    """By column, in the order of the features."""
    categories: dict[str, tuple[str, ...]]
    """By column, after the numbers: one feature for each; "(missing)" is a missing value."""

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """By column of categories: the features that are its one-hot code, a feature for each category."""
        start, found = len(self.numbers), {}
        for name, texts in self.categories.items():
            found[name] = tuple(range(start, start + len(texts)))
            start += len(texts)
        return found

    def __call__(self, columns: Columns, where: str) -> Tensor:
        """float32 [n, features] of the same columns; `where` begins a message.

        Raises:
            GenfedError: an infinite number.
        """
        parts = [self._scaled(name, values, where)[:, None] for name, values in columns.numbers.items()]
        for name, values in columns.categories.items():
            texts = np.array([MISSING if value is None else value for value in values], dtype=object)
            parts.append((texts[:, None] == np.array(self.categories[name], dtype=object)).astype(np.float64))
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def _scaled(self, name: str, values: NDArray[np.float64], where: str) -> NDArray[np.float64]:
        _refuse_infinite(name, values, where)
        about = self.numbers[name]
        scaled: NDArray[np.float64] = (np.where(np.isnan(values), about.missing, values) - about.shift) / about.scale
        return scaled


def fit_encoder(train: Columns, scale: Literal["standard", "range"], where: str) -> Encoder:
    """An encoder for rows like these. `scale`: "standard" (mean 0, variance 1) or "range" (training rows lie in
    [−1, 1]).

    Raises:
        GenfedError: no features, an infinite number, or a column with more than 1,000 categories.
    """
    if not train.numbers and not train.categories:
        raise GenfedError(f"{where}: there are no feature columns")
    for name, texts in train.categories.items():
        if (count := len(set(texts))) > _CATEGORIES:
            raise GenfedError(f"{where}: column {name!r} has {count} categories; {_CATEGORIES} are allowed")
    return Encoder(
        _scalings(train.numbers, scale, where),
        {
            name: tuple(sorted({MISSING if text is None else text for text in texts}))
            for name, texts in train.categories.items()
        },
    )


def read_encoder(file: Path) -> Encoder:
    """Reads `write_encoder`.

    Raises:
        GenfedError: no such file, or something else.
    """
    try:
        return pydantic.TypeAdapter(Encoder).validate_json(file.read_bytes())
    except (OSError, pydantic.ValidationError):
        raise GenfedError(f"{file} is damaged; going on with the run (--resume) writes it anew") from None


def write_encoder(encoder: Encoder, file: Path) -> None:
    """As JSON."""
    file.write_bytes(pydantic.TypeAdapter(Encoder).dump_json(encoder, indent=1) + b"\n")


def _scalings(
    numbers: dict[str, NDArray[np.float64]], scale: Literal["standard", "range"], where: str
) -> dict[str, Scaling]:
    # Seconds to import, and every worker that reads a config comes by this file.
    from sklearn.preprocessing import StandardScaler

    filled, medians = [], []
    for name, values in numbers.items():
        _refuse_infinite(name, values, where)
        gaps = np.isnan(values)
        # a column without any number in training becomes zeros: the number of features is that of the columns
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
        name: Scaling(median, float(shift), float(scale))
        for name, median, shift, scale in zip(numbers, medians, shifts, scales, strict=True)
    }


def _refuse_infinite(name: str, values: NDArray[np.float64], where: str) -> None:
    if np.isinf(values).any():
        raise GenfedError(f"{where}: column {name!r} holds infinite values")
