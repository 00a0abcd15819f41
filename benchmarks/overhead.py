"""What the engine costs beside a bare PyTorch loop that does the same steps: CPU time, one process, one thread."""

import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import alternate, cpu_seconds, workload, write_images
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.rng import stream
from genfed.engines.in_process import InProcess
from genfed.experiment import partitioning
from genfed.experiment.inputs import load_data
from genfed.experiment.local_clients import new_runner
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_trial
from genfed.experiment.trial_loop import TrialLoop
from genfed.report.metrics_log import MetricsLog
from genfed.training.pixels import normalize_pixels

CLIENTS, ROUNDS, PAIRS = 10, 4, 9


def main() -> str:
    """Measures and returns a Markdown section."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images.npz", CLIENTS)
        config = read_config(workload(folder / "images.npz", CLIENTS, ROUNDS, 0))
        shards = partitioning.partition_data(config, load_data(config), 0)
        runs = 0

        def ours() -> float:
            nonlocal runs
            runs += 1
            out = folder / str(runs)
            out.mkdir()
            trial = new_trial(
                config, "fedavg", 0, folder=RunFolder(out), shards=shards, new_network=Architectures().new
            )
            with MetricsLog(out / "metrics.jsonl") as metrics:

                def record(rows: object) -> None:
                    metrics.write(rows)  # type: ignore[arg-type]
                    metrics.flush()

                run = TrialLoop(trial, InProcess(new_runner(trial)), record, lambda progress: None)
                return cpu_seconds(run.finish)

        def bare() -> float:
            return cpu_seconds(loop)

        def loop() -> None:
            """FedAvg as one would write it by hand: no codec, no checkpoint, no log; float images ready in memory."""
            x, y = images, shards.train.y
            networks = {
                a: Architectures().new(a, shards.task, stream(0, a)) for a in {c.architecture for c in shards.clients}
            }
            states = {a: copy.deepcopy(n.state_dict()) for a, n in networks.items()}
            for _ in range(ROUNDS):
                trained: dict[str, list[dict[str, torch.Tensor]]] = {a: [] for a in networks}
                for info, (start, stop) in zip(shards.clients, shards.ranges, strict=True):
                    network = networks[info.architecture]
                    network.load_state_dict(states[info.architecture])
                    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
                    network.train()
                    for _ in range(5):
                        for rows in torch.split(torch.randperm(stop - start), 10):
                            loss = F.cross_entropy(network(x[start:stop][rows]), y[start:stop][rows])
                            optimizer.zero_grad()
                            loss.backward()  # type: ignore[no-untyped-call]
                            optimizer.step()
                    trained[info.architecture].append(copy.deepcopy(network.state_dict()))
                for architecture, many in trained.items():
                    states[architecture] = {k: torch.stack([s[k].float() for s in many]).mean(0) for k in many[0]}
            for info in shards.clients:  # scoring, as the engine does after the last round
                network = networks[info.architecture]
                network.load_state_dict(states[info.architecture])
                network.eval()
                with torch.inference_mode():
                    network(scored).argmax(1)

        images, scored = normalize_pixels(shards.train.x), normalize_pixels(shards.held_out.x)
        pairs = alternate(ours, bare, PAIRS)
    return (
        "## 1. The engine beside a bare PyTorch loop\n\n"
        f"{CLIENTS} clients, {ROUNDS} rounds, `workers = 0`, CPU time in one process with one thread, {PAIRS} alternated "
        "pairs. Ours has the codec, checks, the log (fsync) and a checkpoint (fsync) a round; the loop has none.\n\n"
        f"Ratio ours / bare, median (least–most): **{pairs.ratio()}**. Aim: at most 1.05.\n"
    )


if __name__ == "__main__":
    print(main())
