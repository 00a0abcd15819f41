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
