"""Every published config runs in miniature."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.config.reader import read_config
from genfed.core.method import Method
from genfed.data.partition import ByColumn
from genfed.data.series import Series
from genfed.data.table import Table
from genfed.experiment import run as runs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.toml") if file.parent.name != "pretrain")
MOST = {
    "client_training.epochs": 1,
    "classifier_guidance.noise_edits": 1,
    "description_epochs": 1,
    "distillation_epochs": 1,
    "distillation_samples": 100,
    "distillation_steps": 2,
    "extractor_epochs": 1,
    "extractor_rounds": 1,
    "finetune_rounds": 1,
    "generator.discriminator_width": 4,
    "generator.em_steps": 2,
    "generator.sampling_steps": 2,
    "generator.steps": 2,
    "generator.width": 4,
    "generator_epochs": 1,
    "generator_rounds": 1,
    "generator_steps": 2,
    "head_training.epochs": 1,
    "images_per_condition": 1,
    "interleaved": 1,
    "probes": 1,
    "replay_batches": 2,
    "rounds": 1,
    "samples": 100,
    "student_rounds": 1,
    "student_training.epochs": 1,
    "synthetic_epochs": 1,
    "training.epochs": 1,
    "warm_start.distillation_epochs": 1,
    "warm_start.epochs": 1,
    "warm_start.samples": 100,
}
"""The most of each setting of a method; what a config has less of stays."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_runs_in_miniature(config: Path, tmp_path: Path) -> None:
    """The same methods, architectures and generators; one round of each phase, a seed, a few examples."""
    whole = read_config(config)
    for source in (whole.data, whole.public):
        if isinstance(source, Table):
            write_tables(tmp_path / str(source.path), source)
        elif isinstance(source, Series):
            write_series(tmp_path / source.path, source)
        elif path := getattr(source, "path", None):
            write_images(tmp_path / path)
    small = [f"data_root='{tmp_path}'", "seeds=[0]", "compute.workers=0", "compute.threads=1", "evaluation.every=0"]
    small += ["metrics.samples=0", "metrics.flops=false", "audits=[]"]
    natural = isinstance(whole.partition, ByColumn)  # as many clients as the column has values
    clients = whole.federation.clients if natural else min(whole.federation.clients, 10)
    small += [
        f"federation.clients={clients}",
        "federation.client_fraction=1.0",
        f"federation.max_examples={10 * clients if natural else 100}",
    ]
    for label, method in whole.method.items():
        small += [f"method.{label}.{key}={value}" for key, value in lower(method).items()]
        if hasattr(method, "foundation"):
            changes = 'model = "shipped", steps = 2, batch_size = 500, resize = true'
            rest = f'scheduler = "{method.foundation.scheduler}", guidance_scale = {method.foundation.guidance_scale}'
            small.append(f"method.{label}.foundation={{ {changes}, {rest} }}")
        if hasattr(method, "description_batch_size"):
            small.append(f"method.{label}.description_batch_size=100")
    report = runs.run(read_config(config, small), out=tmp_path / "run")
    assert report.methods == whole.labels
    assert not any(trial.failures for trial in report.trials)


def lower(method: Method[Any]) -> dict[str, int]:
    """The settings of which a method has more than the most that a miniature needs, and that."""
    found = {}
    for key, most in MOST.items():
        value: Any = method
        for name in key.split("."):
            value = getattr(value, name, None)
        if isinstance(value, int) and value > most:
            found[key] = most
    return found


def write_images(path: Path) -> None:
    """Noise in the shape of the data set that a published config names."""
    rng, shape = np.random.default_rng(0), (28, 28) if "mnist" in path.name else (32, 32, 3)
    domains = np.array(["photo", "art painting", "cartoon", "sketch"])
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {"x_train": rng.integers(0, 256, (200, *shape), np.uint8), "y_train": np.arange(200) % 10}
    parts |= {"x_test": rng.integers(0, 256, (20, *shape), np.uint8), "y_test": np.arange(20) % 10}
    parts |= {"domain_train": np.tile(domains, 50), "domain_test": np.tile(domains, 5)}
    np.savez(path, **parts)


def write_series(path: Path, source: Series) -> None:
    """Noise of 30 subjects, with every class in each."""
    rng, classes = np.random.default_rng(0), len(source.classes or "ab")
    subject = np.repeat(np.arange(30), 2 * classes)
    x = rng.normal(size=(len(subject), 9, 128)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(len(subject)) % classes, subject=subject)


def write_tables(path: Path, table: Table) -> None:
    """A text file, or a folder of four if the path has no ending, whose labels are those that are named."""
    if path.suffix:
        write_rows(path, table)
        return
    path.mkdir()
    draw, numbers = np.random.default_rng(0), list(table.categorical or ())
    for file in "abcd":
        rows = draw.integers(0, 4, (80, len(numbers) + 2))
        lines = [",".join([*numbers, "age", table.label]), *(",".join(map(str, row)) for row in rows)]
        (path / f"{file}.data").write_text("\n".join(lines) + "\n")


def write_rows(path: Path, table: Table) -> None:
    """A text file without a header; its columns are numbers and words in turn."""
    draw, names = np.random.default_rng(0), table.names or ()
    rows = draw.integers(0, 5, (400, len(names)))
    told = [[f"word {cell}" if place % 2 else str(cell) for place, cell in enumerate(row)] for row in rows.tolist()]
    for row in told:
        row[names.index(table.label)] = "more" if row[0] > "2" else "less"
    path.write_text("".join(", ".join(row) + "\n" for row in told))
