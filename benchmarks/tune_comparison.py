"""How the methods of configs/comparison were tuned: `python -m benchmarks.tune_comparison [METHOD …]`.

Every method has the same budget, two trials: two values of the setting that is its own. Trials are on a seed that the
comparison does not use, and are scored on the validation part. The better value stands in configs/comparison/digits.toml.
"""

import sys
from pathlib import Path
from typing import Any

import genfed
from genfed.config.reader import read_config

CONFIG = Path(__file__).parent.parent / "configs" / "comparison" / "digits.toml"
SEED = 10
GRID: dict[str, tuple[str, tuple[Any, Any]]] = {
    "fml": ("meme", ("mlp-small", "cnn5")),
    "fedkd": ("mentee", ("mlp-small", "cnn5")),
    "fedproto": ("prototype_weight", (1.0, 5.0)),
    "fedgh": ("header_training.learning_rate", (0.01, 0.1)),
    "fedgen": ("generated_weight", (0.3, 1.0)),
    "fedcvae_ens": ("generator.learning_rate", (1e-3, 3e-3)),
    "fedcvae_kd": ("distillation_epochs", (7, 30)),
    "dense": ("temperature", (1.0, 4.0)),
    "co_boosting": ("temperature", (1.0, 4.0)),
}
"""The setting of each method, and its values. FedCVAE-KD has the same upload as FedCVAE-Ens, and its rate: set that
first.
"""


def main(methods: list[str]) -> None:
    """Runs the trials and prints them as a Markdown table."""
    print("| method | setting | value | accuracy % |\n|---|---|---:|---:|")
    for method in methods or GRID:
        name, values = GRID[method]
        scores = [score(method, name, value) for value in values]
        for value, accuracy in zip(values, scores, strict=True):
            shown = f"**{100 * accuracy:.1f}**" if accuracy == max(scores) else f"{100 * accuracy:.1f}"
            print(f"| `{method}` | `{name}` | {value} | {shown} |", flush=True)


def score(method: str, name: str, value: Any) -> float:
    """Returns the accuracy of a method on the validation part with one setting changed."""
    config = read_config(
        CONFIG,
        [
            f"methods={[method]}",
            "baselines=[]",
            f"seeds={[SEED]}",
            "evaluation.split='validation'",
            "metrics.samples=0",
            "metrics.flops=false",
            f"method.{method}.{name}={value!r}",
        ],
    )
    out = Path("runs") / "tune-comparison" / method / str(value)
    report = genfed.run(config, out=out, on_existing="resume")
    return next(trial.accuracy for trial in report.of(method))


if __name__ == "__main__":
    main(sys.argv[1:])
