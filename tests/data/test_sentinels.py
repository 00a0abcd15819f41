"""Numbers and days that mean missing are suspected by where they stand and how often, not by a list alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genfed.data.sentinels import find_sentinels
from tests.data.test_table_readings import NUMBERS, N, load, schema


@pytest.mark.parametrize(
    "marks",
    [("2147483647",), ("-2147483648", "2147483647"), ("-32768",), ("32767",), ("1e+20",), ("65535",), ("77777",),
     ("9997", "9998", "9999"), ("-1e+30",)],
)  # fmt: skip
def test_marks_of_missing_numbers_are_named(marks: tuple[str, ...], tmp_path: Path) -> None:
    values = [marks[i // 9 % len(marks)] if i % 9 == 0 else str(v % 200) for i, v in enumerate(NUMBERS)]
    said = load(tmp_path, {"v": values}).summary.warnings
    words = "stands far from the other numbers; if it means missing, add it to data.missing"
    assert said == tuple(f"column 'v': {mark} {words}" for mark in marks)
    assert load(tmp_path, {"v": values}, missing=marks).summary.warnings == ()


@pytest.mark.parametrize("mark", ["9999-12-31", "1900-01-01", "1970-01-01", "1700-05-05", "2999-12-31"])
def test_marks_of_missing_days_are_named(mark: str, tmp_path: Path) -> None:
    values = [mark if i % 9 == 0 else f"20{v % 20:02}-01-{v % 28 + 1:02}" for i, v in enumerate(NUMBERS)]
    (line,) = load(tmp_path, {"v": values}).summary.warnings
    assert line == f"column 'v': {mark} stands far from the other days; if it means missing, add it to data.missing"
    data = load(tmp_path, {"v": values}, missing=(mark,))
    assert data.summary.warnings == ()
    assert "missing)" in data.summary.facts[1]


def test_days_of_birth_hold_more_of_a_known_mark_than_of_any_day() -> None:
    days = np.random.default_rng(0).integers(-18000, 15000, N).astype(float)
    days[::9] = -25567
    assert find_sentinels(days, "day") == [-25567]
    assert find_sentinels(days, "number") == []


@pytest.mark.parametrize("mark", ["0000-00-00", "n.d.", "k.A.", "o.A.", "not done"])
def test_words_and_days_that_are_none_are_missing(mark: str, tmp_path: Path) -> None:
    values = [mark if i % 5 == 0 else f"2020-01-{v % 28 + 1:02}" for i, v in enumerate(NUMBERS)]
    data = load(tmp_path, {"v": values})
    assert list(schema(data).numbers) == ["noise", "v"]
    assert data.summary.warnings == (f"column 'v': {mark!r} among numbers is taken as missing",)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["normal", "lognormal", "poisson", "uniform", "exponential"]), st.booleans()
)
def test_ordinary_numbers_are_not_suspected(seed: int, kind: str, rounded: bool) -> None:
    values = np.asarray(getattr(np.random.default_rng(seed), kind)(size=200), float) * 10
    assert find_sentinels(np.round(values) if rounded else values) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(20, 1e9), st.sampled_from([-1, 1]))
def test_a_repeated_number_far_from_the_others_is_suspected(seed: int, far: float, sign: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, 60)
    values[rng.permutation(60)[:5]] = sign * far
    assert find_sentinels(values) == [sign * far]
    once = np.append(rng.uniform(0, 1, 60), sign * (far + 0.5))
    assert find_sentinels(once[once != 99999]) == []


@pytest.mark.parametrize("mark", [-1.0, -9.0, -99.0, -999.0])
def test_a_negative_mark_beside_numbers_that_are_not_negative(mark: float) -> None:
    """However near it is to them: −9 is closer to ages than these are to one another."""
    rng = np.random.default_rng(0)
    others = rng.integers(0, 3000, 200).astype(float)
    assert find_sentinels(np.concatenate([others, np.full(16, mark)])) == [mark]
    assert find_sentinels(np.concatenate([others, -others, np.full(4, mark)])) == []


def test_a_few_levels_around_zero_are_numbers() -> None:
    assert find_sentinels(np.repeat([-1.0, 0.0, 1.0, 2.0, 3.0], 20)) == []
