"""GeFL-F with extractors of the user's own: features of any shape, and what no generator of features can serve."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from tests.conftest import TINY, TINY_GENERATORS, start, tiny


class Parts(nn.Module):
    """Six maps of half the sides, and a header of two layers."""

    activation: type[nn.Module] = nn.ReLU
    pool = (2, 2)
    hidden = 8
    flat = False

    def __init__(self, task: Task) -> None:
        super().__init__()
        layers = [nn.Conv2d(task.shape[0], 6, 3, padding=1), self.activation(), nn.MaxPool2d(self.pool)]
        self.extractor = nn.Sequential(*layers, *([nn.Flatten()] if self.flat else []))
        numbers = self.extractor(torch.zeros(1, *task.shape)).numel()
        self.header = nn.Sequential(
            nn.Flatten(), nn.Linear(numbers, self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(task.classes))
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.extractor(x))
        return logits


class Wider(Parts):
    hidden = 16


class Small(Parts):
    pool = (4, 4)


class Line(Parts):
    pool = (8, 2)


class Flat(Parts):
    flat = True


class Rows(Parts):
    """Features of two dimensions, such as a transformer's."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.extractor.append(nn.Flatten(2))


class Signed(Parts):
    activation = nn.Tanh


def settings(generator: str, *architectures: str, **method: Any) -> dict[str, Any]:
    federation = {"architectures": [f"{__name__}:{name}" if name[0].isupper() else name for name in architectures]}
    table = TINY["gefl_f"] | {"generator": TINY_GENERATORS[generator]} | method
    return tiny("gefl_f", data={"kind": "digits", "size": 8}, federation=federation, method={"gefl_f": table})


@pytest.mark.parametrize("generator", ["cvae", "dcgan", "ddpm"])
@pytest.mark.parametrize("architecture", ["Parts", "Small", "Line", "Flat", "Rows"])
def test_features_of_any_shape(generator: str, architecture: str, tmp_path: Path) -> None:
    """6×4×4, 6×2×2, 6×1×4, 96 and 6×16 numbers."""
    report = start(settings(generator, architecture), tmp_path / "run")
    assert not any(trial.failures for trial in report.trials)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["phase"] == "joint" and row["client"] is not None]) == 8


def test_a_table(tmp_path: Path) -> None:
    """Its classes lie far apart. Headers learn from generated features alone, so they tell real ones apart only if the
    two are alike.
    """
    draws, y = np.random.default_rng(0), np.arange(400) % 4
    centres = np.array([[3, 3, 0], [-3, 3, 1], [3, -3, 2], [-3, -3, 3]])
    np.savez(tmp_path / "table.npz", x=centres[y] + 0.3 * draws.normal(size=(400, 3)), y=y)
    few = {"extractor_rounds": 0, "generator_rounds": 4, "generator_epochs": 20, "generator_batch_size": 16}
    config = settings("cvae", "mlp-small", pool="server", synthetic_epochs=5, **few)
    config["method"]["gefl_f"] |= {"generator": {"kind": "cvae", "width": 32, "latent_dim": 4}}
    config["method"]["gefl_f"] |= {"training": {"epochs": 0, "batch_size": 8}}
    config["data"] = {"kind": "npz", "path": str(tmp_path / "table.npz")}
    config["federation"] |= {"max_examples": 160, "clients": 2}
    report = start(config, tmp_path / "run")
    assert report.trials[0].accuracy > 0.9


@pytest.mark.parametrize(
    ("architectures", "says"),
    [
        (["Signed"], "Signed: its extractor gives features below 0"),
        (["Parts", "Small"], r"features of the shapes \(6, 4, 4\) and \(6, 2, 2\)"),
    ],
)
def test_refuses_what_one_generator_cannot_make(architectures: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=says):
        start(settings("cvae", *architectures), tmp_path / "run")


def test_headers_of_their_own(tmp_path: Path) -> None:
    report = start(settings("cvae", "Parts", "Wider"), tmp_path / "run")
    assert not any(trial.failures for trial in report.trials)
