"""A finished run whose encoder has changed since, as by other files of a pretrained model, is not used in silence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genfed.artifacts.export import export
from genfed.artifacts.forget import forget
from genfed.artifacts.trained_model import load_trained, select_trial
from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.encoders.random_conv import RandomConv
from genfed.experiment.run_folder import RunFolder
from tests.conftest import start, tiny

ENCODER = {"kind": "random_conv", "filters": 4, "cells": 2}


def change(monkeypatch: pytest.MonkeyPatch) -> None:
    original = RandomConv.new

    def other(self: RandomConv, task: Task, rng: torch.Generator) -> nn.Module:
        network = original(self, task, rng)
        network.get_buffer("filters").mul_(1.01)
        return network

    monkeypatch.setattr(RandomConv, "new", other)


@pytest.mark.parametrize("label", ["fedcgs", "gefl_f"])
def test_it_is_refused(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"encoder": ENCODER}
    if label == "gefl_f":
        settings |= {"generator": {"kind": "gaussian"}, "rounds": 1}
    config = tiny(label, method={label: settings}, federation={"architectures": ["linear"]})
    start(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    read = folder.read_config()
    chosen = select_trial(folder, read, None, None, read.labels)
    load_trained(chosen, 0)
    change(monkeypatch)
    with pytest.raises(GenfedError, match="is not that of the run"):
        load_trained(chosen, 0)
    with pytest.raises(GenfedError, match="is not that of the run"):
        export(tmp_path / "run", tmp_path / "model", None, None, 0, "safetensors")
    if label == "fedcgs":
        with pytest.raises(GenfedError, match="is not that of the run"):
            forget(tmp_path / "run", 1, tmp_path / "forgot")
        assert not (tmp_path / "forgot").exists()
