"""What looks wrong in a table and was once passed over without a word."""

import re
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from genfed.core.errors import GenfedError
from genfed.data.npz import Npz
from genfed.data.table import Table
from tests.data.test_table_readings import NOISE, NUMBERS, N, load, schema


@pytest.mark.parametrize("unit", ["%", " %", "‰"])
def test_numbers_without_the_sign_of_per_cent_are_told_of(unit: str, tmp_path: Path) -> None:
    mixed = [f"{v % 90}{unit}" if i % 2 else f"{v % 90 / 100}" for i, v in enumerate(NUMBERS)]
    (line, *_) = load(tmp_path, {"v": mixed}).summary.warnings
    assert re.match(
        rf"column 'v': several units: (none|{unit.strip()}) \d+ \('.*; taken as categories; write the", line
    )
    assert load(tmp_path, {"v": [text if unit in text else "" for text in mixed]}).summary.warnings == ()
    with pytest.raises(GenfedError, match="column 'v': several units"):
        load(tmp_path, {"v": mixed}, numeric=("v",))
    (line,) = load(tmp_path, {"v": [f"{v}{' kg' * (i % 2)}" for i, v in enumerate(NUMBERS)]}).summary.warnings
    assert re.search(r"column 'v': several units: none 60 \('(\d+)' is \1 kg\), kg 60 ", line)


@pytest.mark.parametrize("long", ["9" * 5000, "1e999", f"-{'9' * 5000}.0"])
def test_labels_codes_and_groups_may_be_numbers_of_any_length(long: str, tmp_path: Path) -> None:
    texts = [long if i % 3 else "1" for i in range(N)]
    rows = "".join(f"{noise},{i % 7},{text}\n" for i, (noise, text) in enumerate(zip(NOISE, texts, strict=True)))
    (tmp_path / "a.csv").write_text("a,b,c\n" + rows)
    data = Table(path=str(tmp_path / "a.csv"), label="c").load()
    assert sorted(data.task.classes) == sorted({long, "1"})
    data = Table(path=str(tmp_path / "a.csv"), label="b", categorical=("c",)).load()
    assert schema(data).categories == {"c": tuple(sorted({long, "1"}))}
    groups = "".join(f"{noise},{i % 2},{long if i % 3 else i // 3}\n" for i, noise in enumerate(NOISE))
    (tmp_path / "a.csv").write_text("a,b,c\n" + groups)
    data = Table(path=str(tmp_path / "a.csv"), label="b", group="c").load()
    assert long in (*data.columns["c"], *(data.validation_columns or {})["c"], *(data.test_columns or {})["c"])


def test_equal_rows_of_several_classes_are_told_of(tmp_path: Path) -> None:
    rows = [f"{noise},{i % 7}" for i, noise in enumerate(NOISE)]
    lines = [
        *(f"{row},{i % 2}" for i, row in enumerate(rows)),
        *(f"{row},{(i + 1) % 2}" for i, row in enumerate(rows[:5])),
    ]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    says = "5 rows of several classes: the same values stand under different labels"
    assert says in Table(path=str(tmp_path / "a.csv"), label="y").load().summary.warnings
    x, y = np.array([list(map(float, line.split(","))) for line in lines])[:, :2], np.arange(len(lines)) % 2
    y[N:] = 1 - y[:5]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert says in Npz(path=str(tmp_path / "a.npz")).load().summary.warnings


def test_groups_that_differ_in_capitals_are_told_of(tmp_path: Path) -> None:
    for letters, told in (("Pp", True), ("pp", False)):
        groups = [f"{letters[i % 2]}{i // 4}" for i in range(N)]
        said = load(tmp_path, {"g": groups}, group="g").summary.warnings
        line = "groups by g that differ only in capitals or spaces are kept apart; write them alike"
        assert (line in said) is told


@pytest.mark.parametrize(
    ("mark", "every", "far"), [(-999.0, 9, True), (-99.0, 9, True), (-9.0, 9, True), (-9.0, N, False), (999.0, 9, True)]
)
def test_marks_of_missing_values_are_told_of_among_numbers_of_both_signs(
    mark: float, every: int, far: bool, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).normal(size=(N, 2))
    values[::every, 1] = mark
    np.savez(tmp_path / "a.npz", x=values, y=np.arange(N) % 2)
    said = Npz(path=str(tmp_path / "a.npz")).load().summary.warnings
    line = f"{mark:g} in feature 1 stands far from the other numbers; if it means missing, fill it in"
    assert said == ((line,) if far else ())
    said = load(tmp_path, {"v": values[:, 1].tolist()}).summary.warnings
    line = f"column 'v': {mark:g} stands far from the other numbers; if it means missing, add it to data.missing"
    assert said == ((line,) if far else ())


def test_codes_that_read_as_powers_of_ten_are_told_of(tmp_path: Path) -> None:
    codes = [f"{v % 89 + 10}E{v % 7}" for v in NUMBERS]
    line = f"column 'v': {codes[0]!r} is read as the number {float(codes[0]):.15g}; if it is a code, name it in "
    for cells in (codes, [c if i % 5 else "" for i, c in enumerate(codes, 1)]):
        said = load(tmp_path, {"v": cells}).summary.warnings
        assert f"{line}data.categorical" in said
    one = ["12E4", *(str(v) for v in NUMBERS[1:])]  # among codes of digits alone
    assert any("'12E4' is read as the number 120000; if" in w for w in load(tmp_path, {"v": one}).summary.warnings)
    for numbers in ([f"{v}e+3" for v in NUMBERS], [f"{v}.5E3" for v in NUMBERS]):  # as programs write them
        assert load(tmp_path, {"v": numbers}).summary.warnings == ()
    assert load(tmp_path, {"v": codes}, numeric=("v",)).summary.warnings == ()
    few = [["36E3", "36A3", "12E4"][i % 3] for i in range(N)]
    assert schema(load(tmp_path, {"v": few}, categorical=("v",))).categories["v"] == ("12E4", "36A3", "36E3")
    few = [["36E3", "12E4"][i % 2] for i in range(N)]
    assert schema(load(tmp_path, {"v": few}, categorical=("v",))).categories["v"] == ("12E4", "36E3")


def test_a_class_may_be_called_like_a_power_of_ten(tmp_path: Path) -> None:
    rows = "".join(f"{noise},{['36E3', '12E4'][i % 2]}\n" for i, noise in enumerate(NOISE))
    (tmp_path / "a.csv").write_text("a,y\n" + rows)
    assert Table(path=str(tmp_path / "a.csv"), label="y").load().task.classes == ("12E4", "36E3")


@pytest.mark.parametrize("least", [2**53 + 1, 123_456_789_012_345_678_901])
def test_whole_numbers_that_are_rounded_are_told_of(least: int, tmp_path: Path) -> None:
    ids = [least + v for v in NUMBERS]
    line = "column 'v': whole numbers as large as {} are rounded (ids?); name it in data.drop, or in data.categorical"
    assert line.format(ids[0]) in load(tmp_path, {"v": ids}).summary.warnings
    if least < 2**63:
        columns = {"v": ids, "w": NOISE, "y": [i % 2 for i in range(N)]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        said = Table(path=str(tmp_path / "a.parquet"), label="y").load().summary.warnings
        assert any("whole numbers as large as 90071992547" in warning for warning in said)
    large = [f"{v}.25e20" for v in NUMBERS]
    exact = [10**15 + 7 * v for v in NUMBERS]
    assert not any("rounded" in w for v in (large, exact) for w in load(tmp_path, {"v": v}).summary.warnings)
