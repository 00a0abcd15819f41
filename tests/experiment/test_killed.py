"""A run that is killed at any moment, or loses its workers, ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from genfed.core.errors import GenfedError
from tests.conftest import left_by, start, tiny

TOYS = "tests.toys"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "genfed", *words]


def test_kill_9_at_any_moment_and_resume(tmp_path: Path) -> None:
    """Kills the run three times, each at a random moment after it has got further, then lets it finish."""
    config = tiny("gefl", "local", compute={"workers": 2}, defaults={"rounds": 12}, evaluation={"every": 3})
    start(config | {"compute": {"workers": 0}}, tmp_path / "whole")
    file, out = tmp_path / "tiny.toml", tmp_path / "killed"
    file.write_text(tomli_w.dumps(config))
    moments = random.Random(7)
    metrics = out / "metrics.jsonl"
    for kill in range(3):
        run = subprocess.Popen(command("run", str(file), "--out", str(out), "--resume"), stderr=subprocess.DEVNULL)
        before = metrics.stat().st_size if metrics.exists() else 0
        give_up = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < give_up:
            if metrics.exists() and metrics.stat().st_size > before + 2000:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        assert run.poll() is None, f"it ended before kill {kill}"
        run.send_signal(signal.SIGKILL)
        run.wait()
    done = subprocess.run(command("run", str(file), "--out", str(out), "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert left_by(out) == left_by(tmp_path / "whole")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_kill_stops_cleanly_and_says_how_to_go_on(tmp_path: Path, sign: int) -> None:
    config = tiny("fedavg", compute={"workers": 1}, defaults={"rounds": 5000})
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps(config))
    run = subprocess.Popen(
        command("run", str(file), "--out", str(out)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    give_up = time.monotonic() + 60
    while not (out / "trials").exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(run.pid, sign) if sign == signal.SIGTERM else os.killpg(run.pid, sign)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert f"genfed run {file} --out {out} --resume" in err
    assert not _children_of(out), "workers were left behind"


def _children_of(out: Path) -> list[str]:
    """Worker processes that still write to this run's log."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").readlink() == out / "workers.log":
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_worker_that_dies_is_reported_and_its_client_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "killed"
    monkeypatch.setenv("GENFED_TEST_KILL", str(flag))
    changes = {"architectures": [f"{TOYS}:KillsOnce", "linear", "linear", "linear"]}
    flag.touch()
    start(tiny("fedavg", federation=changes), tmp_path / "whole")
    flag.unlink()
    report = start(tiny("fedavg", federation=changes, compute={"workers": 2}), tmp_path / "run")
    (trial,) = report.trials
    assert len(trial.failures) == 1
    assert "a worker process died (killed by SIGKILL; out of memory?) while client 0 was working" in trial.failures[0]
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_client_that_kills_its_worker_twice_is_left_out(tmp_path: Path) -> None:
    changes = {"architectures": ["linear", "linear", "linear", f"{TOYS}:KillsAlways"]}
    report = start(tiny("fedavg", federation=changes, compute={"workers": 1}, defaults={"rounds": 1}), tmp_path / "run")
    assert any("client 3 excluded: its worker process died twice" in line for line in report.trials[0].failures)
    assert len(report.trials[0].clients) == 4


def test_a_client_that_takes_too_long_is_left_out(tmp_path: Path) -> None:
    changes = {"architectures": ["linear", "linear", "linear", f"{TOYS}:Sleeps"], "timeout": 12.0}
    config = tiny("fedavg", federation=changes, compute={"workers": 2}, defaults={"rounds": 1})
    report = start(config, tmp_path / "run")
    assert "train round 1: client 3 excluded: took longer than 12 s" in report.trials[0].failures


def test_clients_that_fail_are_named_and_left_out(tmp_path: Path) -> None:
    for toy, says in (
        ("Raises", "ValueError: this network cannot be trained; toys.py, line 102, in Raises.forward"),
        ("Diverges", "Model.classifier['layer.weight'] holds numbers that are not finite"),
    ):
        changes = {"architectures": ["linear", "linear", "linear", f"{TOYS}:{toy}"]}
        report = start(tiny("fedavg", federation=changes), tmp_path / toy)
        assert report.trials[0].failures == (
            f"train round 1: client 3 excluded: {says}",
            f"train round 2: client 3 excluded: {says}",
        )
        kept = tmp_path / toy / "trials" / "fedavg" / "seed-0" / "clients" / "3"
        assert not kept.exists(), "nothing is kept of a step whose reply cannot be used"


def test_a_reply_of_the_wrong_shape_is_left_out(tmp_path: Path) -> None:
    report = start(tiny("odd", method={"odd": {"kind": f"{TOYS}:WrongShape"}}), tmp_path / "run")
    (line, *_) = report.trials[0].failures
    assert "client 1 excluded: classifier['extractor.1.weight'] is torch.float32 (1, 64), not " in line


def test_too_few_answers_stop_the_run_at_its_last_checkpoint(tmp_path: Path) -> None:
    changes = {"architectures": [f"{TOYS}:Raises"], "quorum": 0.5}
    with pytest.raises(GenfedError, match="0 of 4 clients answered and the quorum is 2; client 0: ValueError"):
        start(tiny("fedavg", federation=changes), tmp_path / "run")
    assert (tmp_path / "run" / "trials" / "fedavg" / "seed-0" / "state.safetensors").exists()
