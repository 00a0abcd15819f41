"""Numbers and categories → float32 features, with statistics of the training rows alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError

_MISSING = "(missing)"
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


class Encoder:
    """Fitted on the training rows: a missing number becomes the median, then numbers are scaled; a category becomes
    a one-hot code in which a missing value is a category of its own, and one not seen in training is all zeros.
    """

    def __init__(self, train: Columns, scale: Literal["standard", "range"], where: str) -> None:
        """`scale`: "standard" (mean 0, variance 1) or "range" (training rows lie in [−1, 1]).

        Raises:
            GenfedError: no features, an infinite number, or a column with more than 1,000 categories.
        """
        # Seconds to import, and every worker that reads a config comes by this file.
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

        self._where, self._steps = where, list[tuple[Any, bool]]()
        if not train.numbers and not train.categories:
            raise GenfedError(f"{where}: there are no feature columns")
        if train.numbers:
            scaler = StandardScaler() if scale == "standard" else MinMaxScaler((-1, 1))
            # a column without any number in training becomes zeros: the number of features is that of the columns
            numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), scaler)
            self._steps.append((numbers.fit(self._numbers(train)), True))
        if train.categories:
            for name, values in train.categories.items():
                if (count := len(set(values))) > _CATEGORIES:
                    raise GenfedError(f"{where}: column {name!r} has {count} categories; {_CATEGORIES} are allowed")
            codes = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
            self._steps.append((codes.fit(_texts(train)), False))

    def __call__(self, columns: Columns) -> Tensor:
        """float32 [n, features]: the numbers, then the categories."""
        parts = [step.transform(self._numbers(columns) if n else _texts(columns)) for step, n in self._steps]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def _numbers(self, columns: Columns) -> NDArray[np.float64]:
        for name, values in columns.numbers.items():
            if np.isinf(values).any():
                raise GenfedError(f"{self._where}: column {name!r} holds infinite values")
        return np.stack(list(columns.numbers.values()), axis=1)


def _texts(columns: Columns) -> NDArray[np.object_]:
    texts = [[_MISSING if value is None else value for value in values] for values in columns.categories.values()]
    return np.array(texts, dtype=object).T
