"""The machine, its processes, and the command that a report names."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

from genfed._version import __version__
from genfed.config.settings import Compute
from genfed.experiment.run_folder import RunStart
from genfed.report.results import Environment

_PR_SET_PDEATHSIG = 1


def count_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(compute: Compute, clients: int) -> int:
    """Returns the number of worker processes of a run: as set, else as many as keep every core busy; at most one per
    client.
    """
    limit = max(1, count_cores() // compute.threads)
    return min(limit if compute.workers is None else compute.workers, clients)


def describe_environment(compute: Compute, clients: int, started: RunStart) -> Environment:
    """Returns what a report says of the machine, the libraries and the command."""
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
        workers=count_workers(compute, clients),
        threads=compute.threads,
        device=compute.device,
        precision=compute.precision,
    )


def python_command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of genfed in a new process, which finds what PYTHONPATH names and what is
    installed. Without -P, Python searches the working directory first for every module.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def send_at_parents_end(sign: int) -> None:
    """Has the kernel send this process a signal when its parent ends, even if the parent is killed. Does nothing on
    systems that cannot do so (all but Linux).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sign)


def processor_name() -> str:
    """Returns the name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """Returns the command line of this process."""
    name = Path(sys.argv[0]).name
    return shlex.join(["genfed" if name == "__main__.py" else name, *sys.argv[1:]])
