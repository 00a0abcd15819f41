"""Shapes, pairs, C2ST and coverage: numbers computed by hand, planted facts, and tables of every type."""

from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genfed.core.errors import GenfedError
from genfed.metrics.table_columns import align_categories, align_tables
from genfed.metrics.table_fidelity import (
    compare_pairs,
    compare_shapes,
    distinguish,
    mean_pair,
    measure_coverage,
    sample_rows,
    shuffle_columns,
)
from tests.metrics.tables import make_patients


def table(**columns: Any) -> Any:
    return pandas.DataFrame(columns)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_shape_of_numbers_is_one_less_kolmogorov_smirnov() -> None:
    # below 2: 1/4 and 0; below 3: 2/4 and 1/4; below 5: 4/4 and 2/4
    assert compare_shapes(table(x=[1, 2, 3, 4]), table(x=[2.0, 4.5, 5.0, 4.0])) == {"x": 0.5}


def test_shape_of_categories_is_one_less_total_variation() -> None:
    real, synthetic = table(x=["a", "a", "b", None]), table(x=["a", "b", "c", "c"])
    # |1/2 − 1/4| + |1/4 − 1/4| + |0 − 1/2| + |1/4 − 0| (missing) = 1
    assert compare_shapes(real, synthetic) == {"x": 0.5}


def test_missing_numbers_count_by_their_share() -> None:
    assert compare_shapes(table(x=[1, 2, 3, 4]), table(x=[1, 2, 3, np.nan])) == {"x": 0.75}
    assert compare_shapes(table(x=[1.0, 2.0]), table(x=[np.nan, np.nan])) == {"x": 0.0}
    assert compare_shapes(table(x=[None, None]), table(x=[np.nan, np.nan])) == {"x": 1.0}


def test_pair_of_numbers_is_half_the_difference_of_correlations() -> None:
    real, synthetic = table(x=[1, 2, 3], y=[2, 4, 6]), table(x=[1, 2, 3], y=[6, 4, 2])
    assert compare_pairs(real, synthetic) == pytest.approx(np.array([[1, 0], [0, 1]]))
    flat = table(x=[1, 2, 3], y=[5, 5, 5])
    assert compare_pairs(real, flat)[0, 1] == pytest.approx(0.5)  # no correlation counts as 0
    assert compare_pairs(flat, flat)[0, 1] == 1


def test_pair_with_a_category_is_the_total_variation_of_joint_shares() -> None:
    real = table(x=["a", "a", "b", "b"], y=["u", "u", "v", "v"])
    synthetic = table(x=["a", "a", "b", "b"], y=["u", "v", "u", "v"])
    assert compare_pairs(real, synthetic)[0, 1] == 0.5
    # two bins at most: the quantiles of a number that is 0 in nine tenths of the rows
    real, synthetic = table(x=[0] * 19 + [7], y=["u"] * 20), table(x=[0] * 10 + [7] * 10, y=["u"] * 20)
    assert compare_pairs(real, synthetic)[0, 1] == pytest.approx(0.55)


def test_columns_of_numbers_are_binned_by_the_real_quantiles() -> None:
    real = table(x=range(100), y=["u"] * 100)
    assert compare_pairs(real, table(x=[9.0] * 100, y=["u"] * 100))[0, 1] == pytest.approx(0.1)
    assert compare_pairs(real, table(x=[1e9] * 100, y=["u"] * 100))[0, 1] == pytest.approx(0.1)


def test_many_categories_are_counted_without_a_table_of_all_pairs() -> None:
    names = [f"name {i}" for i in range(3000)]
    real = table(x=names, y=names)
    assert mean_pair(compare_pairs(real, real)) == 1
    assert compare_pairs(real, table(x=names, y=names[::-1]))[0, 1] == pytest.approx(0.0)


def test_a_single_column_has_no_pairs() -> None:
    assert mean_pair(compare_pairs(table(x=[1, 2]), table(x=[1, 2]))) == 1


def test_independent_columns_have_right_shapes_and_are_found_out() -> None:
    real, unseen = make_patients(1500), make_patients(1500, seed=1)
    shuffled = shuffle_columns(real, rng())
    assert compare_shapes(real, shuffled) == dict.fromkeys(real.columns, 1.0)
    assert mean_pair(compare_pairs(real, shuffled)) < 0.9 < 0.94 < mean_pair(compare_pairs(real, unseen))
    assert distinguish(unseen, shuffled, rng()) > 0.95
    assert distinguish(unseen, real, rng()) == pytest.approx(0.5, abs=0.05)


def test_an_auc_below_a_half_shows_copies() -> None:
    real = make_patients(600)
    assert distinguish(real, real, rng()) < 0.4


def test_the_same_draws_give_the_same_auc() -> None:
    real, other = make_patients(300), make_patients(200, seed=1)
    assert distinguish(real, other, rng()) == distinguish(real, other, rng())


def test_two_rows_are_too_few_for_folds() -> None:
    with pytest.raises(GenfedError, match="3 folds, but one table has 2 rows"):
        distinguish(make_patients(10), make_patients(2), rng())


def test_coverage_counts_categories_tails_and_gaps() -> None:
    real = table(
        x=[*["a"] * 150, *["b"] * 49, "rare"], y=np.arange(200.0), z=[np.nan] * 50 + [1.0] * 150, w=[None, *"u" * 199]
    )
    synthetic = table(x=["a", "b"], y=[0.0, 199.0], z=[np.nan, 1.0], w=[None, "u"])
    found = measure_coverage(real, synthetic)
    assert found.categories == 3 / 4  # a, b, u
    assert found.rare_categories == 0
    scale = np.arange(200).std()
    assert found.tails["y"] == pytest.approx(((1.99 - 1.99) / scale, (197.01 - 197.01) / scale), abs=1e-9)
    assert found.tails["z"] == (0.0, 0.0)
    assert found.missing == {"z": 0.25, "w": pytest.approx(0.5 - 1 / 200)}
    assert found.missing_together == pytest.approx(0.5 - 1 / 200)


