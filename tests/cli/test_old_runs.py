"""What genfed 0.1 wrote: a run is refused in one line, an exported model is read."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import tomli_w
import torch

import genfed
from genfed.artifacts.predict import load_predictor
from genfed.cli import main as cli
from genfed.config.architectures import Architectures
from genfed.report.results import to_json
from genfed.training.weights import weights_of
from tests.conftest import tiny
from tests.report.fake import fake_report

CONFIG = """
name = "tiny"
methods = ["gefl"]
beside = []
seeds = [0]
data_root = ""
audits = []

[data]
kind = "digits"
size = 8

[federation]
clients = 4
architectures = ["linear", "mlp-small"]
examples = 80
sample = 1.0

[evaluation]
every = 10
part = "test"

[quality]
samples = 0

[method.gefl]
kind = "gefl"
rounds = 2

[method.gefl.generator]
kind = "cvae"
latent = 4

[method.gefl.training]
optimiser = "sgd"
"""
MODEL = {
    "architecture": "linear",
    "network": "genfed.classifiers.mlp:MLP",
    "task": {"kind": "image", "shape": [1, 8, 8], "classes": ["0", "1"]},
    "input": "x float32 [n, 1, 8, 8], in [−1, 1]; of pixels from 0 to 255 it is pixel · 2/255 − 1",
    "output": "scores float32 [n, 2]: the largest names the class, softmax gives probabilities",
    "accuracy": 0.3732590529247911,
    "scored_on": "test",
    "precision": "float32",
    "genfed": "0.1.0",
    "run": "tiny",
    "method": "fedavg",
    "kind": "fedavg",
    "seed": 0,
    "client": 0,
    "rounds": 2,
    "data": {"kind": "digits", "validation": 0.1, "test": 0.2, "split_seed": 0, "size": 8},
    "encoder": None,
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder "old" of the working directory: a finished run of 0.1."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.toml").write_text(CONFIG)
    (tmp_path / "old" / "report.json").write_text(to_json(dataclasses.replace(fake_report(1, 1), config=CONFIG)))
    (tmp_path / "new.toml").write_text(tomli_w.dumps(tiny("fedavg")))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "run old",
        "run old --resume",
        "run new.toml --out old --resume",
        "compare old old",
        "sample old --out samples",
        "export old --out model",
        "predict old x.png --out classes.csv",
        "audit old",
    ],
)
def test_a_run_is_refused(old: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "old is a run of genfed 0.1, which 0.2 cannot read; use genfed 0.1, or run it anew" in line
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


def test_a_report_alone_is_refused_too(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old / "old" / "config.toml").unlink()
    with pytest.raises(SystemExit):
        cli.main(["compare", "old"])
    assert "old is a run of genfed 0.1" in capsys.readouterr().err


def test_an_exported_model_is_read(tmp_path: Path) -> None:
    task = genfed.Task("image", (1, 8, 8), ("0", "1"))
    network = Architectures().new("linear", task, torch.Generator().manual_seed(1)).eval()
    safetensors.torch.save_file(weights_of(network), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(MODEL), "utf-8")
    loaded, known = genfed.load_model(tmp_path)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), network(x))
    assert known == task
    assert load_predictor(tmp_path, None, None, None).task == task
