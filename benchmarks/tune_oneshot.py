"""How the settings of configs/oneshot/{looks,pacs}.toml were chosen: `python -m benchmarks.tune_oneshot looks [METHOD…]`.

Every row gets the same budget, twelve trials on the validation part with a seed that the final runs do not use; the
best one is in the config. FedLMG's three kinds of supervision share the settings chosen for the first, since they have the
same images. On PACS, to save time, methods that train on clients alone are not tuned, and FedLMG's trials have 8 images
per client and class.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import genfed
from genfed.config.reader import read_config

CONFIGS = Path(__file__).parent.parent / "configs" / "oneshot"
MODELS = {"looks": "shipped", "pacs": "runs/pacs/foundation"}
SEED = 10
Trial = dict[str, str]


def foundation(model: str, scheduler: str, steps: int, guidance: float) -> str:
    """Returns the sampling of a model as a TOML table."""
    return f'{{ model = "{model}", scheduler = "{scheduler}", steps = {steps}, guidance_scale = {guidance} }}'


def alone(epochs: Sequence[int]) -> list[Trial]:
    """Returns the trials of methods that train on clients alone."""
    table = "{{ epochs = {}, batch_size = 32, learning_rate = {}, momentum = 0.9 }}"
    return [{"training": table.format(*pair)} for pair in itertools.product(epochs, (0.005, 0.01, 0.02, 0.05))]


def prompted(model: str, steps: Sequence[int]) -> list[Trial]:
    """Returns the trials of methods that generate from prompts."""
    return [{"foundation": foundation(model, "ddim", *p)} for p in itertools.product(steps, (1.0, 1.5, 2.0, 3.0))]


def learned(model: str) -> list[Trial]:
    """Returns the trials of FedDEO."""
    return [
        {
            "foundation": foundation(model, "ddim", 20, w),
            "description_guidance": str(v),
            "description_learning_rate": str(rate),
        }
        for w, v, rate in itertools.product((1.0, 2.0), (1.0, 2.0, 3.0), (1.0, 10.0))
    ]


def guided(model: str) -> list[Trial]:
    """Returns the trials of FedLMG."""
    return [
        {
            "foundation": foundation(model, "ddpm", 20, w),
            "classifier_guidance": f"{{ step = {step}, statistics = {statistics}, noise_edits = 5 }}",
        }
        for w, (step, statistics) in itertools.product(
            (1.0, 2.0, 3.0), ((0.3, 0.1), (1.0, 0.1), (3.0, 0.1), (1.0, 1.0))
        )
    ]


def grids(name: str) -> dict[str, list[Trial]]:
    """Returns the trials of each method on a config."""
    model, pacs = MODELS[name], name == "pacs"
    trials = dict.fromkeys(("prompts_only", "fgl", "oscar"), prompted(model, (10, 20, 30) if pacs else (10, 20, 40)))
    trials |= {"feddeo": learned(model), "fedlmg": guided(model)}
    if pacs:
        trials["fedlmg"] = [trial | {"images_per_condition": "8"} for trial in trials["fedlmg"]]
        return trials
    by_hand = alone((15, 30, 60))
    return (
        dict.fromkeys(("local", "ensemble", "fedavg", "centralised"), by_hand)
        | trials
        | {"fedavg_50": alone((1, 2, 4))}
    )


def main(name: str, labels: list[str]) -> None:
    """Runs each label's trials and prints them as a Markdown table, the best in bold."""
    trials = grids(name)
    print("| method | settings | accuracy on validation % |\n|---|---|---:|")
    for label in labels or trials:
        scores = []
        for i, trial in enumerate(trials[label]):
            changes = [f"method.{label}.{key}={value}" for key, value in trial.items()]
            changes += [f'methods=["{label}"]', "baselines=[]", f"seeds=[{SEED}]", "evaluation.split=validation"]
            changes += ["metrics.samples=0", "metrics.flops=false", "compute.workers=0"]
            out = Path("runs") / f"tune-{name}" / label / str(i)
            report = genfed.run(read_config(CONFIGS / f"{name}.toml", changes), out=out, on_existing="resume")
            scores.append(100 * report.of(label)[0].accuracy)
        for trial, score in zip(trials[label], scores, strict=True):
            listed = ", ".join(f"{key} = {value}" for key, value in trial.items())
            print(
                f"| {label} | `{listed}` | {f'**{score:.1f}**' if score == max(scores) else f'{score:.1f}'} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
