"""Every published config runs in miniature."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genfed.app.run as runs
from genfed.app.config import read

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_runs_in_miniature(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same methods, architectures and generators; one round of each phase, a seed, a few examples."""
    monkeypatch.setattr(runs, "page", lambda report, grids: "")
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"x_train": rng.integers(0, 256, (200, 28, 28), np.uint8), "y_train": np.arange(200) % 10}
    parts |= {"x_test": rng.integers(0, 256, (20, 28, 28), np.uint8), "y_test": np.arange(20) % 10}
    np.savez(tmp_path / "mnist.npz", **parts)
    whole = read(config)
    small = [
        f"data_root='{tmp_path}'",
        "seeds=[0]",
        "compute.workers=0",
        "quality.samples=0",
        "federation.examples=100",
    ]
    for label, method in whole.method.items():
        counts = ("rounds", "generator_rounds", "extractor_rounds", "generator_epochs", "extractor_epochs")
        small += [f"method.{label}.{field}=1" for field in counts if hasattr(method, field)]
        if hasattr(method, "generator"):
            small.append(f"method.{label}.generator.width=4")
        small.append(f"method.{label}.training.epochs=1")
    report = runs.run(read(config, small), out=tmp_path / "run")
    assert report.methods == whole.labels
    assert not any(trial.failures for trial in report.trials)
