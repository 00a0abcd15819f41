"""What the benchmarks share: the workload, pairs of times, and the memory of a tree of processes."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genfed.experiment.environment import processor_name

ARCHITECTURES = ["cnn1", "cnn2", "cnn3", "cnn4", "cnn5"]
PER_CLIENT = 50


def hardware() -> str:
    """One line: processor, cores, torch."""
    return f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {torch.__version__}"


def write_images(path: Path, clients: int, per_client: int = PER_CLIENT, side: int = 32) -> None:
    """An npz of random grey images for a number of clients, and 20 for the evaluation. Time does not depend on what they show."""
    rng = np.random.default_rng(0)
    n = clients * per_client
    parts: dict[str, Any] = {"x_train": rng.integers(0, 256, (n, side, side), np.uint8), "y_train": np.arange(n) % 10}
    parts |= {"x_test": rng.integers(0, 256, (20, side, side), np.uint8), "y_test": np.arange(20) % 10}
    np.savez(path, **parts)


def workload(images: Path, clients: int, rounds: int, workers: int, **method: Any) -> dict[str, Any]:
    """FedAvg of the paper's first five networks: 5 epochs of SGD in batches of 10 on 50 images of 32×32 a client."""
    return {
        "name": "bench",
        "methods": ["fedavg"],
        "baselines": [],
        "data": {"kind": "npz", "path": str(images), "validation": 0.0},
        "federation": {"clients": clients, "architectures": ARCHITECTURES[:clients]},
        "evaluation": {"every": 0},
        "metrics": {"samples": 0, "flops": False},
        "compute": {"workers": workers},
        "defaults": {"rounds": rounds, "training": {"epochs": 5, "batch_size": 10}} | method,
    }


@dataclass(frozen=True)
class Pairs:
    """Times of two sides that were run in turn, in seconds."""

    first: Sequence[float]
    second: Sequence[float]

    def ratio(self) -> str:
        """Median of the paired ratios first/second, with least and most."""
        ratios = sorted(a / b for a, b in zip(self.first, self.second, strict=True))
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})"


def alternate(first: Callable[[], float], second: Callable[[], float], pairs: int) -> Pairs:
    """Runs the two in turn, each first every other time; each returns its own seconds. One pair warms up."""
    times = []
    for place in range(pairs + 1):
        if place % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        times.append((a, b))
    return Pairs(*zip(*times[1:], strict=True))


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call in this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


class Memory:
    """Peak of the sum of PSS over a process and all below it, in MiB, read every 50 ms while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over, self.peak = pid, threading.Event(), 0.0

    def __enter__(self) -> "Memory":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, sum(_pss(pid) for pid in _tree(self._pid)) / 1024)


def _tree(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(below for child in text.split() for below in _tree(int(child)))]


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


def run_apart(config: dict[str, Any]) -> tuple[float, Any, list[dict[str, Any]]]:
    """Runs a config in a process of its own; returns its peak memory in MiB, its report and its rows of metrics."""
    from genfed.report.metrics_log import read_metrics
    from genfed.report.results import from_json

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        code = f"import genfed; genfed.run({config!r}, out={str(out)!r})"
        process = subprocess.Popen([sys.executable, "-c", code])
        with Memory(process.pid) as memory:
            process.wait()
        assert process.returncode == 0
        return memory.peak, from_json((out / "report.json").read_text("utf-8")), read_metrics(out / "metrics.jsonl")
