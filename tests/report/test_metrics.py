import math
from pathlib import Path
from typing import Any

import pytest

from genfed.core.errors import GenfedError
from genfed.report.metrics import Metrics, read, truncate
from genfed.report.tensorboard import open_tensorboard


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [
        {"method": "é", "client": None, "failed": {"3": "x\ny"}},
        {"correct": [1, 2], "loss": 0.1},
    ]
    with Metrics(path) as metrics:
        metrics.write(rows)
    assert read(path) == rows


def test_rows_are_on_disk_after_a_flush(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m") as metrics:
        metrics.write([{"a": 1}])
        length = metrics.length
        metrics.flush()
        assert read(tmp_path / "m") == [{"a": 1}]
        assert (tmp_path / "m").stat().st_size == length == len('{"a": 1}\n')


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(tmp_path: Path, value: float) -> None:
    with Metrics(tmp_path / "m") as metrics:
        metrics.write([{"loss": value, "more": [value]}])
    assert read(tmp_path / "m") == [{"loss": None, "more": [None]}]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with Metrics(path) as metrics:
        metrics.write([{"step": 0}])
        checkpoint = metrics.length
        metrics.write([{"step": 1}])
    truncate(path, checkpoint)
    with Metrics(path) as metrics:
        assert metrics.length == checkpoint
        metrics.write([{"step": 2}])
    assert read(path) == [{"step": 0}, {"step": 2}]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"a": 1}\n{"b": 2}')
    assert read(path) == [{"a": 1}]
    with Metrics(path) as metrics:
        metrics.write([{"c": 3}])
    assert read(path) == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize("line", ["{", "", "[1]", "\x00\x00"])
def test_other_damage_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m").write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(GenfedError, match=r"m, line 2: not a row"):
        read(tmp_path / "m")


def test_a_file_that_lacks_what_the_checkpoint_saw_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("{}\n")
    with pytest.raises(GenfedError, match="has 3 bytes, but its checkpoint was made when it had 9"):
        truncate(tmp_path / "m", 9)
    with pytest.raises(GenfedError, match="has 0 bytes"):
        truncate(tmp_path / "none", 9)
    with pytest.raises(GenfedError, match="no such file"):
        read(tmp_path / "none")


def test_tensorboard_has_every_point_once_after_a_resume(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    common = {"method": "a/b", "seed": 2, "client": 0, "architecture": "mlp", "examples": 1}
    losses: list[dict[str, Any]] = [
        {**common, "phase": "train", "step": step, "round": step, "loss": 2.0 - step} for step in range(3)
    ]
    score = {**common, "phase": "evaluate", "step": 2, "round": 0, "correct": [1, 0], "total": [1, 1]}
    board = open_tensorboard(tmp_path / "tensorboard")
    assert board is not None
    for loss in losses:
        board.write([loss])
    board.close()
    board = open_tensorboard(tmp_path / "tensorboard", losses[:2])  # killed after step 1
    assert board is not None
    board.write([losses[2]])
    board.write([score])
    board.close()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / "a_b" / "seed-2")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(2, 0.5)]


def test_without_the_extra_there_is_no_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    assert open_tensorboard(tmp_path / "tensorboard") is None
