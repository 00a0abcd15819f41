"""A point before three digits each: of decimals or of thousands? Told where nothing else in the file shows it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from genfed.data.dataset import Dataset
from genfed.data.table import Table

N = 60
COUNTS = [int(v) for v in np.random.default_rng(0).integers(50, 30_000, N)]
MIXED = [f"{v:,}".replace(",", ".") for v in COUNTS]
"""898, 1.277, 29.426."""
POINTED = [f"{v:,}".replace(",", ".") for v in np.random.default_rng(1).integers(1000, 999_999, N)]


def load(file: Path, mark: str, cells: Sequence[str], others: Sequence[str], **set_to: Any) -> Dataset:
    """Loads a table of this column, another and a label."""
    rows = [f"{c}{mark}{o}{mark}{i % 2}" for i, (c, o) in enumerate(zip(cells, others, strict=True))]
    file.write_text("\n".join([f"v{mark}w{mark}y", *rows]) + "\n", "utf-8")
    return Table(path=str(file), label="y", scale="none", **set_to).load()


AGES = [str(20 + i % 50) for i in range(N)]
WEIGHTS = [f"{i / 7:.2f}" for i in range(N)]


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("gap", ["", "-", "n.a."])
def test_points_beside_whole_numbers_are_of_thousands(gap: str, mark: str, tmp_path: Path) -> None:
    cells = [gap if i % 9 == 5 else c for i, c in enumerate(MIXED)]
    data = load(tmp_path / "a.csv", mark, cells, AGES)
    plain = ["" if i % 9 == 5 else str(v) for i, v in enumerate(COUNTS)]
    assert torch.equal(data.train.x, load(tmp_path / "b.csv", mark, plain, AGES).train.x)
    said = [line for line in data.summary.warnings if "data.thousands" in line]
    (doubt,) = said
    assert "column 'v': the point in " in doubt
    assert doubt.endswith("is taken as one of thousands; set data.thousands or data.decimal")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_settings_decide(mark: str, tmp_path: Path) -> None:
    whole = load(tmp_path / "b.csv", mark, [str(v) for v in COUNTS], AGES)
    thousands = load(tmp_path / "a.csv", mark, MIXED, AGES, thousands=".")
    decimals = load(tmp_path / "a.csv", mark, MIXED, AGES, decimal=".")
    assert torch.equal(thousands.train.x, whole.train.x)
    assert decimals.train.x[:, 0].max() < 1000
    assert thousands.summary.warnings == decimals.summary.warnings == ()


def test_a_file_of_commas_takes_them_as_decimals_and_tells(tmp_path: Path) -> None:
    data = load(tmp_path / "a.csv", ",", MIXED, AGES)
    assert data.train.x[:, 0].max() < 1000
    (doubt,) = data.summary.warnings
    assert doubt.endswith("is taken as one of decimals; set data.thousands or data.decimal")


def test_points_in_every_number_are_of_decimals_and_told_in_files_of_semicolons(tmp_path: Path) -> None:
    for mark, told in ((";", 1), (",", 0), ("\t", 0)):
        data = load(tmp_path / "a.csv", mark, POINTED, AGES)
        assert data.train.x[:, 0].max() < 1000
        assert len(data.summary.warnings) == told
        assert all(w.endswith("decimals; set data.thousands or data.decimal") for w in data.summary.warnings)


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_another_column_shows_what_the_point_is(mark: str, tmp_path: Path) -> None:
    decimals = load(tmp_path / "a.csv", mark, MIXED, WEIGHTS)
    assert decimals.train.x[:, 0].max() < 1000
    assert decimals.summary.warnings == ()
    gaps = load(tmp_path / "a.csv", mark, MIXED, ["" if i == 3 else f"{w} kg" for i, w in enumerate(WEIGHTS)])
    assert gaps.train.x[:, 0].max() < 1000
    if mark != ",":
        commas = load(tmp_path / "a.csv", mark, MIXED, [w.replace(".", ",") for w in WEIGHTS])
        assert commas.train.x[:, 0].max() > 1000
        assert commas.summary.warnings == ()


def test_columns_that_are_no_numbers_are_not_told_of(tmp_path: Path) -> None:
    cells = [MIXED[i % 9] for i in range(N)]
    assert load(tmp_path / "a.csv", ";", cells, AGES, categorical=("v",)).summary.warnings == ()
    alone = load(tmp_path / "a.csv", ";", cells, AGES, features=("w",))
    assert not any("column" in line for line in alone.summary.warnings)


def test_texts_of_a_typed_file_are_told_of_where_they_are_numbers(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.table({"v": MIXED, "w": COUNTS, "y": [i % 2 for i in range(N)]}), tmp_path / "a.parquet"
    )
    table = Table(path=str(tmp_path / "a.parquet"), label="y", numeric=("v", "w"))
    (doubt,) = table.load().summary.warnings
    assert doubt.endswith("is taken as one of decimals; set data.thousands or data.decimal")


def _warn(tmp_path: Path, training: Sequence[str], other: Sequence[str], mark: str = ",", **set_to: Any) -> list[str]:
    """Returns what is said of points and commas where a test file writes its numbers in another way."""
    for name, cells in (("a.csv", training), ("b.csv", other)):
        quote = '"' if mark == "," else ""
        rows = [f"{quote}{cell}{quote}{mark}{20 + i % 50}{mark}{i % 2}" for i, cell in enumerate(cells)]
        (tmp_path / name).write_text("\n".join([f"v{mark}w{mark}y", *rows]) + "\n", "utf-8")
    said = Table(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "b.csv"), label="y", **set_to).load()
    return [line for line in said.summary.warnings if "b.csv" in line and "is taken as one of" in line]


LARGE = [4826, *(int(v) for v in np.random.default_rng(2).integers(1000, 9000, N - 1))]
PLAIN = [str(v) for v in LARGE]
COMMAS = [f"{v:,}" for v in LARGE]
POINTS = [c.replace(",", ".") for c in COMMAS]
HALVES = [f"{v}.5" for v in LARGE]
DECIMALS = [f"{v / 1000:.2f}" for v in LARGE]


@pytest.mark.parametrize(
    ("training", "other", "mark", "read"),
    [
        (PLAIN, POINTS, ",", "decimals"),
        (COMMAS, POINTS, ",", "decimals"),
        (HALVES, POINTS, ",", "decimals"),
        ([h.replace(".", ",") for h in HALVES], COMMAS, ";", "decimals"),  # read as 4.826
        (PLAIN, POINTS[:1], ",", "decimals"),
        ([f"-{p}" for p in PLAIN], [f"-{p}" for p in POINTS], ",", "decimals"),
        ([d.replace(".", ",") for d in DECIMALS], POINTS, ";", "thousands"),  # read as 4826
    ],
)
def test_another_file_in_the_other_style_is_told_of(
    training: Sequence[str], other: Sequence[str], mark: str, read: str, tmp_path: Path
) -> None:
    (line,) = _warn(tmp_path, training, other, mark)
    name = "comma" if mark == ";" and read == "decimals" else "point"
    value = LARGE[0] / 1000 if read == "decimals" else LARGE[0]
    sign = "-" if other[0].startswith("-") else ""
    assert f"b.csv: column 'v': the {name} in {other[0]!r} is taken as one of {read} ({sign}{value:g})" in line
    assert "data.thousands or data.decimal" in line


@pytest.mark.parametrize(
    ("training", "other", "mark", "set_to"),
    [
        (POINTS, POINTS[::-1], ",", {}),  # three decimals in both
        (DECIMALS, POINTS, ",", {}),  # more decimals than in training, of the same size
        (PLAIN, COMMAS, ";", {"thousands": ","}),
        (PLAIN, DECIMALS, ",", {}),  # thousands have three digits
        (PLAIN, [f"0.{v}" for v in LARGE], ",", {}),
        (PLAIN, POINTS, ",", {"decimal": "."}),  # the settings say what it is
        (POINTS, COMMAS, ";", {"thousands": ".", "decimal": ","}),
        (MIXED, MIXED[::-1], ";", {}),
    ],
)
def test_what_is_written_as_in_training_is_not_told_of(
    training: Sequence[str], other: Sequence[str], mark: str, set_to: dict[str, str], tmp_path: Path
) -> None:
    assert _warn(tmp_path, training, other, mark, **set_to) == []
