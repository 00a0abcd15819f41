"""What malicious clients damage and what robust aggregation prevents: `python -m benchmarks.robust`, minutes to an hour.

Digits of 8×8 at 10 clients of one architecture, so that every group holds all clients; 0, 10 and 30 % of them attack.
Writes benchmarks/results/robust.md: accuracy of fedavg and gefl, and the Fréchet distance of gefl's samples.
"""

import datetime
import itertools
from pathlib import Path
from typing import Any

import genfed
from benchmarks.common import hardware

RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "norm_bounding", "centered_clipping")
ATTACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sign_flip", {"factor": 2.0}),
    ("scaling", {"factor": 10.0}),
    ("label_flip", {}),
    ("free_rider", {}),
    ("backdoor", {"size": 2, "phases": ["generator"]}),
)
SHARES = (0.0, 0.1, 0.3)


def settings(rule: str, attack: str, options: dict[str, Any], share: float) -> dict[str, Any]:
    """Returns the config of one run; every rule assumes the largest share."""
    config: dict[str, Any] = {
        "name": "robust",
        "methods": ["fedavg", "gefl"],
        "baselines": ["local"],
        "data": {"kind": "digits", "size": 8},
        "federation": {"clients": 10, "max_examples": 1000, "architectures": ["mlp-small"]},
        "evaluation": {"every": 0},
        "metrics": {"flops": False},
        "defaults": {"rounds": 10, "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.1}},
        "method": {
            "gefl": {
                "generator_rounds": 10,
                "generator_epochs": 4,
                "generator_batch_size": 20,
                "generator": {"kind": "cvae", "width": 8, "latent_dim": 8},
            }
        },
    }
    if share and attack == "backdoor":  # fedavg has no generator to poison
        config["methods"] = ["gefl"]
    if share:
        config["attack"] = {"kind": attack, "share": share} | options
    if rule != "mean":
        assumed = {"share": SHARES[-1]} if rule in ("trimmed_mean", "krum", "multi_krum") else {}
        config["aggregation"] = {"kind": rule} | assumed
    return config


def main() -> str:
    """Runs all and returns Markdown."""
    lines = []
    for attack, options in ATTACKS:
        lines += [f"\n## {attack} {options or ''}\n", "| rule | share | local | fedavg | gefl | Fréchet | triggered |"]
        lines.append("|---|---:|---:|---:|---:|---:|---:|")
        for rule, share in itertools.product(RULES, SHARES):
            name = f"{rule}-{attack}-{share}" if share else f"{rule}-clean"
            out = Path("runs") / "robust" / name
            report = genfed.run(settings(rule, attack, options, share), out=out, on_existing="resume")
            of = {trial.method: trial for trial in report.trials}
            scores = [f"{100 * of[m].accuracy:.1f}" if m in of else "–" for m in ("local", "fedavg", "gefl")]
            quality, rate = of["gefl"].quality, of["gefl"].triggered
            frechet = f"{quality.frechet:.1f}" if quality else "–"
            fooled = "–" if rate is None else f"{100 * rate:.1f}"
            lines.append(f"| {rule} | {share:.0%} | {' | '.join(scores)} | {frechet} | {fooled} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    head = f"# Robust aggregation\n\n`python -m benchmarks.robust`: one seed. {hardware()}, {datetime.date.today()}.\n"
    (Path(__file__).parent / "results" / "robust.md").write_text(head + main(), "utf-8")