def test_tails_are_in_standard_deviations() -> None:
    real = table(y=[0.0, 2.0] * 50)
    assert measure_coverage(real, table(y=[3.0] * 5)).tails["y"] == pytest.approx((3.0, 1.0))
    assert measure_coverage(table(y=[4.0] * 9), table(y=[7.0] * 5)).tails["y"] == pytest.approx((3.0, 3.0))
    assert measure_coverage(table(y=[1.0, 2.0]), table(y=[np.nan])).tails == {}
    assert measure_coverage(table(y=[1.0, 2.0]), table(y=[1.0])).categories is None


def test_a_sample_has_different_rows() -> None:
    real = make_patients(50)
    assert len(sample_rows(real, 20, rng()).index.unique()) == 20
    assert sample_rows(real, 50, rng()) is real


CELLS = {
    "number": st.none() | st.floats(allow_nan=True, allow_infinity=True),
    "whole": st.integers(-(2**60), 2**60),
    "text": st.none() | st.text(max_size=3),
    "truth": st.none() | st.booleans(),
    "day": st.none() | st.datetimes(),
    "nothing": st.none(),
    "list": st.none() | st.lists(st.integers(0, 2), max_size=2),
}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_identical_tables_score_one(data: st.DataObject, rows: int) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    frame = pandas.DataFrame(
        {
            f"{i} {kind}": pandas.Series(data.draw(st.lists(CELLS[kind], min_size=rows, max_size=rows)))
            for i, kind in enumerate(kinds)
        }
    )
    again = frame.iloc[data.draw(st.permutations(range(rows)))]
    assert compare_shapes(frame, again) == pytest.approx(dict.fromkeys(frame.columns, 1.0))
    assert compare_pairs(frame, again) == pytest.approx(np.ones((len(kinds), len(kinds))))
    found = measure_coverage(frame, again)
    assert found.categories in (None, 1.0)
    assert found.missing_together == pytest.approx(0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.none() | st.floats(), min_size=1, max_size=9), st.lists(st.none() | st.floats(), min_size=1, max_size=9)
)
def test_scores_lie_between_0_and_1_and_are_symmetric(one: list[float | None], other: list[float | None]) -> None:
    real, synthetic = table(x=one, y=one[::-1]), table(x=other, y=other)
    shapes = compare_shapes(real, synthetic)
    assert shapes == pytest.approx(compare_shapes(synthetic, real))
    pairs = compare_pairs(real, synthetic)
    assert all(0 <= score <= 1 for score in [*shapes.values(), *pairs.ravel()])


DAY = pandas.Timestamp("2024-01-01")


def series(*values: Any, dtype: Any = None) -> Any:
    return pandas.Series(values, dtype=dtype)


@pytest.mark.parametrize(
    ("column", "again"),
    [
        (series(1, 2, None, dtype="Int64"), series(1, 2, np.nan)),
        (series(True, None, False, dtype="boolean"), series(True, None, False)),
        (series("a", None, "b", dtype="category"), series("a", None, "b")),
        (series("a", None, "b", dtype="string"), series("a", None, "b", dtype=object)),
        (series(DAY, None, dtype="datetime64[ns]"), series(DAY.tz_localize("UTC"), None)),
        (series(DAY.date(), None), series(DAY, None)),
        (series(pandas.Timedelta("1h"), None), series(pandas.Timedelta("60min"), pandas.NaT)),
        (series(DAY.to_period("D"), None), series(DAY.to_period("D"), None)),
    ],
)
def test_one_column_in_several_types_is_the_same(column: Any, again: Any) -> None:
    assert compare_shapes(table(x=column), table(x=again)) == {"x": 1.0}


def test_days_are_shown_as_days() -> None:
    (column,) = align_tables(real=table(x=[pandas.Timestamp("2024-01-31"), pandas.Timestamp("2024-02-01 08:00")]))
    assert [column.show(number) for number in column.tables[0]] == ["2024-01-31", "2024-02-01 08:00:00"]


def test_numbers_become_categories_in_their_order() -> None:
    column = align_categories("x", real=table(x=[10, 2, 1]), test=table(x=[1.0, np.nan, 3.0]))
    assert column.categories == ("1", "2", "3", "10")
    assert [rows.tolist() for rows in column.tables] == [[3, 1, 0], [0, -1, 2]]


@pytest.mark.parametrize(
    ("real", "synthetic", "words"),
    [
        (table(x=[1]), table(y=[1]), r"synthetic lacks columns of real: 'x'"),
        (table(x=[1]), table(x=["1"]), r"column 'x' holds numbers in real and categories in synthetic"),
        (table(x=[1]), table(x=pandas.to_datetime(["2024-01-01"])), r"holds numbers in real and times in synthetic"),
        (table(x=[1]), table(x=[]), "synthetic: there are no rows"),
        (pandas.DataFrame([[1, 2]], columns=["x", "x"]), table(x=[1]), "real: several columns are named 'x'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(real: Any, synthetic: Any, words: str) -> None:
    with pytest.raises(GenfedError, match=words):
        compare_shapes(real, synthetic)


def test_further_columns_are_ignored_and_names_need_not_be_texts() -> None:
    assert compare_shapes(pandas.DataFrame({0: [1, 2]}), pandas.DataFrame({1: [1, 2], 0: [1, 2]})) == {"0": 1.0}
