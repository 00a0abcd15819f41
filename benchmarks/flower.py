"""Flower beside the embedded engine: `python -m benchmarks.flower overhead`, or `python -m benchmarks.flower digits`.

overhead [CLIENTS [MB]]: rounds in which clients send back what they were sent, with two workers and in Flower's
simulation; meant to take under ten minutes on two free cores. `overhead 10 0.1` tries it: ten clients, 0.1 MB among them.
digits [CONFIG [ENGINES]]: GeFL on the digits (examples/deployment/digits.toml), embedded, simulated and at three sites over
TLS; or another config of three clients, and some of embedded,flower,tls.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import write_images
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.record import digest, pack
from genfed.core.settings import settings
from genfed.deployment import processes as flower_processes
from genfed.deployment.certificates import make_keys
from genfed.experiment.checkpoint import read_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples" / "deployment"


@dataclass(frozen=True)
class Numbers:
    """What travels, and the state."""

    numbers: Tensor


@settings
class Echo(Method[Numbers]):
    """Clients send back what they were sent."""

    state = Numbers

    count: int = 256
    """Numbers of 4 bytes."""
    rounds: int = 3

    def init(self, server: Server) -> Numbers:
        return Numbers(torch.zeros(self.count))

    def phases(self) -> list[Phase[Numbers]]:
        return [Phase("echo", self.keep, self.send, self.echo, {"numbers": Mean()}, rounds=self.rounds)]

    def send(self, server: Server, state: Numbers, info: ClientInfo) -> Numbers:
        return state

    def echo(self, client: Client, sent: Numbers) -> Reply[Numbers]:
        return Reply(sent, metrics={"loss": 0.0})

    def keep(self, server: Server, state: Numbers, reduced: Reduced) -> Numbers:
        return Numbers(reduced["numbers"])

    def send_classifier(self, server: Server, state: Numbers, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return client.new_network(client.rng)


CODE = """
import json, resource, sys, time
import genfed
config, out, engine = json.loads(sys.argv[1])
genfed.run(config, out=out, engine=engine)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@dataclass(frozen=True)
class Cost:
    """The costs of an engine, with one number of clients and one size of the record."""

    rounds: Sequence[float]
    """Seconds of the rounds after the first."""
    start: float
    """Seconds of the whole run beside its rounds and the scoring: processes that start, data, the report."""
    peak: float
    """MiB of the server's own process, at most."""


def overhead(counts: str = "10,100,1000", shared: str = "200", *, least: float = 0.001) -> None:
    """Prints a Markdown table, a row per number of clients and size of what each is sent and sends back: `least` MB,
    which shows what a phase and round costs, and `shared` MB among all clients, which shows what a MB costs. Rounds are
    medians, with the least and the most.
    """
    print("| clients | MB each way | embedded, s a round | Flower, s a round | more, a round | more, ms a MB "
          "| MiB, embedded | MiB, Flower | s to start, embedded | Flower |")  # fmt: skip
    print("|---:" * 10 + "|")
    for clients in map(int, counts.split(",")):
        slower = []  # seconds a round by which Flower is, for each size
        for megabytes in (least, float(shared) / clients):
            ours, theirs = (_cost(engine, clients, megabytes) for engine in ("embedded", "flower"))
            slower.append(statistics.median(theirs.rounds) - statistics.median(ours.rounds))
            moved = (megabytes - least) * clients
            each = f"{1000 * (slower[1] - slower[0]) / moved:.1f}" if len(slower) == 2 else ""
            cells = [f"{clients}", f"{megabytes:g}", _spread(ours.rounds), _spread(theirs.rounds), f"{slower[-1]:+.2f}"]
            cells += [each, f"{ours.peak:.0f}", f"{theirs.peak:.0f}", f"{ours.start:.0f}", f"{theirs.start:.0f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def _spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})"


def _cost(engine: str, clients: int, megabytes: float) -> Cost:
    with tempfile.TemporaryDirectory() as name:
        images, out = Path(name) / "images.npz", Path(name) / "run"
        write_images(images, clients, 1, 8)
        echo = {"kind": "benchmarks.flower:Echo", "count": max(1, int(megabytes * 250_000)), "rounds": 6}
        config = {
            "name": "echo",
            "methods": ["echo"],
            "baselines": [],
            "data": {"kind": "npz", "path": str(images), "validation": 0.0},
            "federation": {"clients": clients, "architectures": ["linear"]},
            "partition": {"kind": "iid"},
            "evaluation": {"every": 0},
            "metrics": {"samples": 0, "flops": False},
            "compute": {"workers": 2},
            "method": {"echo": echo},
        }
        words, begun = [sys.executable, "-c", CODE, json.dumps([config, str(out), engine])], time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        wall, peak = time.monotonic() - begun, float(done.stdout.rsplit("peak", 1)[1])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["client"] is None]
    times = [row["seconds"] for row in rounds if row["phase"] == "echo" and row["round"]]
    return Cost(times, wall - sum(row["seconds"] for row in rounds), peak)


def digits(config: str = str(EXAMPLES / "digits.toml"), engines: str = "embedded,flower,tls") -> None:
    """Prints wall time and the state's digest for each of the three ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for engine in engines.split(","):
            begun = time.monotonic()
            if engine == "tls":
                _sites(folder, config)
            else:
                genfed = [sys.executable, "-m", "genfed", "run", config, "--out", engine, "--engine", engine]
                subprocess.run(genfed, cwd=folder, check=True, capture_output=True)
            wall = time.monotonic() - begun
            for label in read_config(folder / engine / "config.toml").method:
                at: Any = read_checkpoint(
                    read_config(folder / engine / "config.toml").method[label],
                    folder / engine / "trials" / label / "seed-0",
                )
                accuracy = _accuracy(folder / engine, label)
                print(f"| {label} | {engine} | {wall:.0f} | {accuracy} | `{digest(pack(at.state))[:16]}` |", flush=True)


def _accuracy(out: Path, label: str) -> str:
    report = json.loads((out / "report.json").read_text())
    (trial,) = [t for t in report["trials"] if t["method"] == label]
    return f"{100 * trial['accuracy']:.2f}"


def _sites(folder: Path, config: str) -> None:
    """Three sites and a server over TLS on this machine, from keys to report."""
    names, port = ("north", "south", "west"), flower_processes.free_port()
    make_keys(folder / "keys", names)
    make = [sys.executable, str(EXAMPLES / "make_sites.py"), ".", f"127.0.0.1:{port}", "keys", config]
    subprocess.run(make, cwd=folder, check=True)
    genfed = [sys.executable, "-m", "genfed"]
    joined = [
        subprocess.Popen(
            [*genfed, "join", f"{name}.toml"], cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for name in names
    ]
    try:
        words = ["serve", config, "--keys", "keys", "--address", f"127.0.0.1:{port}", "--out", "tls"]
        done = subprocess.run([*genfed, *words], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        for process in joined:
            flower_processes.end_process(process)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES.parent.parent), os.environ.get("PYTHONPATH", "")])
    if sys.argv[1] == "overhead":
        overhead(*sys.argv[2:4])
    else:
        digits(*sys.argv[2:])
