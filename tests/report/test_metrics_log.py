import math
from pathlib import Path
from typing import Any

import pytest

from genfed.core.errors import GenfedError
from genfed.report.metrics_log import MetricsLog, read_metrics, retain_metrics


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [
        {"method": "é", "client": None, "failed": {"3": "x\ny"}},
        {"correct": [1, 2], "loss": 0.1},
    ]
    with MetricsLog(path) as metrics:
        metrics.write(rows)
    assert read_metrics(path) == rows


def test_rows_are_on_disk_after_a_flush(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as metrics:
        metrics.write([{"a": 1}])
        metrics.flush()
        assert read_metrics(tmp_path / "m") == [{"a": 1}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(tmp_path: Path, value: float) -> None:
    with MetricsLog(tmp_path / "m") as metrics:
        metrics.write([{"loss": value, "more": [value]}])
    assert read_metrics(tmp_path / "m") == [{"loss": None, "more": [None]}]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with MetricsLog(path) as metrics:
        metrics.write([{"step": 0}, {"step": 1}])
    retain_metrics(path, lambda rows: [row for row in rows if row["step"] < 1])
    with MetricsLog(path) as metrics:
        metrics.write([{"step": 2}])
    assert read_metrics(path) == [{"step": 0}, {"step": 2}]
    retain_metrics(tmp_path / "new", lambda rows: rows)
    assert read_metrics(tmp_path / "new") == []
    assert {f.name for f in tmp_path.iterdir()} == {"m", "new"}


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"a": 1}\n{"b": 2}')
    assert read_metrics(path) == [{"a": 1}]
    with MetricsLog(path) as metrics:
        metrics.write([{"c": 3}])
    assert read_metrics(path) == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize(
    "line", ["{", "", "[1]", "\x00\x00", "[" * 100_000], ids=["cut", "empty", "list", "null", "deep"]
)
def test_other_damage_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m").write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(GenfedError, match=r"m, line 2: not a row"):
        read_metrics(tmp_path / "m")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="no such file"):
        read_metrics(tmp_path / "none")
