"""Text files without a line that names the columns."""

from pathlib import Path

import numpy as np
import pytest

from genfed.core.errors import GenfedError
from genfed.data.table import Table

ROWS = [f"{v:.3f},{i % 7},{i % 2}" for i, v in enumerate(np.random.default_rng(0).normal(size=60))]


def write(file: Path, *first: str) -> str:
    file.write_text("\n".join([*first, *ROWS]) + "\n")
    return str(file)


def test_names_can_be_set(tmp_path: Path) -> None:
    data = Table(path=write(tmp_path / "a.csv"), label="y", names=("a", "b", "y")).load()
    again = Table(path=write(tmp_path / "b.csv", "a,b,y"), label="y").load()
    assert data.train.x.equal(again.train.x)
    assert data.summary.facts[0].endswith("60 rows, 3 columns")
    assert not any("first line" in line for line in data.summary.warnings)


def test_a_row_that_is_taken_as_the_header_is_told_of(tmp_path: Path) -> None:
    data = Table(path=write(tmp_path / "a.csv", "0.5,3,1"), label="1").load()
    says = "the first line (0.5, 3, 1) is taken as the names of the columns; if it is a row, name them in data.names"
    assert f"{tmp_path / 'a.csv'}: {says}" in data.summary.warnings
    with pytest.raises(GenfedError, match="the first line is no header: a number stands twice in it; name the columns"):
        Table(path=write(tmp_path / "b.csv", "1,3,1"), label="1").load()
    with pytest.raises(GenfedError, match=r"column 'y' is not there; there are: 0\.5, 3, 1$"):
        Table(path=write(tmp_path / "a.csv", "0.5,3,1"), label="y").load()


@pytest.mark.parametrize("header", ["0,1,2", "1,2,3", "a,2,7"])
def test_numbers_that_count_the_columns_are_a_header(header: str, tmp_path: Path) -> None:
    data = Table(path=write(tmp_path / "a.csv", header), label=header.split(",")[-1]).load()
    assert not any("first line" in line for line in data.summary.warnings)
