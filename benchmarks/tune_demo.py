"""How the demo's settings were chosen: `python -m benchmarks.tune_demo` (all methods), or `… gefl fedcgs` (some).

Every method gets the same budget: six trials, on seeds that the demo does not use, scored on the validation part. The
best trial by the mean over those seeds stands in configs/demo.toml.
"""

import itertools
import statistics
import sys
from pathlib import Path

import genfed
from genfed.config.reader import read_config

DEMO = Path(__file__).parent.parent / "configs" / "demo.toml"
SEEDS = (10, 11)

Trial = dict[str, float]
"""Settings of a method, by their keys below [method.NAME]."""
TRAINING: list[Trial] = [
    {"training.batch_size": size, "training.learning_rate": rate}
    for size, rate in itertools.product((16, 40), (0.05, 0.1, 0.2))
]
TRIALS: dict[str, list[Trial]] = {
    "local": TRAINING,
    "fedavg": TRAINING,
    "gefl": [  # its classifiers are trained as FedAvg's
        {"generator.size": size, "generator.rank": rank} for size, rank in itertools.product((8, 16), (5, 10, 20))
    ],
    "fedcgs": [
        {"encoder.filters": filters, "generator.shrinkage": shrinkage}
        for filters, shrinkage in itertools.product((28, 59), (1e-3, 1e-2, 1e-1))
    ],
    "centralised": TRAINING,
}


def main() -> None:
    """Runs the trials of the named methods, or of all, and prints them as a Markdown table."""
    print("| method | settings | accuracy % |\n|---|---|---:|")
    for method in sys.argv[1:] or TRIALS:
        accuracies = [score(method, number, trial) for number, trial in enumerate(TRIALS[method])]
        for trial, accuracy in zip(TRIALS[method], accuracies, strict=True):
            shown = f"**{100 * accuracy:.1f}**" if accuracy == max(accuracies) else f"{100 * accuracy:.1f}"
            print(f"| {method} | {', '.join(f'{key} {value:g}' for key, value in trial.items())} | {shown} |")


def score(method: str, number: int, trial: Trial) -> float:
    """Returns the mean accuracy of a trial of a method on the validation part, in [0, 1]."""
    report = genfed.run(
        read_config(
            DEMO,
            [
                f'methods=["{method}"]',
                "baselines=[]",
                *(f"method.{method}.{key}={value}" for key, value in trial.items()),
                f"seeds={list(SEEDS)}",
                "evaluation.split=validation",
                "evaluation.every=0",
                "metrics.samples=0",
                "metrics.flops=false",
            ],
        ),
        out=Path("runs") / "tune-demo" / f"{method}-{number}",
        on_existing="resume",
    )
    return statistics.fmean(outcome.accuracy for outcome in report.of(method))


if __name__ == "__main__":
    main()
