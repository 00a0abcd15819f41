"""A user's own code that exits, hangs, changes the working directory or simply has a bug."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import genfed
from genfed.cli import main as cli
from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.engines import worker_pool
from genfed.engines.client_runner import ClientRunner
from genfed.engines.messages import RoundId
from genfed.engines.round import Failure, Job
from genfed.engines.worker_pool import WorkerPool
from genfed.experiment import checks
from genfed.experiment.run_folder import RunFolder
from tests.conftest import start, tiny

TOYS = "tests.toys"
CODE = """
import os, sys, time
import torch
from torch import nn
import genfed
from genfed.data.digits import Digits
from genfed.methods.fedavg import FedAvg


class Net(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.layer = nn.Linear(torch.Size(task.shape).numel(), len(task.classes))

    def forward(self, x):
        self.act()
        return self.layer(x.flatten(1))

    def act(self):
        pass


class Moves(Net):
    def act(self):
        os.chdir("/")


class MovesAtOnce(Net):
    def __init__(self, task):
        super().__init__(task)
        os.chdir("/")


class Hangs(nn.Module):
    def __init__(self, task):
        super().__init__()
        time.sleep(1000)


class ExitsAtOnce(nn.Module):
    def __init__(self, task):
        sys.exit("no licence")


@genfed.settings
class Data(Digits):
    act: str = ""

    def load(self):
        if self.act == "bug":
            return [][3]
        if self.act == "file":
            open("no/such/file")
        if self.act == "exit":
            sys.exit(0)
        if self.act == "move":
            os.chdir("/")
        return super().load()


@genfed.settings
class Exiting(FedAvg):
    def init(self, server):
        sys.exit("not today")
"""


@pytest.fixture(scope="module", autouse=True)
def _module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_code.py").write_text(CODE)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, config: dict[str, object]) -> str:
    file = folder / "c.toml"
    file.write_text(tomli_w.dumps(config))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file), "--out", str(folder / "run")])
    err = capsys.readouterr().err
    assert ended.value.code == 2, err
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize(
    ("name", "says"),
    [("Exits", "SystemExit: 4; toys.py, line "), ("RaisesOdd", "OddError: not an Exception; toys.py, line ")],
)
@pytest.mark.usefixtures("in_pool")
def test_a_failure_reads_the_same_with_and_without_workers(tmp_path: Path, name: str, says: str) -> None:
    changes = {"architectures": ["linear", "linear", "linear", f"{TOYS}:{name}"]}
    found = []
    for workers in (0, 2):
        config = tiny("fedavg", federation=changes, compute={"workers": workers}, defaults={"rounds": 1})
        report = start(config, tmp_path / str(workers))
        (line,) = report.trials[0].failures
        found.append(line)
    assert found[0] == found[1]
    assert f"client 3 excluded: {says}" in found[0]
    assert found[0].endswith(f", in {name}.forward")


@pytest.mark.usefixtures("in_pool")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_of_own_code_stops_the_run(tmp_path: Path, workers: int) -> None:
    changes = {"architectures": [f"{TOYS}:Interrupts"]}
    with pytest.raises(KeyboardInterrupt):
        start(tiny("fedavg", federation=changes, compute={"workers": workers}), tmp_path / "run")


SLOW_END = """
import os, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
pipe.send_bytes(b"ready")
pipe.recv_bytes()
pipe.recv_bytes()
pipe.close()
time.sleep(1)
os._exit(9)
"""


def first_outcome(code: str, monkeypatch: pytest.MonkeyPatch, **limits: float) -> list[Any]:
    for name, seconds in limits.items():
        monkeypatch.setattr(worker_pool, name, seconds)
    workers = WorkerPool([sys.executable, "-c", code], 1)
    try:
        workers.open("trial")
        info = genfed.ClientInfo(0, "linear", 1)
        return [outcome for _, outcome in workers.exchange(RoundId("train", 0, 0), [Job(info, Packed({}, "{}"))])]
    finally:
        workers.close()


def test_a_worker_that_ends_slowly_was_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_outcome(SLOW_END, monkeypatch) == [Failure("its worker process died twice (exit code 9)")]


def test_a_worker_that_closes_its_pipe_and_stays_is_no_kill_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    code = SLOW_END.replace("sleep(1)", "sleep(100)")
    (outcome,) = first_outcome(code, monkeypatch, EXIT_SECONDS=0.5)
    assert outcome.reason == "its worker process died twice (it closed its pipe and had not ended 0.5 s later)"


def test_a_worker_that_does_not_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(GenfedError, match=r"^a worker process did not start within 1 s; .*--resume$"):
        first_outcome("import time; time.sleep(100)", monkeypatch, START_SECONDS=1.0)
    assert time.monotonic() - started < 30


def test_opening_a_trial_that_exits_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"work": {"phase": "train", "round": 0, "number": 0}, "client": 0}
    pipe = iter([b'{"open": "x"}', worker_pool._frame(job, b"")])
    sent: list[bytes] = []

    class Pipe:
        def __init__(self, descriptor: int) -> None: ...

        def send_bytes(self, message: bytes) -> None:
            sent.append(message)

        def recv_bytes(self) -> bytes:
            if (message := next(pipe, None)) is None:
                raise EOFError
            return message

    def open_runner(text: str) -> ClientRunner:
        raise SystemExit(3)

    monkeypatch.setattr(worker_pool, "Connection", Pipe)
    monkeypatch.setattr(worker_pool, "from_bytes", lambda body: Packed({}, "{}"))
    worker_pool.serve_worker(0, open_runner)
    assert sent[0] == worker_pool.READY
    assert b"a worker cannot open the trial: SystemExit: 3" in sent[1]


def test_an_architecture_that_hangs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.5)
    config = tiny("fedavg", federation={"architectures": ["own_code:Hangs"]})
    assert "architecture own_code:Hangs took longer than 0.5 s" in refused(capsys, tmp_path, config)


def test_an_architecture_that_exits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("fedavg", federation={"architectures": ["own_code:ExitsAtOnce"]})
    line = refused(capsys, tmp_path, config)
    assert "SystemExit: no licence; own_code.py, line " in line
    assert "in ExitsAtOnce.__init__" in line


@pytest.mark.parametrize(
    ("act", "says"),
    [("bug", "IndexError: list index out of range"), ("file", "FileNotFoundError: "), ("exit", "SystemExit: 0")],
)
def test_a_bug_in_a_source_names_class_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], act: str, says: str
) -> None:
    line = refused(capsys, tmp_path, {**tiny("fedavg"), "data": {"kind": "own_code:Data", "size": 8, "act": act}})
    assert says in line
    assert "; own_code.py, line " in line
    assert ", in Data.load" in line


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(tomli_w.dumps({**tiny("fedavg"), "data": {"kind": "own_code:Data", "act": "bug"}}))
    with pytest.raises(IndexError):
        cli.main(["--debug", "run", str(file), "--out", str(tmp_path / "run")])


def test_a_fault_of_genfed_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "read_report", dict.__getitem__)
    with pytest.raises(TypeError):
        cli.main(["compare", str(tmp_path), "--out", str(tmp_path / "page")])


def test_an_exit_of_a_method_does_not_end_the_caller(tmp_path: Path) -> None:
    config = tiny("mine", methods=["mine"], method={"mine": {"kind": "own_code:Exiting", "rounds": 1}})
    config["defaults"] = {}
    with pytest.raises(GenfedError, match=r"^SystemExit: not today; own_code\.py, line \d+, in Exiting\.init$"):
        start(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["Moves", "MovesAtOnce"])
def test_own_code_that_changes_the_directory_moves_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"kind": "own_code:Data", "size": 8, "act": "move"}
    config = {**tiny("fedavg", federation={"architectures": [f"own_code:{name}"]}), "data": data}
    start(config, Path("runs/here"))
    assert (tmp_path / "runs/here/report.json").exists()
    assert Path.cwd() == tmp_path
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "runs/here", "--out", "model", "--trust-code"])
    assert ended.value.code == 0
    assert (tmp_path / "model/model.json").exists()


def test_the_log_holds_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in a round")

    monkeypatch.setattr("genfed.experiment.run._run_trials", fail)
    with pytest.raises(ZeroDivisionError):
        start(tiny("fedavg"), tmp_path / "run")
    assert "    ZeroDivisionError: in a round" in (tmp_path / "run/run.log").read_text()


def test_arguments_that_are_no_text_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["run", "c.toml", "--out", os.fsdecode(b"\xff\xfe")], ["list", "methods", "a\0b"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert "not UTF-8 text" in capsys.readouterr().err
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["list", "methods"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "genfed: the working directory has been deleted: change to another one\n"
