"""The runs whose outcome must stay as it is, and what it is. All that the golden values use of genfed is here."""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor

from genfed.config import registry
from genfed.core.errors import GenfedError
from genfed.experiment import run as runs
from tests.conftest import GENERATIVE, TINY_GENERATORS, start, tiny

Table = dict[str, Any]
FILE = Path(__file__).with_name("golden.json")
PLAIN = "plain"
Refusal = GenfedError
NOISE: Table = {"noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp", "reproducible_noise": True}
THREE_OF_EACH: Table = {"clients": 6, "max_examples": 120}
"""A secure sum is of three uploads at least."""
EXACT: Table = {"generator_steps": 1, "generator_learning_rate": 0.1, "server_optimizer": {"kind": "adam"}}
WARM: Table = {"warm_start": {"epochs": 1, "samples": 32, "distillation_epochs": 2, "batch_size": 8}}
ALIKE: Table = {"clients": 5, "max_examples": 100, "architectures": ["linear"]}
"""Krum needs five uploads to choose from."""


def cases() -> dict[str, Callable[[], Table]]:
    """By name, what makes the config of each case. Some are refused before training: their golden value is null."""
    found: dict[str, Callable[[], Table]] = {}
    for method in sorted(registry.list_classes(registry.METHODS)):
        found |= {
            f"{PLAIN}/{method}": partial(tiny, method),
            f"example privacy/{method}": partial(example_private, method),
            f"client privacy/{method}": partial(tiny, method, privacy={"kind": "dp_fedavg"} | NOISE),
            f"secure/{method}": partial(tiny, method, secure_aggregation={}, federation=THREE_OF_EACH),
        }
    for method in ("fedavg", "gefl"):
        for rule in registry.list_classes(registry.AGGREGATIONS):
            changes: Table = {"aggregation": {"kind": rule}, "federation": ALIKE}
            found[f"aggregation {rule}/{method}"] = partial(tiny, method, **changes)
        for attack in registry.list_classes(registry.ATTACKS):
            found[f"attack {attack}/{method}"] = partial(tiny, method, attack={"kind": attack})
        both: Table = {"privacy": {"kind": "dp_fedavg"} | NOISE, "secure_aggregation": {}, "federation": THREE_OF_EACH}
        found[f"client privacy and secure/{method}"] = partial(tiny, method, **both)
    for kind in sorted(TINY_GENERATORS.keys() - {"cvae"}):  # that one all methods have above
        own: Table = {"method": {"gefl": GENERATIVE | {"generator": TINY_GENERATORS[kind]}}}
        found[f"generator {kind}/gefl"] = partial(tiny, "gefl", **own)
        found[f"example privacy, generator {kind}/gefl"] = partial(example_private, "gefl", **own)
    for method in ("gefl", "gefl_f"):
        found[f"exact generator rounds/{method}"] = partial(few_classes, method, EXACT)
    found["warm start/gefl"] = partial(few_classes, "gefl", WARM)
    for partition in registry.list_classes(registry.PARTITIONS):
        found[f"partition {partition}/fedavg"] = partial(tiny, "fedavg", partition={"kind": partition})
    return found


def few_classes(method: str, settings: Table) -> Table:
    """One or a few classes per client, and settings with which a generator learns all of them."""
    config = tiny(method, partition={"kind": "disjoint_labels"})
    config["method"][method] |= settings | {"mix": "balanced"}
    return config


def example_private(method: str, /, **changes: Any) -> Table:
    """Normalised by groups, where anything is: DP-SGD allows nothing else."""
    config = copy.deepcopy(tiny(method, privacy={"kind": "dp_sgd"} | NOISE, **changes))
    names = config["federation"]["architectures"]
    config["federation"]["architectures"] = [f"{name}-gn" if name.startswith("cnn") else name for name in names]
    generator = config["method"].get(method, {}).get("generator", {"kind": "ddpm"})
    if generator["kind"] in TINY_GENERATORS.keys() - {"ddpm"}:  # that one is so anyway
        generator["norm"] = "group"
    return config


def outcome(config: Table, out: Path) -> Table:
    """What a run leaves, as a hash and a summary.

    No name goes into it, neither of a field nor of a file. So what is renamed, or moved within a run, changes nothing.
    """
    with patch.object(runs, "build_page", lambda *given: ""):  # it takes longer than a tiny run
        start(config, out)
    tensors = [t for file in sorted(out.rglob("*.safetensors")) for t in safetensors.torch.load_file(file).values()]
    rows = [json.loads(line) for file in out.rglob("*.jsonl") for line in file.read_text().splitlines()]
    # The only lists in a row are how many examples of each class there are, and how many of them were got right.
    scores = [json.dumps(value) for row in rows for value in row.values() if isinstance(value, list)]
    parts = sorted(map(digest, tensors)) + sorted(scores)
    total = sum(t.double().abs().sum().item() for t in tensors if t.is_floating_point())
    return {
        "sha256": hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        "summary": [len(tensors), sum(t.numel() for t in tensors), float(f"{total:.6g}")],
    }


def digest(tensor: Tensor) -> str:
    about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(about + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def machine() -> Table:
    """What the last bits of floating-point arithmetic depend on."""
    about = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", about.read_text(), re.MULTILINE) if about.exists() else None
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": found[1] if found else None,
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
    }


def golden() -> Table:
    """What was written last."""
    there: Table = json.loads(FILE.read_text()) if FILE.exists() else {"machine": None, "cases": {}}
    return there
