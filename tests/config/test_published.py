"""Every published config runs in miniature."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.config.reader import read_config
from genfed.data.table import Table
from genfed.experiment import run as runs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.toml") if file.parent.name != "pretrain")
FEW = {"probes": 1, "student_rounds": 1, "description_batch_size": 100}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_runs_in_miniature(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same methods, architectures and generators; one round of each phase, a seed, a few examples."""
    monkeypatch.setattr(runs, "build_page", lambda *given: "")
    whole = read_config(config)
    for source in (whole.data, whole.public):
        if isinstance(source, Table):
            write_rows(tmp_path / source.path, source)
        elif path := getattr(source, "path", None):
            write_images(tmp_path / path)
    small = [f"data_root='{tmp_path}'", "seeds=[0]", "compute.workers=0", "evaluation.every=0"]
    small += ["metrics.samples=0", "metrics.flops=false", "audits=[]"]
    clients = min(whole.federation.clients, 10)
    small += [f"federation.clients={clients}", "federation.client_fraction=1.0", "federation.max_examples=100"]
    for label, method in whole.method.items():
        counts = (
            "rounds",
            "finetune_rounds",
            "generator_rounds",
            "extractor_rounds",
            "generator_epochs",
            "extractor_epochs",
            "interleaved",
            "synthetic_epochs",
        )
        small += [f"method.{label}.{field}=1" for field in counts if getattr(method, field, 0)]
        if hasattr(method, "generator"):
            widths = [f for f in ("width", "discriminator_width") if hasattr(method.generator, f)]
            small += [f"method.{label}.generator.{width}=4" for width in widths]
            steps = [f for f in ("steps", "sampling_steps", "em_steps") if getattr(method.generator, f, None)]
            small += [f"method.{label}.generator.{each}=2" for each in steps]
        trainings = [f for f in ("client_training", "head_training", "training") if hasattr(method, f)]
        small += [f"method.{label}.{training}.epochs=1" for training in trainings[:1]]
        if hasattr(method, "foundation"):
            changes = 'model = "shipped", steps = 2, batch_size = 500, resize = true'
            rest = f'scheduler = "{method.foundation.scheduler}", guidance_scale = {method.foundation.guidance_scale}'
            small += [f"method.{label}.foundation={{ {changes}, {rest} }}", f"method.{label}.images_per_condition=1"]
            small += [f"method.{label}.{field}={n}" for field, n in FEW.items() if hasattr(method, field)]
        if hasattr(method, "distillation_steps"):
            small.append(f"method.{label}.distillation_steps=2")
    report = runs.run(read_config(config, small), out=tmp_path / "run")
    assert report.methods == whole.labels
    assert not any(trial.failures for trial in report.trials)


def write_images(path: Path) -> None:
    """Noise in the shape of the data set that a published config names."""
    rng, shape = np.random.default_rng(0), (28, 28) if "mnist" in path.name else (32, 32, 3)
    domains = np.array(["photo", "art painting", "cartoon", "sketch"])
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {"x_train": rng.integers(0, 256, (200, *shape), np.uint8), "y_train": np.arange(200) % 10}
    parts |= {"x_test": rng.integers(0, 256, (20, *shape), np.uint8), "y_test": np.arange(20) % 10}
    parts |= {"domain_train": np.tile(domains, 50), "domain_test": np.tile(domains, 5)}
    np.savez(path, **parts)


def write_rows(path: Path, table: Table) -> None:
    """A text file without a header; its columns are numbers and words in turn."""
    draw, names = np.random.default_rng(0), table.names or ()
    rows = draw.integers(0, 5, (400, len(names)))
    told = [[f"word {cell}" if place % 2 else str(cell) for place, cell in enumerate(row)] for row in rows.tolist()]
    for row in told:
        row[names.index(table.label)] = "more" if row[0] > "2" else "less"
    path.write_text("".join(", ".join(row) + "\n" for row in told))
