"""Types of columns that only a Parquet file has: one value gives one number, whatever the type's unit and width."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from genfed.data.features import TableSchema
from genfed.data.table import Table

N = 60
SECONDS = np.random.default_rng(0).integers(1, 600, N)
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def write(file: Path, column: Any) -> Table:
    labels = [i % 2 for i in range(N)]
    parquet.write_table(pyarrow.table({"v": column, "w": SECONDS.tolist()[::-1], "y": labels}), file)
    return Table(path=str(file), label="y", scale="none")


def durations(unit: str) -> Any:
    return pyarrow.array([None, *(SECONDS[1:] * TICKS[unit]).tolist()], pyarrow.duration(unit))


@pytest.mark.parametrize("unit", list(TICKS))
def test_durations_are_seconds(unit: str, tmp_path: Path) -> None:
    data = write(tmp_path / f"{unit}.parquet", durations(unit)).load()
    assert data.summary.facts[1].startswith("numbers: v 4 to 588 (1 missing), ")  # of the training rows
    assert data.summary.warnings == ()
    for other in TICKS:
        table = write(tmp_path / "new.parquet", durations(other))
        (rows,) = table.read(str(table.path), data.task, data.encoder)
        assert rows.x[1:, 0].tolist() == SECONDS[1:].tolist()
        assert rows.warnings == ()


def test_parts_of_a_second_and_long_durations_are_kept(tmp_path: Path) -> None:
    ticks = [2**53 + 1, *range(1, N)]
    data = write(tmp_path / "a.parquet", pyarrow.array(ticks, pyarrow.duration("ms"))).load()
    assert data.summary.facts[1].startswith("numbers: v 0.001 to 9.0072e+12")


@pytest.mark.parametrize("categorical", [None, ("v",)])
def test_floats_of_16_bits_are_numbers_as_they_are_written(categorical: tuple[str, ...] | None, tmp_path: Path) -> None:
    tenths = [round(i % 9 / 10, 1) for i in range(N)]
    half = write(tmp_path / "half.parquet", pyarrow.array(np.array(tenths, np.float16)))
    whole = write(tmp_path / "whole.parquet", pyarrow.array(tenths))
    found = []
    for table in (half, whole):
        data = Table(path=table.path, label="y", scale="none", categorical=categorical).load()
        assert isinstance(data.encoder, TableSchema)
        found.append((data.train.x.tolist(), data.encoder, data.summary.warnings))
    assert found[0] == found[1]
    gaps = pyarrow.array([None, *np.array(tenths[1:], np.float16)], pyarrow.float16())
    assert "v 0 to 0.8 (1 missing)" in write(tmp_path / "gap.parquet", gaps).load().summary.facts[1]
