"""What clients, settings and the machine can do wrong while a server has a diffusion model: one line, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genfed.cli import main as cli
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.store import FolderStore
from genfed.core.task import Task
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.trial import new_server
from genfed.foundation.settings import Foundation
from genfed.methods.bases.condition_upload import ConditionUpload
from genfed.methods.fedlmg import FedLMG, FedLMGUpload
from genfed.methods.fgl import FGL
from genfed.methods.oscar import OSCAR
from genfed.methods.prompts_only import PromptsOnly
from genfed.training.synthetic_dataset import SyntheticBatch
from genfed.training.weights import weights_of
from tests.conftest import SYNTHESIS, TINY, left_by, start, tiny, tiny_foundation
from tests.foundation import toys

FEW: dict[str, Any] = SYNTHESIS | {"finetune_rounds": 0}
TASK = Task("image", (3, 8, 8), ("a", "b", "c"))
INFO = ClientInfo(0, "linear", 2)


def finished(out: Path, label: str) -> tuple[Any, SyntheticBatch]:
    """The final state, and the images."""
    folder = out / "trials" / label / "seed-0"
    at: Any = read_checkpoint(read_config(out).method[label], folder)
    server = new_server(at.task, (), read_config(out).compute, Architectures().new, 0, 0, store=FolderStore(folder))
    return at.state, at.state.synthetic.read(server)


# A client that tells of what the server does not know.


def test_a_client_of_unknown_classes_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    method = {"astray": {"kind": "tests.foundation.toys:Astray"} | FEW}
    (trial,) = start(tiny("astray", method=method), tmp_path / "run").trials
    assert trial.failures == (
        "tell round 1: client 1 excluded: class 10 is unknown to the server: it has 10, counted from 0",
    )
    state, made = finished(tmp_path / "run", "astray")
    assert set(state.requested.clients.tolist()) == set(made.request.clients.tolist()) == {0, 2, 3}
    assert len(made) == len(state.requested)
    with pytest.raises(GenfedError, match="3 of 4 clients answered and the quorum is 4; client 1: class 10 is unknown"):
        start(tiny("astray", method=method, federation={"quorum": 1.0}), tmp_path / "all")


UNKNOWN: dict[str, tuple[Tensor, Tensor, str]] = {
    "a class beyond": (torch.zeros(2, 12, 8), torch.tensor([0, 3]), "class 3 is unknown to the server: it has 3"),
    "a class below": (torch.zeros(2, 12, 8), torch.tensor([-1, 0]), "class -1 is unknown"),
    "no numbers": (torch.zeros(2, 12, 8), torch.tensor([0.0, 1.0]), r"labels are torch.float32 \(2,\)"),
    "one too few": (torch.zeros(1, 12, 8), torch.tensor([0, 1]), r"\(1, 12, 8\); torch.float32 \(2, 12, 8\) are"),
    "too many": (torch.zeros(3, 12, 8), torch.tensor([0, 1, 1]), "3 conditions from a client of 2 examples"),
    "another width": (torch.zeros(2, 12, 9), torch.tensor([0, 1]), r"\(2, 12, 9\); torch.float32 \(2, 12, 8\) are"),
    "numbers of classes": (torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), r"are torch.int64 \(2,\)"),
}


def server() -> Server:
    return new_server(TASK, (), read_config(tiny("fgl")).compute, Architectures().new, 0, 0)


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_told_is_looked_at(what: str) -> None:
    conditions, labels, says = UNKNOWN[what]
    method = FGL(foundation=Foundation(model=tiny_foundation(), steps=2))
    with pytest.raises(GenfedError, match=says):
        method.check(server(), INFO, ConditionUpload(conditions, labels))
    for n in (0, 2):
        method.check(server(), INFO, ConditionUpload(torch.zeros(n, 12, 8), torch.arange(n)))


@pytest.mark.parametrize(("kind", "level", "most"), [(FGL, "class", 3), (FGL, "instance", 5), (OSCAR, "instance", 3)])
def test_no_more_images_are_drawn_than_of_an_honest_client(kind: type[FGL | OSCAR], level: Any, most: int) -> None:
    """The server draws images of each condition, whatever number of examples a client declares."""
    method = kind(foundation=Foundation(model=tiny_foundation(), steps=2), level=level)

    def check(count: int) -> None:
        upload = ConditionUpload(torch.zeros(count, 12, 8), torch.arange(count) % 3)
        method.check(server(), replace(INFO, examples=5), upload)

    check(most)
    with pytest.raises(GenfedError, match=f"{most + 1} conditions from a client of 5 examples; at most {most} are"):
        check(most + 1)


def test_what_fedlmg_is_sent_is_looked_at() -> None:
    """Classes, the parts of the classifier, and whether it works; a good one passes."""
    method, own = FedLMG(foundation=Foundation(model=tiny_foundation(), steps=2)), server()
    weights = weights_of(own.new_network("linear", own.rng))
    name = min(weights)
    for upload, says in (
        (FedLMGUpload(weights, torch.tensor([1, 3])), "class 3 is unknown to the server: it has 3"),
        (
            FedLMGUpload(weights_of(own.new_network("cnn1", own.rng)), torch.tensor([0])),
            "its classifier is no linear: '",
        ),
        (FedLMGUpload(weights, torch.tensor([2, 2])), "a class is listed twice among its classes"),
        (FedLMGUpload(weights | {name: weights[name][:1]}, torch.tensor([0])), f"no linear: '{name}' is different"),
        (FedLMGUpload({k: v * 1e30 for k, v in weights.items()}, torch.tensor([0])), "its classifier has diverged"),
        (
            FedLMGUpload({k: v * torch.nan for k, v in weights.items()}, torch.tensor([0])),
            "its classifier has diverged",
        ),
    ):
        with pytest.raises(GenfedError, match=says):
            method.check(own, INFO, upload)
    method.check(own, INFO, FedLMGUpload(weights, torch.tensor([0, 2])))


def test_that_nothing_steers_by_batch_norm_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = {"fedlmg": TINY["fedlmg"] | {"classifier_guidance": {"noise_edits": 1, "statistics": 0.1}}}
    for architectures, said in ((["linear", "cnn1"], 1), (["cnn2-bn"], 0)):
        caplog.clear()
        start(tiny("fedlmg", method=method, federation={"architectures": architectures}), tmp_path / architectures[0])
        assert sum("no BatchNorm over maps in " in text for text in caplog.messages) == said


def test_classes_that_a_class_conditional_model_lacks(tmp_path: Path) -> None:
    model = toys.class_conditional(tmp_path / "class", names=TASK.classes)
    method = FGL(foundation=Foundation(model=str(model), steps=2, resize=True), templates=("{class}",))
    for number in (-1, 4):
        with pytest.raises(GenfedError, match="classes that class does not know: it has 3"):
            method.check(server(), INFO, ConditionUpload(torch.tensor([0, number]), torch.tensor([0, 1])))
    method.check(server(), INFO, ConditionUpload(torch.tensor([2, 0]), torch.tensor([0, 1])))


# Settings that cannot work, as the command says them.

RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "classifiers that diverge": (
        "fedlmg",
        {"client_training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e38}},
        {},
        "train round 1: 0 of 4 clients answered and the quorum is 2; client 0: FedLMGUpload.classifier['",
    ),
    "classifiers that are finite and too large to steer by": (
        "fedlmg",
        {"client_training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e30}},
        {},
        "0 of 4 clients answered and the quorum is 2; client 0: FedLMGUpload.classifier['header.weight']",
    ),
    "students that diverge": (
        "fgl",
        {"student_training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e38}, "student_rounds": 1},
        {},
        "the student linear diverged on the synthetic set: lower learning.learning_rate",
    ),
    "descriptions that diverge": (
        "feddeo",
        {"description_learning_rate": 1e38, "description_epochs": 3},
        {},
        "tell round 1: 0 of 4 clients answered and the quorum is 2; client 0: ",
    ),
    "images of another size": (
        "fgl",
        {"foundation": {"steps": 2}},
        {"size": 16},
        "its images are 3×8×8, the task's 1×16×16; set size and channels of the data, or resize = true",
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_the_command_says_it_in_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label, changes, data, says = RUNS[what]
    file, out = tmp_path / "c.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps(tiny(label, method={label: TINY[label] | changes}, data=data)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file), "--out", str(out)])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genfed: ")]
    assert says in line
    kept = list(out.rglob("state.safetensors"))
    assert len(kept) == ("another size" not in what), "the last checkpoint stays"


# A kill.


def test_kill_9_in_the_middle_of_a_batch_of_images_and_resume(tmp_path: Path) -> None:
    """No image is lost or comes twice, and all have the bits of an undisturbed run."""
    config = tiny("dies", method={"dies": {"kind": "tests.foundation.toys:Dies"} | FEW})
    file, moment, out = tmp_path / "c.toml", tmp_path / "moment", tmp_path / "run"
    file.write_text(tomli_w.dumps(config))
    moment.write_text("1")
    done = subprocess.run(
        [sys.executable, "-m", "genfed", "run", str(file), "--out", str(out)],
        env=os.environ | {"GENFED_TEST_MOMENT": str(moment)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert [shard.name for shard in (out / "trials" / "dies" / "seed-0" / "store").iterdir()] == [
        "synthesise.0.0.safetensors"
    ]
    start(config, out, on_existing="resume")
    start(config, tmp_path / "undisturbed")
    assert left_by(out) == left_by(tmp_path / "undisturbed")
    state, made = finished(out, "dies")
    assert len(made) == len(state.requested) == len(set(made.seeds.tolist()))
    assert made.request.conditions.tolist() == list(range(len(made)))


def test_a_foundation_that_has_changed_makes_no_further_images(tmp_path: Path) -> None:
    """A run goes on with the model it began with, or not at all."""
    model = tmp_path / "model"
    shutil.copytree(tiny_foundation(), model)
    method = PromptsOnly(foundation=Foundation(model=str(model), steps=2), images_per_condition=1)
    state = method.init(server())
    wanted, rngs = method.request(state)[:2], toys.rngs(2)
    assert method.generate_checked(server(), state, wanted, rngs).shape == (2, 3, 8, 8)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = max(tensors)
    save_file(tensors | {name: tensors[name] + 1}, weights)
    with pytest.raises(GenfedError, match="has changed since this run began: restore the model"):
        method.generate_checked(server(), state, wanted, rngs)
    save_file(tensors, weights)
    settings = model / "scheduler" / "scheduler_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"beta_end": 0.5}))
    with pytest.raises(GenfedError, match="has changed since this run began"):
        method.generate_checked(server(), state, wanted, rngs)
    settings.write_text(before)
    method.generate_checked(server(), state, wanted, rngs)


def test_what_does_not_fit_into_memory_is_made_in_parts() -> None:
    class Small(PromptsOnly):
        """On a machine that holds `most` images at once."""

        most = 3

        def generate_images(self, server: Server, state: Any, wanted: Any, rngs: Any) -> Tensor:
            made = super().generate_images(server, state, wanted, rngs)  # which draws, before memory runs out
            if len(wanted) > self.most:
                raise torch.OutOfMemoryError
            return made

    foundation = Foundation(model=tiny_foundation(), steps=2)
    method, small = (
        PromptsOnly(foundation=foundation, images_per_condition=2),
        Small(foundation=foundation, images_per_condition=2),
    )
    state = method.init(server())
    wanted = method.request(state)
    whole, parts = (each.generate_checked(server(), state, wanted, toys.rngs(len(wanted))) for each in (method, small))
    assert torch.allclose(whole, parts, atol=1e-5)
    Small.most = 0
    with pytest.raises(GenfedError, match="one image does not fit into the memory of cpu"):
        small.generate_checked(server(), state, wanted, toys.rngs(len(wanted)))
