"""Nearness to training rows: distances by hand, copies and strangers; rules that rows break."""

import numpy as np
import pandas
import pytest

from genfed.metrics.table_privacy import share_nearer_to_training, wilson_interval
from genfed.metrics.table_rules import find_broken_rules
from tests.metrics.tables import make_patients


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_shares_and_ratios_by_hand() -> None:
    # the training rows have a standard deviation of 1
    train = pandas.DataFrame({"x": [0.0, 2.0], "c": ["a", "a"]})
    held_out = pandas.DataFrame({"x": [0.0, 9.0], "c": ["b", "a"]})
    synthetic = pandas.DataFrame({"x": [0.5, 8.0, 2.0, 0.0], "c": ["a", "a", "a", "b"]})
    found = share_nearer_to_training(synthetic, train, held_out, rng())
    # 0.5 and √1.25; 6 and 1; 0 and √5; 1 and 0
    assert found.nearer.share == 0.5
    assert (found.copies, found.copies_of_held_out, found.rows) == (0.25, 0.0, 2)
    # 0.5 / 1.5, 6 / 8, 0 / 2, 1 / √5
    assert found.ratio == pytest.approx((1 / 3 + 1 / 5**0.5) / 2)


def test_copies_are_found_and_strangers_are_not() -> None:
    train, held_out, fresh = (make_patients(600, seed) for seed in (0, 1, 2))
    copies = share_nearer_to_training(train, train, held_out, rng())
    assert copies.nearer.low > 0.97
    assert (copies.copies, copies.ratio) == (1.0, 0.0)
    strangers = share_nearer_to_training(fresh, train, held_out, rng())
    assert strangers.nearer.low < 0.5 < strangers.nearer.high
    assert strangers.nearer_of_copies > 0.97
    assert strangers.ratio == pytest.approx(strangers.ratio_of_held_out, abs=0.05)
    near = train.assign(age=train.age + 1)
    assert share_nearer_to_training(near, train, held_out, rng()).nearer.low > 0.9


def test_fewer_held_out_rows_lower_what_copies_have() -> None:
    """Half of the training rows are compared, so half of the copies lie near none of them."""
    train, held_out = make_patients(600), make_patients(300, 1)
    found = share_nearer_to_training(train, train, held_out, rng())
    assert found.rows == 300
    assert found.copies == 1
    assert found.nearer.share == pytest.approx(0.75, abs=0.05)
    assert found.nearer_of_copies == pytest.approx(found.nearer.share, abs=0.03)


def test_ties_count_half_and_missing_values_are_compared() -> None:
    train = pandas.DataFrame({"x": [np.nan, 1.0, 3.0], "c": [None, "a", "b"]})
    found = share_nearer_to_training(train, train, train, rng())
    assert found.nearer.share == found.nearer_of_copies == 0.5
    assert found.copies == 1.0


def test_many_categories_need_no_dense_table() -> None:
    train = pandas.DataFrame({"c": [f"name {i}" for i in range(900)], "x": range(900)})
    held_out = pandas.DataFrame({"c": [f"other {i}" for i in range(900)], "x": range(900)})
    assert share_nearer_to_training(train, train, held_out, rng()).nearer.share == 1.0


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.278), (1.0, 0.722, 1.0), (0.5, 0.237, 0.763)])
def test_interval_of_wilson(share: float, low: float, high: float) -> None:
    found = wilson_interval(share, 10)
    assert [found.low, found.high] == pytest.approx([low, high], abs=1e-3)


def test_rules_that_real_rows_obey() -> None:
    start = np.arange(200) % 50
    real = pandas.DataFrame(
        {
            "start": start,
            "end": start + np.arange(200) % 7,
            "town": np.array(["Bonn", "Kiel", "Rom", "Pisa"])[start % 4],
            "country": np.array(["D", "D", "I", "I"])[start % 4],
        }
    )
    assert find_broken_rules(real, real) == ()
    synthetic = pandas.DataFrame(
        {
            "start": [3, 9, 60, 1.5],
            "end": [4, 2, 61, np.nan],
            "town": ["Bonn", "Rom", "Rom", None],
            "country": list("DDID"),
        }
    )
    broken = {rule.text: rule.broken for rule in find_broken_rules(real, synthetic)}
    assert broken == {
        "start ≤ end": 0.25,
        "start lies in the range of the real rows, 0 to 49": 0.25,
        "end lies in the range of the real rows, 0 to 54": 0.25,
        "start is a whole number": 0.25,
        "end is not missing": 0.25,
        "town is not missing": 0.25,
        "town decides country": 0.25,
    }


def test_rules_of_awkward_columns() -> None:
    real = pandas.DataFrame({"nothing": [np.nan] * 200, "flat": 1, "day": pandas.Timestamp("2024-01-31"), "x": "a"})
    synthetic = pandas.DataFrame({"nothing": [1.0], "flat": 2, "day": pandas.Timestamp("2024-02-01"), "x": "b"})
    assert [rule.text for rule in find_broken_rules(real, synthetic)] == [
        "flat lies in the range of the real rows, 1 to 1",
        "day lies in the range of the real rows, 2024-01-31 to 2024-01-31",
        "x is a category that real rows have",
    ]
