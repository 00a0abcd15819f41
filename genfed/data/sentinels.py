"""Numbers and days that may mean that there is no value, such as −999 or 9999-12-31."""

import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_NUMBERS = frozenset(
    {
        *(-1.0, -9.0, -99.0, -999.0, -9999.0, -99999.0, -999999.0, 999.0, 9999.0, 99999.0, 999999.0, 1e20, -1e20),
        *(-(2.0**15), 2.0**15 - 1, 2.0**16 - 1, -(2.0**31), 2.0**31 - 1, 2.0**32 - 1, -(2.0**63), 2.0**63),
    }
)
_DAYS = frozenset(
    float((datetime.date(*day) - datetime.date(1970, 1, 1)).days)
    for day in ((1, 1, 1), (1753, 1, 1), (1899, 12, 30), (1900, 1, 1), (1970, 1, 1), (2999, 12, 31), (9999, 12, 31))
)
_FAR = 10
"""Spreads of the others by which such a number lies below others of both signs, and any suspected number from them."""
_FEW = 3
"""Least number of others; least number of times that a number that is not known to mean missing stands there."""
_MOST = 3
"""Most numbers below the others, and above them, that mean missing."""
_OFTEN = 5
"""Times that a known mark at the end of the others stands there more often than any of them."""


def find_sentinels(values: NDArray[np.float64], kind: Literal["number", "day", "time"] = "number") -> list[float]:
    """Returns the values of a column [n] (NaN: missing) that seem to mean that there is none: those that are known as
    such marks and stand apart from the others, and any that is repeated and stands far from them.
    """
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    known = np.isin(distinct, list(_DAYS if kind == "day" else _NUMBERS))
    n = len(distinct)
    ends = [(low, n - high) for low in range(_MOST + 1) for high in range(_MOST + 1) if n - high - low >= _FEW]
    for low, high in sorted(ends, key=lambda end: end[1] - end[0]):  # those that leave the fewest others first
        outside = [*range(low), *range(high, n)]
        if all(_is_mark(i, distinct, counts, bool(known[i]), slice(low, high)) for i in outside):
            return [float(distinct[i]) for i in outside]
    return []


def _is_mark(i: int, distinct: NDArray[np.float64], counts: NDArray[np.int64], known: bool, others: slice) -> bool:
    """Returns whether the value at place i seems to mean missing, beside the others."""
    value, first, last = distinct[i], distinct[others][0], distinct[others][-1]
    spread, apart = last - first, max(first - value, value - last)
    if not known:
        return bool(counts[i] >= _FEW and others.stop - others.start > 2 * _FEW and apart > _FAR * spread)
    if counts[i] >= max(_FEW, _OFTEN * counts[others].max()):
        return True
    if value < 0 <= first and counts[i] >= _FEW and others.stop - others.start > 2 * _FEW:
        return True  # −1 beside ages
    return bool(apart > spread * (2 if value > last else 1 if first >= 0 else _FAR))
