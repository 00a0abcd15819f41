"""What all tests share: a tiny federation, fingerprints of what a run leaves, and no silent skips."""

import atexit
import contextlib
import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from genfed.config import registry
from genfed.config.reader import read_config
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.record import Packed, digest
from genfed.engines.worker_pool import WorkerPool
from genfed.experiment import local_clients
from genfed.experiment import run as runs
from genfed.experiment.environment import count_workers, python_command
from genfed.experiment.run_folder import RunFolder
from genfed.report.page import build_page
from genfed.report.results import Report

hypothesis.settings.register_profile("untimed", deadline=None)  # a loaded machine is no failure
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=5_000)  # make fuzz
hypothesis.settings.load_profile("untimed")
EXPECTED_SKIPS = ("Chromium is not installed", "no CUDA device", "Flower is not installed")
"""Reasons for which a test may be skipped; any other skip fails the session."""
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(expected in reason for expected in EXPECTED_SKIPS):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _skipped:
        terminalreporter.write_line(f"UNEXPECTED SKIP {line}", red=True)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """xdist says that its workers' output is 80 columns wide; tests that look at one width say which."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_page() -> Iterator[None]:
    """Runs of the tests' own process leave an empty page, which takes three times as long as a tiny run. A test that
    reads it uses `page`; a fixture of a module, `with_page`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build_page", lambda *given: "")
        yield


@contextlib.contextmanager
def with_page() -> Iterator[None]:
    """Runs write their page, as users' runs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build_page", build_page)
        yield


@pytest.fixture
def page() -> Iterator[None]:
    """Runs of this test write their page."""
    with with_page():
        yield


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Two worker processes that serve every test here: starting them takes longer than a tiny run."""
    workers = WorkerPool(python_command("genfed.experiment.worker", "1", str(os.getpid())), 2)
    yield workers
    workers.close()


