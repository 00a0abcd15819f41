"""A report such as a real run leaves: 4 methods × 3 seeds × 20 clients of 10 architectures."""

import math
import random
from typing import Any

from genfed.report.results import Environment, Published, Report
from genfed.report.summarize import summarize_trial

CLASSES = tuple(f"digit {k}" for k in range(10))
PLANS = {  # label -> phases with their rounds, bytes up and down in a round
    "local": [("train", 5, 0, 0)],
    "centralised": [("train", 20, 0, 0)],
    "gefl": [("generator", 20, 900_000, 900_000), ("classifiers", 10, 120_000, 1_020_000)],
    "gefl-f": [("extractor", 8, 20_000, 20_000), ("generator", 20, 450_000, 450_000), ("heads", 10, 8_000, 460_000)],
}
CEILING = {"local": 0.71, "centralised": 0.93, "gefl": 0.82, "gefl-f": 0.80}


def fake_report(clients: int = 20, seeds: int = 3, name: str = "gefl on digits", scored_on: str = "test") -> Report:
    draw = random.Random(0)
    trials = [summarize_trial(_rows(m, s, clients, draw), m, s) for m in PLANS for s in range(seeds)]
    partition = {
        str(s): tuple(tuple(int(60 * draw.random() ** 3) for _ in CLASSES) for _ in range(clients))
        for s in range(seeds)
    }
    environment = Environment(
        command="genfed run configs/gefl.toml --out runs/gefl",
        started="2025-01-02T03:04:05Z",
        versions={"genfed": "0.1.0", "python": "3.12.1", "torch": "2.6.0"},
        processor="a processor",
        cores=2,
        workers=2,
        threads=1,
        device="cpu",
        precision="float32",
    )
    config = '[data]\nname = "digits"\n\n[methods.gefl]\ngenerator_rounds = 20\nrounds = 10\n'
    figure = {"gefl": Published(accuracy=82.5, source="a paper, table II")}
    return Report(name, config, CLASSES, (1, 8, 8), environment, tuple(trials), partition, scored_on, figure)


def quality_row(method: str, seed: int, draw: random.Random) -> dict[str, Any]:
    shares = ("precision", "recall", "density", "coverage", "right_class", "train_on_synthetic", "train_on_real")
    ratios = ("frechet", "frechet_real", "memorisation", "memorisation_features")
    row: dict[str, Any] = {"method": method, "seed": seed, "step": 30, "phase": "quality", "round": 0, "client": None}
    row |= {"seconds": 0.5, "failed": {}, "samples": 1000, "architecture": "cnn7-bn", "epochs": 10}
    return row | {name: draw.random() for name in shares} | {name: 2 * draw.random() for name in ratios}


def _rows(method: str, seed: int, clients: int, draw: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    step = evaluation = 0
    members = range(10 if method == "centralised" else clients)

    def at(phase: str, number: int, client: int | None, **rest: Any) -> None:
        row = {"method": method, "seed": seed, "step": step, "phase": phase, "round": number, "client": client}
        if client is not None:
            row |= {"architecture": f"cnn-{client % 10}", "examples": 100 + client}
        rows.append(row | rest)

    total_rounds = sum(rounds for _, rounds, _, _ in PLANS[method])
    for phase, rounds, up, down in PLANS[method]:
        for number in range(rounds):
            for client in members:
                loss = 2.3 * math.exp(-number / 6) + 0.1 * draw.random()
                counted = {"flops": 1e9 + down, "parameters": 1e4 + down / 4} if number == seed == 0 else {}
                at(phase, number, client, up_bytes=up, down_bytes=down, seconds=0.25, loss=loss, **counted)
            lost = {"5": "its upload is not finite"} if (phase, number, seed) == ("generator", 3, 1) else {}
            at(phase, number, None, seconds=0.25 * len(members) / 2, failed=lost)
            step += 1
            if step % 5 == 0 or step == total_rounds:
                share = CEILING[method] * (1 - 0.8 * math.exp(-4 * step / total_rounds))
                confusion = {str(k): {str(k): 0} for k in range(len(CLASSES))}
                for client in members:
                    right = [min(30, max(0, round(30 * share + draw.gauss(0, 2) - client % 10 / 3))) for _ in CLASSES]
                    measures = {
                        "balanced_accuracy": sum(right) / 300,
                        "f1": share,
                        "auroc": (1 + share) / 2,
                        "ece": 0.1,
                    }
                    at(
                        "evaluate", evaluation, client,
                        up_bytes=80, down_bytes=up, seconds=0.02, correct=right, total=[30] * len(CLASSES), **measures,
                    )  # fmt: skip
                    for k, count in enumerate(right):  # an example that is not right is taken for one of the next class
                        confusion[str(k)][str(k)] += count
                        after = confusion[str(k)].setdefault(str((k + 1) % 10), 0)
                        confusion[str(k)][str((k + 1) % 10)] = after + 30 - count
                at("evaluate", evaluation, None, seconds=0.2, failed={}, confusion=confusion)
                evaluation += 1
    if method.startswith("gefl"):
        rows.append(quality_row(method, seed, draw))
    return rows
