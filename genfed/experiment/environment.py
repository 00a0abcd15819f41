"""The machine and command that a report names."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

from genfed._version import __version__
from genfed.config.settings import Config
from genfed.experiment.run_folder import RunStart
from genfed.report.results import Environment


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(config: Config) -> int:
    """The worker processes a run has: what is said, else as many as keep every core busy with their threads; never more
    than clients.
    """
    fitting = max(1, count_cores() // config.compute.threads)
    return min(fitting if config.compute.workers is None else config.compute.workers, config.federation.clients)


def _environment(config: Config, started: RunStart) -> Environment:
    versions = {"genfed": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "safetensors", "scikit-learn", "diffusers", "transformers", "opacus", "flwr"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # extras
            versions[name] = importlib.metadata.version(name)
    return Environment(
        command=started.command,
        started=started.at,
        versions=versions,
        processor=processor_name(),
        cores=count_cores(),
        workers=count_workers(config),
        threads=config.compute.threads,
        device=config.compute.device,
        precision=config.compute.precision,
    )


def processor_name() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["genfed" if name == "__main__.py" else name, *sys.argv[1:]])
