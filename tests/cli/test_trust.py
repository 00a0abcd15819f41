"""Whose code runs: a config's own, and never that of the folder of a run that anyone may have made."""

import os
import sys
from pathlib import Path

import pytest
import tomli_w
import typer

import genfed.experiment.run
from genfed.cli import common
from genfed.cli import main as cli
from tests.conftest import tiny

CODE = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_name("ran").touch()


class Net(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.layer = nn.Linear(torch.Size(task.shape).numel(), len(task.classes))

    def forward(self, x):
        return self.layer(x.flatten(1))
"""


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with code in it, which is the working directory."""
    run = tmp_path / "run"
    run.mkdir()
    config = tiny("fedavg", federation={"architectures": ["given_code:Net"]})
    (run / "config.toml").write_text(tomli_w.dumps(config))
    (run / "given_code.py").write_text(CODE)
    monkeypatch.chdir(run)
    monkeypatch.delitem(sys.modules, "given_code", raising=False)
    return run


def call(*words: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return ended.value.code


COMMANDS = (
    ["sample", ".", "--out", "../out"],
    ["export", ".", "--out", "../out"],
    ["predict", ".", "new.npz", "--out", "../out.csv"],
    ["audit", "."],
    ["forget", ".", "--client", "1", "--out", "../out"],
    ["run", "."],
    ["run", ".", "--resume"],
)


def test_every_command_that_may_trust_code_is_among_these() -> None:
    known = typer.main.get_command(common.app).commands.items()  # type: ignore[attr-defined]
    trusting = {name for name, command in known if any(each.name == "trust_code" for each in command.params)}
    assert trusting == {words[0] for words in COMMANDS}


@pytest.mark.parametrize("kind", ["architecture", "data", "method", "audit"])
def test_no_code_of_a_given_run_is_imported(given: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    config = tiny("fedavg")
    if kind == "architecture":
        config["federation"]["architectures"] = ["given_code:Net"]
    elif kind == "data":
        config["data"] = {"kind": "given_code:Source"}
    elif kind == "method":
        config |= {"methods": ["mine"], "method": {"mine": {"kind": "given_code:Method"}}, "defaults": {}}
    else:
        config |= {"audits": ["mine"], "audit": {"mine": {"kind": "given_code:Audit"}}}
    (given / "config.toml").write_text(tomli_w.dumps(config))
    before = list(sys.path)
    for words in COMMANDS:
        assert call(*words) == 2, words
        capsys.readouterr()
        assert not (given / "ran").exists(), words
    assert sys.path == before


def test_the_refusal_says_how_to_trust(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", ".", "--resume") == 2
    err = capsys.readouterr().err
    assert "given_code:Net" in err
    assert "--trust-code" in err


def test_trusted_code_runs(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", ".", "--resume", "--trust-code") == 0, capsys.readouterr().err
    assert (given / "ran").exists()
    assert call("export", ".", "--out", "../out", "--trust-code") == 0, capsys.readouterr().err
    sys.modules.pop("given_code")
    (given / "ran").unlink()
    assert call("predict", "../out", "new.npz", "--out", "../out.csv") == 2  # an exported model names code, too
    assert "--trust-code" in capsys.readouterr().err
    assert not (given / "ran").exists()


def test_a_config_that_a_user_runs_is_the_users(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "config.toml", "--out", "../mine") == 0, capsys.readouterr().err


PLANTED = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nraise ImportError('planted')\n"


def test_no_worker_searches_the_directory(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "config.toml").write_text(tomli_w.dumps(tiny("fedavg", compute={"workers": 1})))
    for name in ("torch", "numpy", "json", "typing_extensions"):
        (given / f"{name}.py").write_text(PLANTED)
    assert call("run", ".", "--resume") == 0, capsys.readouterr().err
    assert not (given / "ran").exists()


def test_a_worker_finds_the_users_own_code(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("fedavg", federation={"architectures": ["given_code:Net"]}, compute={"workers": 1})
    (given / "config.toml").write_text(tomli_w.dumps(config))
    (given / "torch.py").write_text(PLANTED)  # it takes the place of no package
    assert call("run", "config.toml", "--out", "../mine") == 0, capsys.readouterr().err
    assert call("run", "../mine", "--fresh", "--trust-code") == 0, capsys.readouterr().err


def test_ray_would_search_the_directory(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "config.toml").write_text(tomli_w.dumps(tiny("fedavg")))
    assert call("run", ".", "--engine", "flower") == 2
    assert "--trust-code" in capsys.readouterr().err


@pytest.mark.parametrize("words", [*COMMANDS, ["compare", "."]])
def test_the_directory_is_not_searched_for_optional_packages(
    given: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = list[str]()

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if str(given) in sys.path:
                searched.append(name)

    for name in [name for name in sys.modules if name.startswith(("genfed.artifacts", "genfed.experiment.run"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(genfed.experiment, "run", genfed.experiment.run)  # puts back what is imported again here
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    call(*words)
    assert not [name for name in searched if not name.startswith("rich.")]


@pytest.mark.parametrize(
    "place",
    [
        ".lock",
        "run.log",
        "workers.log",
        "metrics.jsonl",
        "report.json",
        "config.toml",
        "encoder.json",
        "audits.json",
        "trials/local/seed-0/clients/0",
        "trials/fedavg/seed-0/store",
    ],
)
def test_no_link_in_a_given_run_is_followed(given: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "config.toml").write_text(tomli_w.dumps(tiny("fedavg")))
    outside = given.parent / "outside"
    outside.mkdir()
    for name in ("notes.txt", "more.safetensors"):
        (outside / name).write_text("precious")
    if place == "config.toml":
        (given / place).rename(outside / place)
    (given / place).parent.mkdir(parents=True, exist_ok=True)
    (given / place).symlink_to(outside / (place if place == "config.toml" else "" if "/" in place else "notes.txt"))
    held = {file.name: file.read_bytes() for file in outside.iterdir()}
    for words in (*COMMANDS, ["run", ".", "--fresh"]):
        assert call(*words) == 2, words
        err = capsys.readouterr().err
        assert place in err, words
        assert "is a link, a pipe or a device" in err, words
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == held


@pytest.mark.parametrize("place", ["report.json", "config.toml", "metrics.jsonl"])
def test_no_command_waits_for_a_pipe(given: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (given / place).unlink(missing_ok=True)
    os.mkfifo(given / place)
    for words in (*COMMANDS, ["compare", "."]):
        assert call(*words) == 2, words
        assert words == ["compare", "."] or place in capsys.readouterr().err


def test_the_folder_of_a_run_may_be_a_link(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "config.toml").write_text(tomli_w.dumps(tiny("fedavg")))
    (given.parent / "here").symlink_to(given)
    assert call("run", "../here", "--resume") == 0, capsys.readouterr().err
    assert call("export", "../here", "--out", "../out") == 0, capsys.readouterr().err


def test_python_minus_m_does_not_search_the_directory_either(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for there in (str(given), ""):  # where `python -m genfed` and `python -c` put it
        monkeypatch.syspath_prepend(there)
        assert call("run", ".") == 2
        assert "--trust-code" in capsys.readouterr().err
        assert not (given / "ran").exists()


def test_genfeds_own_folder_is_not_one_that_looks_like_it(given: Path) -> None:
    (given / "genfed").mkdir()
    (given / "genfed" / "_version.py").write_text("")
    with common.search_code(trusted=True), common.search_code(trusted=False):
        assert str(given) not in sys.path
