"""How the demo's settings were chosen: `python -m benchmarks.tune_demo`.

Every method gets the same budget: each pair of batch size and learning rate, on seeds that the demo does not use,
scored on the validation part. The best pair by the mean over those seeds stands in configs/demo.toml.
"""

import itertools
import statistics
from pathlib import Path

import genfed
from genfed.config.reader import read_config

DEMO = Path(__file__).parent.parent / "configs" / "demo.toml"
SEEDS = (10, 11)
BATCH_SIZES = (16, 40)
LEARNING_RATES = (0.05, 0.1, 0.2)


def main() -> None:
    """Runs the grid and prints it as a Markdown table."""
    methods = read_config(DEMO).labels
    table: dict[tuple[int, float], dict[str, float]] = {}
    for size, rate in itertools.product(BATCH_SIZES, LEARNING_RATES):
        changes = [
            f"method.{m}.training.{k}={v}" for m in methods for k, v in (("batch_size", size), ("learning_rate", rate))
        ]
        report = genfed.run(
            read_config(
                DEMO,
                [
                    *changes,
                    f"seeds={list(SEEDS)}",
                    "evaluation.split=validation",
                    "evaluation.every=0",
                    "metrics.samples=0",
                    "metrics.flops=false",
                ],
            ),
            out=Path("runs") / "tune-demo" / f"batch-{size}-rate-{rate}",
            on_existing="resume",
        )
        table[size, rate] = {m: statistics.fmean(t.accuracy for t in report.of(m)) for m in report.methods}
        print({m: f"{100 * a:.1f}" for m, a in table[size, rate].items()}, flush=True)
    print(f"| batch size | learning rate | {' | '.join(methods)} |")
    print(f"|---:|---:|{'---:|' * len(methods)}")
    best = {m: max(row[m] for row in table.values()) for m in methods}
    for (size, rate), row in table.items():
        cells = (f"**{100 * row[m]:.1f}**" if row[m] == best[m] else f"{100 * row[m]:.1f}" for m in methods)
        print(f"| {size} | {rate} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
