"""What a site says of the columns of its rows, so that sites can agree on one schema, and how this is merged.

A summary holds no row. Numbers are given by groups of neighbours, categories by their counts; groups and categories of
few rows are joined. Summaries of parts of the same rows merge into nearly what one summary of all of them says: counts,
means and variances exactly, quantiles to 1/1,000 of each site's rows.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genfed.data.cells import Cells, plain_number, same_numbers

GROUPS = 1000
"""Most groups of numbers in one summary."""
CELLS = 100
"""Number of cells into which the numbers of a column are divided; some more, where single values are frequent."""
_DECIMALS = 6
"""Most decimals that are found in numbers; others have as many as a float holds."""


@dataclass(frozen=True)
class NumberSummary:
    """What a site says of a column of numbers."""

    gaps: int
    """Rows in which no number is there."""
    values: tuple[float, ...]
    """The mean of each group of neighbouring numbers, ascending; a frequent number is a group of its own."""
    counts: tuple[int, ...]
    """The number of rows in each group."""
    single: tuple[bool, ...]
    """Whether all numbers of each group are equal."""
    low: float
    """The smallest number, or the mean of the smallest ones."""
    high: float
    """The largest number, or the mean of the largest ones."""
    mean: float
    spread: float
    """Sum of the squared deviations from the mean."""
    decimals: int | None
    """Decimals with which the numbers are written. None: more than six."""

    @property
    def present(self) -> int:
        """Rows in which a number is there."""
        return sum(self.counts)


@dataclass(frozen=True)
class CategorySummary:
    """What a site says of a column of categories."""

    counts: dict[str, int]
    """Rows by category."""
    gaps: int
    """Rows in which there is none."""
    rare: int
    """Rows whose category has too few rows to be named."""
    as_numbers: bool
    """Whether the categories are numbers: 1.0 is the category 1."""


def summarize_numbers(values: NDArray[np.float64], least: int = 1) -> NumberSummary:
    """Returns the summary of a column of numbers.

    Args:
        values: The numbers [n], all finite; NaN: missing.
        least: Least number of rows in a group, and of those whose mean stands for the smallest or largest number.

    >>> summary = summarize_numbers(np.array([1.0, 2.0, 2.0, 3.0, np.nan]))
    >>> summary.values, summary.counts, summary.gaps, summary.decimals
    ((1.0, 2.0, 3.0), (1, 2, 1), 1, 0)
    >>> summarize_numbers(np.array([1.0, 2.0, 3.0, 8.0]), least=2).values
    (1.5, 5.5)
    """
    there = np.sort(values[~np.isnan(values)])
    gaps = len(values) - len(there)
    if not len(there):
        return NumberSummary(gaps, (), (), (), 0.0, 0.0, 0.0, 0.0, 0)
    distinct, counts = np.unique(there, return_counts=True)
    least = max(1, least)
    size = least if len(distinct) <= GROUPS else max(least, -(-len(there) // GROUPS))
    groups = _group(distinct, counts, size)
    mean = float(there.mean())
    return NumberSummary(
        gaps,
        tuple(group.value for group in groups),
        tuple(group.rows for group in groups),
        tuple(group.single for group in groups),
        float(there[:least].mean()),
        float(there[-least:].mean()),
        mean,
        float(np.square(there - mean).sum()),
        _count_decimals(distinct),
    )


@dataclass
class _Group:
    value: float
    rows: int
    single: bool


def _group(distinct: NDArray[np.float64], counts: NDArray[np.int64], size: int) -> list[_Group]:
    """Returns groups of at least `size` rows, if there are as many. A value with as many is a group of its own. What
    lies between two such values is divided into groups; if it has fewer rows, they count as the value before it, or
    the one after it.
    """
    groups: list[_Group] = []
    waiting = 0
    for run in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(counts >= size)) + 1):
        if counts[run[0]] >= size:
            groups += [_Group(float(distinct[i]), int(counts[i]), True) for i in run]
            groups[-len(run)].rows += waiting
            waiting = 0
        elif (rows := int(counts[run].sum())) >= size or len(run) == len(counts):
            for part in _divide(counts[run].tolist(), size):
                some = run[part]
                taken = int(counts[some].sum())
                groups.append(_Group(float(distinct[some] @ counts[some]) / taken, taken, len(some) == 1))
        elif groups:
            groups[-1].rows += rows
        else:
            waiting = rows
    return groups


def _divide(counts: Sequence[int], size: int) -> list[slice]:
    """Returns runs of neighbours with at least `size` rows each; all of them where there are fewer rows."""
    ends, rows = [0], 0
    for i, count in enumerate(counts):
        rows += count
        if rows >= size:
            ends.append(i + 1)
            rows = 0
    ends[max(1, len(ends) - 1) :] = [len(counts)]  # the rest joins the last run
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _count_decimals(distinct: NDArray[np.float64]) -> int | None:
    for decimals in range(_DECIMALS + 1):
        if np.array_equal(np.round(distinct, decimals), distinct):
            return decimals
    return None


def summarize_categories(cells: Cells, least: int = 1) -> CategorySummary:
    """Returns the summary of a column of categories.

    Args:
        cells: The column.
        least: Least number of rows of a category that is named.
    """
    texts = cells.as_texts()
    as_numbers = same_numbers(texts)
    counts: Counter[str] = Counter()
    for text, count in zip(texts.values, texts.counts().tolist(), strict=True):
        counts[plain_number(text) if as_numbers else text] += count
    named = {text: counts[text] for text in sorted(counts) if counts[text] >= least}
    rare = sum(count for text, count in counts.items() if text not in named)
    return CategorySummary(named, len(texts) - texts.present, rare, as_numbers)


def merge_numbers(summaries: Sequence[NumberSummary]) -> NumberSummary:
    """Returns the summary of the rows of all."""
    some = [each for each in summaries if each.present]
    gaps = sum(each.gaps for each in summaries)
    if not some:
        return NumberSummary(gaps, (), (), (), 0.0, 0.0, 0.0, 0.0, 0)
    groups: Counter[float] = Counter()
    mixed = set[float]()
    for each in some:
        for value, rows, single in zip(each.values, each.counts, each.single, strict=True):
            groups[value] += rows
            mixed |= set() if single else {value}
    values = sorted(groups)
    mean, spread, count = some[0].mean, some[0].spread, some[0].present
    for each in some[1:]:  # Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983
        both = count + each.present
        away = each.mean - mean
        spread += each.spread + away**2 * count * each.present / both
        mean, count = mean + away * each.present / both, both
    decimals = [each.decimals for each in some]
    return NumberSummary(
        gaps,
        tuple(values),
        tuple(groups[value] for value in values),
        tuple(value not in mixed for value in values),
        min(each.low for each in some),
        max(each.high for each in some),
        mean,
        spread,
        None if None in decimals else max(each for each in decimals if each is not None),
    )


def merge_categories(summaries: Sequence[CategorySummary], least_sites: int = 1, most: int = 1000) -> CategorySummary:
    """Returns the summary of the rows of all.

    Args:
        summaries: Those of the sites.
        least_sites: Least number of sites that have a category which is named.
        most: Most categories that are named: those with the most rows.
    """
    counts: Counter[str] = Counter()
    for each in summaries:
        counts.update(each.counts)
    sites = Counter(text for each in summaries for text in each.counts)
    known = sorted((text for text in counts if sites[text] >= least_sites), key=lambda text: (-counts[text], text))
    named = {text: counts[text] for text in sorted(known[:most])}
    rare = sum(each.rare for each in summaries) + sum(counts[text] for text in counts.keys() - named.keys())
    return CategorySummary(
        named, sum(each.gaps for each in summaries), rare, all(each.as_numbers for each in summaries if each.counts)
    )


def find_median(summary: NumberSummary) -> float:
    """Returns the median of the groups' means, each as often as it has rows; 0 without a number.

    >>> find_median(summarize_numbers(np.array([1.0, 2.0, 4.0, 4.0])))
    3.0
    """
    if not summary.values:
        return 0.0
    ends = np.cumsum(summary.counts)
    middle = (int(ends[-1]) - 1) / 2
    places = [int(np.searchsorted(ends, place, side="right")) for place in (np.floor(middle), np.ceil(middle))]
    return (summary.values[places[0]] + summary.values[places[1]]) / 2


@dataclass(frozen=True)
class Cell:
    """Neighbouring numbers of one code."""

    low: float
    """The smallest one."""
    high: float
    """The largest one. Equal: the cell is one value."""
    rows: int
    """Number of training rows."""


def divide_into_cells(summary: NumberSummary, cells: int = CELLS) -> tuple[Cell, ...]:
    """Returns the cells of a column's numbers, ascending. A frequent value is a cell of its own; the rest is divided
    into cells of about equally many rows.

    >>> divided = divide_into_cells(summarize_numbers(np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0])), cells=3)
    >>> [(cell.low, cell.high, cell.rows) for cell in divided]
    [(0.0, 0.0, 3), (1.0, 2.0, 2), (3.0, 4.0, 2)]
    """
    counts, single = np.array(summary.counts, np.int64), np.array(summary.single, bool)
    if not len(counts):
        return ()
    alone = single & (np.ones_like(single) if len(counts) <= cells else counts * cells >= counts.sum())
    size = int(counts[~alone].sum()) / max(1, cells - int(alone.sum()))
    lows, highs = _find_reach(summary)
    found, start, rows = list[Cell](), 0, 0
    for i, (count, is_alone) in enumerate(zip(counts.tolist(), alone.tolist(), strict=True)):
        if is_alone and start < i:
            found.append(Cell(lows[start], highs[i - 1], rows))
            start, rows = i, 0
        rows += count
        if is_alone or rows >= size or i + 1 == len(counts):
            found.append(Cell(lows[start], highs[i], rows))
            start, rows = i + 1, 0
    return tuple(found)


def _find_reach(summary: NumberSummary) -> tuple[list[float], list[float]]:
    """Returns the numbers from which and up to which each group reaches: its value, or half way to its neighbours; and
    towards a neighbour of one value not farther than towards the other one.
    """
    values, single = summary.values, summary.single
    halves = [(other - one) / 2 for one, other in itertools.pairwise(values)]
    down, up = [max(values[0] - summary.low, 0.0), *halves], [*halves, max(summary.high - values[-1], 0.0)]
    lows, highs = [], []
    for i, value in enumerate(values):
        below = min(down[i], up[i]) if i and single[i - 1] else down[i]
        above = min(down[i], up[i]) if i + 1 < len(values) and single[i + 1] else up[i]
        lows.append(value - (0.0 if single[i] else below))
        highs.append(value + (0.0 if single[i] else above))
    return lows, highs


def find_near_misses(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns pairs of categories that differ only in capitals, spaces or punctuation, or of which one is the other's
    first letter.

    >>> find_near_misses({"male": 3, "Male": 1, "F": 1, "female": 2, "other": 1})
    [('Male', 'male'), ('F', 'female')]
    """
    plain: dict[str, str] = {}
    pairs = []
    for text in sorted(counts):
        key = "".join(c for c in text.casefold() if c.isalnum())
        if (other := plain.setdefault(key, text)) != text:
            pairs.append((other, text))
    letters = {text.casefold(): text for text in counts if len(text) == 1 and text.isalpha()}
    for letter, text in letters.items():
        longer = [word for word in sorted(counts) if len(word) > 1 and word.casefold().startswith(letter)]
        if len(longer) == 1:
            pairs.append((text, longer[0]))
    return pairs
