"""CPU seconds of one generator round and one joint round of GeFL with a CVAE at the paper's MNIST size, beside a twin of
the published arithmetic on the same machine.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import workload, write_images
from benchmarks.generator_twin import Twin
from genfed.app import federation, registry
from genfed.app.config import read
from genfed.app.run import load_data
from genfed.app.site import new_site, new_trial
from genfed.app.trial import Run
from genfed.core.rng import stream
from genfed.engines.embedded import InProcess
from genfed.engines.site import Shards
from genfed.learn.fit import scaled

CLIENTS, PER_CLIENT, BATCH = 10, 600, 64
GENERATOR_CLIENTS = 2
"""Of the ten in a generator round; they do the same, so the round is five times theirs."""
REPEATS = 3


def main() -> str:
    """Measures and returns a Markdown section."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images.npz", CLIENTS, PER_CLIENT)
        config = workload(folder / "images.npz", CLIENTS, 1, 0) | {"methods": ["gefl"]}
        config["federation"]["architectures"] = [f"cnn{i}" for i in range(1, 11)]
        config["defaults"] = {"training": {"epochs": 5, "batch_size": BATCH}}
        shards = federation.share_out(read(_gefl(config, 0, 0)), load_data(read(_gefl(config, 0, 0))), 0)
        few = replace(shards, clients=shards.clients[:GENERATOR_CLIENTS], ranges=shards.ranges[:GENERATOR_CLIENTS])
        times: dict[str, list[float]] = {}
        for repeat in range(REPEATS):
            for side, seconds in (
                ("ours generator", _ours(config, few, folder / f"g{repeat}", 1, 0) * CLIENTS / GENERATOR_CLIENTS),
                ("twin generator", _twin_generator(few) * CLIENTS / GENERATOR_CLIENTS),
                ("ours joint", _ours(config, shards, folder / f"j{repeat}", 0, 1)),
                ("twin joint", _twin_joint(shards)),
            ):
                times.setdefault(side, []).append(seconds)
    rows = []
    for what, aim, published in (("generator", "1/3", "330–400"), ("joint", "2/3", "13–18")):
        ours, twin = times[f"ours {what}"], times[f"twin {what}"]
        ratios = sorted(a / b for a, b in zip(ours, twin, strict=True))
        rows.append(
            f"| {what} | {statistics.median(ours):.1f} | {statistics.median(twin):.1f} | "
            f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f}) | {aim} | {published} |"
        )
    return (
        "## 3. A round of GeFL with a CVAE at the paper's MNIST size\n\n"
        f"{CLIENTS} clients × {PER_CLIENT} images of 1×32×32, batch {BATCH}, T_g = 5, the ten networks; CPU seconds in one "
        f"process with one thread, {REPEATS} alternated pairs (a generator round is measured on {GENERATOR_CLIENTS} clients and "
        "multiplied). The twin does the published arithmetic on this machine "
        "(4×4 kernels throughout, unfused Adam, sampling included); the last column is what the published code was read "
        "to cost on another.\n\n"
        "| round | ours | twin | ours / twin (least–most) | aim | published code, elsewhere |\n|---|---:|---:|---:|---:|---:|\n"
        + "\n".join(rows)
        + "\n"
    )


def _gefl(config: dict[str, Any], generator_rounds: int, rounds: int) -> dict[str, Any]:
    return config | {"method": {"gefl": {"generator_rounds": generator_rounds, "rounds": rounds}}}


def _ours(config: dict[str, Any], shards: Shards, out: Path, generator_rounds: int, rounds: int) -> float:
    """The rounds alone: what a run with none of them costs (initial weights, the final scoring) is taken off."""
    spent = []
    for label, plan in (("none", (0, 0)), ("all", (generator_rounds, rounds))):
        (out / label).mkdir(parents=True)
        trial = new_trial(read(_gefl(config, *plan)), out / label, "gefl", 0, shards, "")
        run = Run(trial, InProcess(new_site(trial)), lambda rows: None, lambda progress: None)
        begun = time.process_time()
        run.finish()
        spent.append(time.process_time() - begun)
    return spent[1] - spent[0]


def _twin_generator(shards: Shards) -> float:
    x = scaled(shards.train.x)
    twin = Twin()
    begun = time.process_time()
    for start, stop in shards.ranges:
        adam = torch.optim.Adam(twin.parameters(), lr=1e-3, weight_decay=1e-3, foreach=False, fused=False)
        for _ in range(5):
            for rows in torch.split(torch.randperm(stop - start), BATCH):
                adam.zero_grad()
                twin.loss(x[start:stop][rows], shards.train.y[start:stop][rows]).backward()  # type: ignore[no-untyped-call]
                adam.step()
    return time.process_time() - begun


def _twin_joint(shards: Shards) -> float:
    x = scaled(shards.train.x)
    twin = Twin().eval()
    begun = time.process_time()
    for info, (start, stop) in zip(shards.clients, shards.ranges, strict=True):
        network = registry.new_network(info.architecture, shards.task, stream(0, info.architecture))
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)

        def learn(
            images: torch.Tensor, labels: torch.Tensor, network: Any = network, optimiser: Any = optimiser
        ) -> None:
            optimiser.zero_grad()
            F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        for _ in range((stop - start) // BATCH):
            y = torch.randint(10, (BATCH,))
            with torch.no_grad():
                images = twin.decode(torch.randn(BATCH, twin.latent), y)
            learn(images, y)
        for _ in range(5):
            for rows in torch.split(torch.randperm(stop - start), BATCH):
                learn(x[start:stop][rows], shards.train.y[start:stop][rows])
    return time.process_time() - begun


if __name__ == "__main__":
    print(main())