@pytest.fixture
def in_pool(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that asks for workers gets those of the pool."""

    @contextlib.contextmanager
    def ours(config: Config, folder: RunFolder) -> Iterator[WorkerPool | None]:
        yield pool if count_workers(config.compute, config.federation.clients) else None

    monkeypatch.setattr(local_clients, "open_worker_pool", ours)


TINY_GENERATORS: dict[str, dict[str, Any]] = {
    "cvae": {"kind": "cvae", "width": 4, "latent_dim": 4},
    "dcgan": {"kind": "dcgan", "width": 4, "discriminator_width": 4, "latent_dim": 4},
    "ddpm": {"kind": "ddpm", "width": 4, "levels": 2, "steps": 4},
}
"""Settings that make a generator small."""
SERIES_GENERATORS: dict[str, dict[str, Any]] = {
    "series_vae": {"kind": "series_vae", "width": 4, "halvings": 2, "latent_dim": 4},
    "series_ddpm": {"kind": "series_ddpm", "levels": 1, "steps": 4},
}
"""Settings that make a generator of series small."""
GENERATIVE: dict[str, Any] = {
    "generator_rounds": 2,
    "generator_epochs": 1,
    "generator": TINY_GENERATORS["cvae"],
}
ONE_SHOT: dict[str, Any] = {
    "generator_epochs": 1,
    "samples": 24,
    "generator": {"kind": "cvae", "width": 4, "latent_dim": 4},
}
PLAIN_SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
"""Training of every method alike; some have other defaults."""
SYNTHESIS: dict[str, Any] = {
    "foundation": {"steps": 2, "batch_size": 16, "resize": True},
    "images_per_condition": 1,
    "student_training": PLAIN_SGD | {"epochs": 1, "batch_size": 8},
    "student_rounds": 1,
    "finetune_rounds": 2,
    "client_training": PLAIN_SGD | {"epochs": 1, "batch_size": 8},
}
"""Of methods whose server has a diffusion model."""
STORING = "storing"
"""Label of a method of the tests' own, whose server keeps a synthetic set."""
TINY: dict[str, dict[str, Any]] = {
    STORING: {"kind": "tests.toys:Draws", "chunk": 24},
    "co_boosting": {"generator_steps": 3, "batch_size": 8, "replay_batches": 2, "latent_dim": 8, "width": 4},
    "dense": {"generator_steps": 3, "batch_size": 8, "replay_batches": 2, "latent_dim": 8, "width": 4},
    "fedcvae_ens": ONE_SHOT,
    "fedcvae_kd": ONE_SHOT | {"distillation_samples": 24, "distillation_epochs": 2},
    "feddeo": SYNTHESIS | {"description_batch_size": 8},
    "feddf": {"distillation_steps": 3, "distillation_batch_size": 8},
    "fedpft": {
        "generator": {"kind": "gaussian_mixture", "components": 2, "em_steps": 2},
        "samples": 100,
        "head_training": PLAIN_SGD | {"epochs": 1},
    },
    "fedlmg": SYNTHESIS
    | {"foundation": SYNTHESIS["foundation"] | {"scheduler": "ddpm"}, "classifier_guidance": {"noise_edits": 1}},
    "fedgen": {"generator_steps": 3, "generator_batch_size": 8, "hidden_dim": 16},
    "fgl": SYNTHESIS,
    "gefl": GENERATIVE,
    "gefl_f": GENERATIVE | {"extractor_rounds": 2, "extractor_epochs": 1},
    "gh_ofl": {
        "generator": {"kind": "gaussian_mixture", "components": 2, "em_steps": 2},
        "samples": 100,
        "head_training": PLAIN_SGD | {"epochs": 1},
    },
    "oscar": SYNTHESIS
    | {
        "level": "instance",
        "templates": ["{how} {class}"],
        "attributes": {"how": ["thin", "thick"]},
        "probes": 1,
    },
    "prompts_only": SYNTHESIS,
}
"""Settings that make a method small, by method."""
SHARED_EXTRACTOR = {"gefl_f", "lg_fedavg"}
NEED_PUBLIC = {name for name, cls in registry.list_classes(registry.METHODS).items() if cls.needs_public}


@functools.cache
def tiny_foundation() -> str:
    """A text-to-image directory for 3×8×8 images, there until the tests end."""
    from tests.foundation import toys  # seconds to import

    folder = Path(tempfile.mkdtemp(prefix="genfed-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(toys.latent(folder / "latent"))


def tiny(*methods: str, **changes: Any) -> dict[str, Any]:
    """A config that runs in about a second: 4 clients with 20 digits of 8×8 each, two architectures, 2 rounds."""
    config: dict[str, Any] = {
        "name": "tiny",
        "methods": list(methods),
        "baselines": [],
        "data": {"kind": "digits", "size": 8},
        "federation": {"clients": 4, "max_examples": 80, "architectures": ["linear", "mlp-small"]},
        "evaluation": {"every": 1},
        "compute": {"workers": 0},
        "metrics": {"samples": 0},
        "defaults": {"rounds": 2, "training": PLAIN_SGD | {"epochs": 1, "batch_size": 8}},
    }
    config["method"] = {name: copy.deepcopy(TINY[name]) for name in methods if name in TINY}  # a test may change it
    if SHARED_EXTRACTOR & set(methods):  # linear and mlp-small have none
        config["data"] = {"kind": "digits", "size": 16}
        config["federation"] |= {"architectures": ["cnn1", "cnn2"]}
    if NEED_PUBLIC & set(methods):
        config["public"] = config["data"]
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    known = set().union(*(fields_of(config, label) for label in (*methods, *config["baselines"])))
    given = changes.get("defaults", {})
    config["defaults"] = {key: value for key, value in config["defaults"].items() if key in known or key in given}
    for name, settings in config["method"].items():
        if isinstance(settings, dict) and "foundation" in settings:
            model = {"model": tiny_foundation()} | settings["foundation"]
            config["method"][name] = settings | {"foundation": model}
    return config


@functools.cache
def tiny_waves() -> str:
    """An .npz with 120 windows of two channels and 32 steps, of three classes by their frequency and two sensors
    ("who"), there until the tests end.
    """
    folder = Path(tempfile.mkdtemp(prefix="genfed-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng, y = np.random.default_rng(0), np.arange(120) % 3
    start = rng.uniform(0, 2 * np.pi, (120, 2, 1))
    waves = np.sin(2 * np.pi * (1 + 2 * y[:, None, None]) * np.arange(32) / 32 + start)
    x = 5 + 3 * (waves + rng.normal(0, 0.2, waves.shape))
    np.savez(folder / "waves.npz", x=x.astype(np.float32), y=y, who=np.arange(120) // 3 % 8)
    return str(folder / "waves.npz")


def tiny_series(*methods: str, **changes: Any) -> dict[str, Any]:
    """`tiny` with windows of series in place of digits."""
    data = {"kind": "series", "path": tiny_waves(), "columns": ["who"]}
    clients = {"clients": 4, "max_examples": 80, "architectures": ["cnn1d-small", "transformer"]}
    return tiny(*methods, **changes) | {"data": data, "federation": clients | changes.get("federation", {})}


def fields_of(config: dict[str, Any], label: str) -> set[str]:
    """The settings of the method of a label; the usual ones where a test brings the method later."""
    own = config["method"].get(label, {})
    kind = own.get("kind", label) if isinstance(own, dict) else label
    try:
        return set(registry.find_class(registry.METHODS, str(kind)).__dataclass_fields__)
    except GenfedError:
        return {"rounds", "training"}


def start(config: dict[str, Any], out: Path, **options: Any) -> Report:
    """Runs a table of settings into `out`."""
    return runs.run(read_config(config), out=out, **options)


def left_by(out: Path) -> dict[str, Any]:
    """What a run left that must be the same to the bit: checkpoints, what clients keep, and metrics but for times and
    workers that were lost."""
    left: dict[str, Any] = {}
    for file in sorted(out.rglob("*.safetensors")):
        left[str(file.relative_to(out))] = fingerprint(file)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    left["metrics"] = [{k: v for k, v in row.items() if k not in ("seconds", "lost")} for row in rows]
    return left


def fingerprint(file: Path) -> str:
    import safetensors

    with safetensors.safe_open(file, "pt") as opened:
        about = opened.metadata()
        return digest(Packed({k: opened.get_tensor(k) for k in opened.keys()}, about["record"]))  # noqa: SIM118


Start = Callable[..., Report]
