"""Numbers that may mean that there is no value, such as −999."""

import numpy as np
from numpy.typing import NDArray

_SENTINELS = (-9.0, -99.0, -999.0, -9999.0, -99999.0, 999.0, 9999.0, 99999.0, 999999.0)
_FAR = 10
"""Spreads by which such a number lies below others of both signs."""


def find_sentinels(values: NDArray[np.float64]) -> list[float]:
    """Returns the numbers of a column [n] (NaN: missing) that are written for missing and stand far from the others."""
    distinct = np.unique(values[~np.isnan(values)])
    found = []
    for value in _SENTINELS:
        others = distinct[distinct != value]
        if len(others) == len(distinct) or len(others) < 3:
            continue
        spread = others[-1] - others[0]
        if value > 0:
            far = value > others[-1] + 2 * spread
        else:
            far = value < others[0] - (spread if others[0] >= 0 else _FAR * spread)
        if far:
            found.append(value)
    return found
