"""What a site says of its columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genfed.data.cells import text_cells
from genfed.data.column_summary import (
    divide_into_cells,
    find_median,
    merge_categories,
    merge_numbers,
    summarize_categories,
    summarize_numbers,
)

NUMBERS = st.lists(st.integers(-30, 30).map(lambda i: i / 4) | st.just(float("nan")), min_size=1, max_size=80)


@given(NUMBERS, st.integers(1, 7))
def test_a_group_has_the_least_number_of_rows(numbers: list[float], least: int) -> None:
    values = np.array(numbers)
    there = values[~np.isnan(values)]
    found = summarize_numbers(values, least)
    assert (found.present, found.gaps) == (len(there), len(values) - len(there))
    assert sorted(found.values) == list(found.values)
    if len(there) >= least:
        assert all(count >= least for count in found.counts)
        for value, single in zip(found.values, found.single, strict=True):
            assert not single or (there == value).sum() >= least, "a value of few rows is not shown"
    if len(there):
        assert there.min() <= found.low <= found.high <= there.max()


@given(NUMBERS, st.integers(0, 80))
def test_parts_merge_into_the_whole(numbers: list[float], cut: int) -> None:
    values = np.array(numbers)
    merged, whole = (
        merge_numbers([summarize_numbers(values[:cut]), summarize_numbers(values[cut:])]),
        summarize_numbers(values),
    )
    assert (merged.values, merged.counts, merged.gaps) == (whole.values, whole.counts, whole.gaps)
    assert merged.mean == pytest.approx(whole.mean)
    assert merged.spread == pytest.approx(whole.spread, abs=1e-9)
    assert divide_into_cells(merged) == divide_into_cells(whole)
    if len(there := values[~np.isnan(values)]):
        assert find_median(whole) == np.median(there)
        assert (whole.low, whole.high) == (there.min(), there.max())


def test_many_rows_keep_their_quantiles() -> None:
    values = np.random.default_rng(1).lognormal(size=20_000)
    parts = [summarize_numbers(part, 5) for part in np.array_split(values, 4)]
    merged = merge_numbers(parts)
    assert all(len(part.values) <= 1000 for part in parts)
    assert find_median(merged) == pytest.approx(np.median(values), rel=0.01)
    cells = divide_into_cells(merged)
    assert 95 <= len(cells) <= 101
    assert sum(cell.rows for cell in cells) == len(values)
    counts = np.histogram(values, [cell.low for cell in cells] + [np.inf])[0]
    assert counts.min() > 150, "about 200 rows in each"


def test_a_frequent_number_is_a_cell_of_its_own() -> None:
    values = np.concatenate([np.zeros(900), np.random.default_rng(0).uniform(1, 2, 500)])
    first, second, *_ = divide_into_cells(summarize_numbers(values, 5), cells=10)
    assert (first.low, first.high, first.rows) == (0, 0, 900)
    assert 0.99 < second.low < second.high < 2
    assert second.rows >= 50


@pytest.mark.parametrize(("numbers", "decimals"), [([1, 2], 0), ([1.5, 2], 1), ([0.125], 3), ([1 / 3], None)])
def test_decimals_are_found(numbers: list[float], decimals: int | None) -> None:
    assert summarize_numbers(np.array(numbers, float)).decimals == decimals


def test_categories_of_few_rows_or_sites_have_no_name() -> None:
    one = summarize_categories(text_cells(["a"] * 5 + ["b"] * 4 + ["", "c", "c", "c", "c", "c"]), least=5)
    assert (one.counts, one.gaps, one.rare) == ({"a": 5, "c": 5}, 1, 4)
    other = summarize_categories(text_cells(["a"] * 6), least=5)
    both = merge_categories([one, other], least_sites=2)
    assert (both.counts, both.gaps, both.rare) == ({"a": 11}, 1, 9)
    assert merge_categories([one, other], most=1).counts == {"a": 11}
