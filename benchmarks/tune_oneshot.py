"""How the settings of configs/oneshot/looks.toml were chosen: `python -m benchmarks.tune_oneshot`.

Every row gets the same budget, twelve trials on the validation part with a seed that the final runs do not use; the
best one stands in the config. FedLMG's three aggregations share what was chosen for the first, as its images are theirs.
"""

import itertools
import sys
from pathlib import Path

import genfed
from genfed.app.config import read

CONFIG = Path(__file__).parent.parent / "configs" / "oneshot" / "looks.toml"
SEED = 10


def foundation(scheduler: str, steps: int, guidance: float) -> str:
    """How the shipped model is sampled, as a TOML table."""
    return f'{{ model = "shipped", scheduler = "{scheduler}", steps = {steps}, guidance = {guidance} }}'


def alone() -> list[dict[str, str]]:
    """Trials of whatever trains on clients alone."""
    table = "{{ epochs = {}, batch_size = 32, learning_rate = {}, momentum = 0.9 }}"
    return [{"training": table.format(*pair)} for pair in itertools.product((15, 30, 60), (0.005, 0.01, 0.02, 0.05))]


def asked() -> list[dict[str, str]]:
    """Trials of whatever asks the model with words."""
    return [{"foundation": foundation("ddim", *p)} for p in itertools.product((10, 20, 40), (1.0, 1.5, 2.0, 3.0))]


def learnt() -> list[dict[str, str]]:
    """Trials of FedDEO."""
    return [
        {
            "foundation": foundation("ddim", 20, w),
            "description_guidance": str(v),
            "description_learning_rate": str(rate),
        }
        for w, v, rate in itertools.product((1.0, 2.0), (1.0, 2.0, 3.0), (1.0, 10.0))
    ]


def steered() -> list[dict[str, str]]:
    """Trials of FedLMG."""
    return [
        {
            "foundation": foundation("ddpm", 20, w),
            "guidance": f"{{ step = {step}, statistics = {statistics}, edits = 5 }}",
        }
        for w, (step, statistics) in itertools.product(
            (1.0, 2.0, 3.0), ((0.3, 0.1), (1.0, 0.1), (3.0, 0.1), (1.0, 1.0))
        )
    ]


TRIALS = {
    "local": alone(),
    "ensemble": alone(),
    "fedavg": alone(),
    "centralised": alone(),
    "prompts_only": asked(),
    "fgl": asked(),
    "oscar": asked(),
    "feddeo": learnt(),
    "fedlmg": steered(),
}


def main(labels: list[str]) -> None:
    """Runs each label's trials and prints them as a Markdown table, the best in bold."""
    print("| method | settings | accuracy on validation % |\n|---|---|---:|")
    for label in labels:
        scores = []
        for i, trial in enumerate(TRIALS[label]):
            changes = [f"method.{label}.{key}={value}" for key, value in trial.items()]
            changes += [f'methods=["{label}"]', "beside=[]", f"seeds=[{SEED}]", "evaluation.part=validation"]
            changes += ["quality.samples=0", "quality.flops=false", "compute.workers=0"]
            report = genfed.run(read(CONFIG, changes), out=Path("runs") / "tune-oneshot" / label / str(i), resume=True)
            scores.append(100 * report.of(label)[0].accuracy)
        for trial, score in zip(TRIALS[label], scores, strict=True):
            told = ", ".join(f"{key} = {value}" for key, value in trial.items())
            print(
                f"| {label} | `{told}` | {f'**{score:.1f}**' if score == max(scores) else f'{score:.1f}'} |", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:] or list(TRIALS))
