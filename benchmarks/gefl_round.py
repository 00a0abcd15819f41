"""CPU seconds of one generator round and one joint round of GeFL and GeFL-F at the paper's MNIST size, beside twins of
the published arithmetic on the same machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import workload, write_images
from benchmarks.generator_twin import CLASSES, PAIRS
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.federated_data import FederatedData
from genfed.core.rng import stream
from genfed.engines.in_process import InProcess
from genfed.experiment import partitioning
from genfed.experiment.inputs import load_data
from genfed.experiment.local_clients import new_runner
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_trial
from genfed.experiment.trial_loop import TrialLoop
from genfed.training.pixels import normalize_pixels

CLIENTS, PER_CLIENT, BATCH = 10, 600, 64
FEW = 2
"""Clients of the ten in a generator round; they do the same, so the round is five times theirs."""
ROWS = (
    ("cvae", "1/4", "330–400", "2/3", "13–18"),
    ("dcgan", "1/2", "≈ 642", "–", "≈ 16"),
    ("cvae-f", "1/4", "55–71", "1/3", "6.4–8.5"),
    ("dcgan-f", "1/2", "≈ 339", "1/3", "≈ 12"),
)
"""Generator; for a generator round and a joint round, what is aimed at and what the published code was read to cost."""


def main(names: list[str] | None = None, repeats: int = 3, precision: str = "float32") -> str:
    """Measures those that are named (None: all) and returns a Markdown section."""
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, *aims in ROWS:
            if names is None or name in names:
                lines += _lines(name, aims, Path(folder), repeats, precision)
                print(*lines[-2:], sep="\n", flush=True)
    return (
        "## 3. A round of GeFL and of GeFL-F at the paper's MNIST size\n\n"
        f"{CLIENTS} clients × {PER_CLIENT} images of 1×32×32, batch {BATCH}, T_g = 5, the ten networks, {precision}; CPU seconds in "
        f"one process with one thread, {repeats} alternated pairs (a generator round is measured on {FEW} clients and "
        "multiplied). The twins do the published arithmetic on this machine (4×4 kernels throughout, unfused Adam, the "
        "extractor run again in every epoch); the last column is what the published code was read to cost on another.\n\n"
        "| generator | round | ours | twin | ours / twin (least–most) | aim | published code, elsewhere |\n"
        "|---|---|---:|---:|---:|---:|---:|\n" + "\n".join(lines) + "\n"
    )


def _lines(name: str, aims: list[str], folder: Path, repeats: int, precision: str) -> list[str]:
    method = "gefl_f" if name.endswith("-f") else "gefl"
    write_images(folder / "images.npz", CLIENTS, PER_CLIENT)
    config = workload(folder / "images.npz", CLIENTS, 1, 0) | {"methods": [method]}
    config["compute"]["precision"] = precision
    config["federation"]["architectures"] = [f"cnn{i}" for i in range(1, 11)]
    config["defaults"] = {"training": {"epochs": 5, "batch_size": BATCH}}

    def at(generator_rounds: int, rounds: int) -> dict[str, Any]:
        table = {"generator_rounds": generator_rounds, "rounds": rounds, "generator": {"kind": name.removesuffix("-f")}}
        table |= {"extractor_rounds": 0} if method == "gefl_f" else {}
        return config | {"method": {method: table}}

    shards = partitioning.partition_data(read_config(at(0, 0)), load_data(read_config(at(0, 0))), 0)
    few = replace(shards, clients=shards.clients[:FEW], ranges=shards.ranges[:FEW])

    def ours(shards: FederatedData, *plan: int) -> float:
        """The rounds alone: what a run with none of them costs (initial weights, the final scoring) is taken off."""
        spent = []
        for rounds in ((0, 0), plan):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                run_folder, known = RunFolder(Path(out)), Architectures()
                settings = read_config(at(*rounds))
                trial = new_trial(settings, method, 0, folder=run_folder, shards=shards, new_network=known.new)
                run = TrialLoop(trial, InProcess(new_runner(trial)), lambda rows: None, lambda progress: None)
                begun = time.process_time()
                run.finish()
                spent.append(time.process_time() - begun)
        return spent[1] - spent[0]

    lines = []
    for what, plan, some, twin, (aim, published) in (
        ("generator", (1, 0), few, _twin_generator, aims[:2]),
        ("joint", (0, 1), shards, _twin_joint, aims[2:]),
    ):
        times = [(ours(some, *plan), twin(name, some)) for _ in range(repeats)]
        ratios = sorted(a / b for a, b in times)
        mine, theirs = (statistics.median(t) * CLIENTS / len(some.clients) for t in zip(*times, strict=True))
        spread = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        lines.append(f"| {name} | {what} | {mine:.1f} | {theirs:.1f} | {spread} | {aim} | {published} |")
    return lines


def _twin_generator(name: str, shards: FederatedData) -> float:
    task, _, make = PAIRS[name]
    x, twin = _examples(shards, task.shape), make(task)
    begun = time.process_time()
    for start, stop in shards.ranges:
        learn = twin.learner()
        for _ in range(5):
            for rows in torch.split(torch.randperm(stop - start), BATCH):
                learn(x[start:stop][rows], shards.train.y[start:stop][rows])
    return time.process_time() - begun


def _twin_joint(name: str, shards: FederatedData) -> float:
    """Generated features go through the header alone; real images through extractor and header, both ways."""
    task, _, make = PAIRS[name]
    x, twin = normalize_pixels(shards.train.x), make(task)
    twin.draw(torch.zeros(BATCH, dtype=torch.long))
    begun = time.process_time()
    for info, (start, stop) in zip(shards.clients, shards.ranges, strict=True):
        network = Architectures().new(info.architecture, shards.task, stream(0, info.architecture))
        header = network.get_submodule("header") if task.kind == "features" else network
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range((stop - start) // BATCH):
            y = torch.randint(CLASSES, (BATCH,))
            _learn(header, optimizer, twin.draw(y), y)
        for _ in range(5):
            for rows in torch.split(torch.randperm(stop - start), BATCH):
                _learn(network, optimizer, x[start:stop][rows], shards.train.y[start:stop][rows])
    return time.process_time() - begun


def _learn(network: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _examples(shards: FederatedData, shape: tuple[int, ...]) -> Tensor:
    """The images, or as many features; what they are does not matter to time."""
    x = normalize_pixels(shards.train.x)
    return x if x.shape[1:] == shape else nn.functional.max_pool2d(x.expand(-1, 3, -1, -1), 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*PAIRS, []], default=list(PAIRS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    print(main(options.names, options.repeats, options.precision))
