"""The papers' open questions about one-shot methods, at small scale: `python -m benchmarks.oneshot_questions`.

Each question changes something in configs/oneshot-demo.toml (scikit-learn's digits in four styles, the model that ships,
nothing tuned) and runs it with three seeds on one core, so that two questions can run side by side. With names of
questions as arguments only these are run. Runs are in runs/oneshot-questions and are resumed there; the tables go to
standard output.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import genfed
from genfed.artifacts.export import export
from genfed.artifacts.pretrain import read_pretraining, run_pretraining
from genfed.config.reader import read_config
from genfed.data.digit_domains import DOMAINS, DigitDomains
from genfed.report.results import Report, TrialResult

CONFIG = Path(__file__).parent.parent / "configs" / "oneshot-demo.toml"
OUT = Path("runs") / "oneshot-questions"
SEEDS = (0, 1, 2)
STUDENT = 'student="cnn2-bn"'


@dataclass(frozen=True)
class Row:
    """A line of a table: what is changed, and the methods that are run."""

    name: str
    methods: Sequence[str]
    changes: Sequence[str] = ()


def words_of(name: str) -> str:
    """Returns the words by which FGL's client describes its style."""
    style = DOMAINS[name]
    return style.write_prompt("{class}")


def everywhere(change: str, methods: Sequence[str]) -> list[str]:
    """One setting of each method."""
    return [f"method.{method}.{change}" for method in methods]


def teachers() -> Iterator[Row]:
    """CNN, ViT and MLP clients; the student is a CNN in each."""
    mixed = ("cnn2-bn", "resnet8", "vit-tiny", "mlp")
    for name in (*((each,) for each in mixed), mixed):
        listed = ", ".join(f'"{each}"' for each in name)
        yield Row(" + ".join(name), ("fedlmg", "ensemble"),
                  [f"federation.architectures=[{listed}]", f"method.fedlmg.{STUDENT}", 'baselines=["local"]'])  # fmt: skip


def sizes() -> Iterator[Row]:
    """Larger classifiers as teachers; their images are evaluated too."""
    for name in ("cnn1-bn", "cnn5-bn", "cnn7-bn"):  # deeper ones need more than 16×16
        yield Row(name, ("fedlmg", "ensemble"),
                  [f'federation.architectures=["{name}"]', f"method.fedlmg.{STUDENT}", 'baselines=["local"]',
                   "metrics.samples=400"])  # fmt: skip


def images() -> Iterator[Row]:
    """Images per client and class."""
    for count in (5, 15, 30, 60, 120):
        methods = ("fedlmg", "fgl")
        yield Row(str(count), methods, [*everywhere(f"images_per_condition={count}", methods), "baselines=[]"])


def labels() -> Iterator[Row]:
    """Partly overlapping label sets, five clients; styles are mixed."""
    for shared in (0, 2, 6):
        yield Row(f"2 own + {shared} shared", ("fedlmg", "prompts_only", "ensemble", "fedavg"),
                  [f'partition={{kind="overlapping_labels",own=2,shared={shared}}}', "federation.clients=5",
                   'baselines=["local"]', "method.prompts_only.images_per_condition=50",
                   f"method.fedlmg.images_per_condition={100 // (2 + shared)}"])  # fmt: skip


def weak() -> Iterator[Row]:
    """Teachers that were trained too little, and wrong ones, which call class c 9 − c."""
    methods = ("fedlmg", "ensemble")
    for epochs in (1, 3, 10, 30):
        table = f"{{epochs={epochs},batch_size=32,learning_rate=0.02,momentum=0.9}}"
        training = [f"method.fedlmg.client_training={table}", f"method.ensemble.training={table}"]
        yield Row(f"{epochs} epochs", methods, [*training, "baselines=[]"])
    for wrong in (1, 2):
        attack = f'attack={{kind="label_flip", share={wrong / 4}}}'
        yield Row(f"30 epochs, {wrong} of 4 wrong", methods, [attack, "baselines=[]"])


def ablations() -> Iterator[Row]:
    """FedLMG's terms and guards, one at a time; on the validation part, as a guard may be chosen by it."""
    chosen = ("baselines=[]", "data.validation=0.2", "evaluation.split=validation")
    base = {"step": 1.0, "statistics": 0.1, "noise_edits": 3}
    for name, changed in (
        ("as in the demo: step 1, λ 0.1, M 3", {}),
        ("no guidance: step 0", {"step": 0.0}),
        ("step 0.3", {"step": 0.3}),
        ("step 3", {"step": 3.0}),
        ("λ 0: no BatchNorm loss", {"statistics": 0.0}),
        ("λ 1", {"statistics": 1.0}),
        ("M 0: no noise editing", {"noise_edits": 0}),
        ("M 10", {"noise_edits": 10}),
        ("guard: augmented_views 2", {"augmented_views": 2}),
        ("guard: end 0.7", {"end": 0.7}),
        ("guard: begin 0.3", {"begin": 0.3}),
    ):
        table = ", ".join(f"{key} = {value}" for key, value in {**base, **changed}.items())
        yield Row(name, ("fedlmg",), [f"method.fedlmg.classifier_guidance={{{table}}}", *chosen])
    yield Row("guard: consensus_fraction 0.5, of twice as many", ("fedlmg",),
              ["method.fedlmg.consensus_fraction=0.5", "method.fedlmg.images_per_condition=20", *chosen])  # fmt: skip
    for scale in (1.0, 4.0):
        foundation = f'{{model="shipped", scheduler="ddim", steps=15, guidance_scale={scale}}}'
        yield Row(f"CFG {scale:g}", ("fedlmg",), [f"method.fedlmg.foundation={foundation}", *chosen])


def unseen() -> Iterator[Row]:
    """Styles that the public model has never seen: yellow, cyan and stripes are not in its pictures."""
    pair = ("ice", "poster")
    yield Row("ice, poster", ("fedlmg", "fgl", "oscar", "prompts_only", "ensemble", "fedavg"),
              ['data.domains=["ice", "poster"]', "federation.clients=2",
               f"method.fgl.templates={[words_of(name) for name in pair]}".replace("'", '"'),
               'method.oscar.attributes={colour=["black", "white", "red", "blue"], background=["white", "black", "blue", "green"]}',
               *everywhere("images_per_condition=20", ("fedlmg", "fgl", "oscar"))])  # fmt: skip


def drift() -> Iterator[Row]:
    """Every client's style changes after its upload: the test digits have two styles that no upload describes."""
    source, target = DigitDomains(domains=("chalk", "neon")).load(), DigitDomains(domains=("ink", "blueprint")).load()
    old, new = sorted(("chalk", "neon")), sorted(("ink", "blueprint"))
    OUT.mkdir(parents=True, exist_ok=True)
    for name, test in (("no", source), ("yes", target)):
        arrays: dict[str, Any] = {"x_train": source.train.x.permute(0, 2, 3, 1).numpy(), "y_train": source.train.y.numpy(),
                  "domain_train": np.array(source.columns["domain"]),
                  "x_test": test.test.x.permute(0, 2, 3, 1).numpy(), "y_test": test.test.y.numpy()}  # fmt: skip
        np.savez(OUT / f"drift-{name}.npz", **arrays)
    for name, words, file in (
        ("none", old, "drift-no"),
        ("both styles change", old, "drift-yes"),
        ("both change, FGL has the new words", new, "drift-yes"),
    ):
        yield Row(name, ("fedlmg", "fgl", "prompts_only", "ensemble"),
                  [f'data={{kind="npz", path="{(OUT / file).absolute()}.npz", columns=["domain"]}}', "federation.clients=2",
                   f"method.fgl.templates={[words_of(each) for each in words]}".replace("'", '"'),
                   *everywhere("images_per_condition=20", ("fedlmg", "fgl")), 'baselines=["local"]'])  # fmt: skip


def foundations() -> Iterator[Row]:
    """The model that ships, and one of the same data and size that was trained for a tenth as long."""
    young = OUT / "young"
    config = read_pretraining(CONFIG.parent / "pretrain" / "glyphs.toml", ["training.steps=1200"])
    run_pretraining(config, young, on_existing="resume")
    for name, model in (("that ships", "shipped"), ("trained for a tenth as long", str(young))):
        methods = ("fedlmg", "fgl", "prompts_only")
        foundation = f'foundation={{model="{model}", scheduler="ddim", steps=15, guidance_scale=2.0}}'
        yield Row(name, methods, [*everywhere(foundation, methods), "baselines=[]"])


def students() -> Iterator[Row]:
    """FGL's student from new weights, or from those of a classifier of the public glyphs, alone and with FGL after it."""
    folder = OUT / "public-student"
    if not (folder / "model.safetensors").exists():
        settings = {
            "name": "public-student",
            "methods": ["local"],
            "baselines": [],
            "data": {"kind": "glyphs", "examples": 6000, "size": 16, "colours": ["black", "white", "red", "green", "blue", "pink"]},
            "federation": {"clients": 1, "architectures": ["cnn2-bn"]},
            "method": {"local": {"rounds": 1, "training": {"epochs": 20, "batch_size": 32, "learning_rate": 0.02, "momentum": 0.9}}},
        }  # fmt: skip
        genfed.run(settings, out=OUT / "public-run", on_existing="resume")
        export(OUT / "public-run", folder)
    pretrained = f'pretrained="{folder / "model.safetensors"}"'
    for name, changes in (
        ("new weights", []),
        ("pretrained on the public glyphs", everywhere(pretrained, ("fgl", "prompts_only"))),
        ("the same, without any image", [*everywhere(pretrained, ("fgl",)), "method.fgl.student_rounds=0"]),
    ):
        methods = ("fgl",) if "any" in name else ("fgl", "prompts_only")
        yield Row(name, methods, [*changes, "baselines=[]"])


def costs() -> Iterator[Row]:
    """What a client pays for one upload, and for the rounds of GeFL and FedAvg."""
    methods = ("fedlmg", "fgl", "oscar", "feddeo", "gefl", "fedavg")
    yield Row("accuracy %", methods,
              ["method.feddeo.description_guidance=1.0", "method.feddeo.description_learning_rate=1.0",
               "method.gefl={rounds=20, training={epochs=2,batch_size=32,learning_rate=0.02,momentum=0.9}, "
               'generator_rounds=20, generator_epochs=4, generator_batch_size=20, generator={kind="cvae", width=16}}',
               "method.fedavg={rounds=20, training={epochs=2,batch_size=32,learning_rate=0.02,momentum=0.9}}",
               "baselines=[]", "metrics.flops=true"])  # fmt: skip


QUESTIONS = {
    "teachers": ("Which architectures can teach? The student is cnn2-bn.", teachers),
    "sizes": ("Does a larger classifier guide better? The student is cnn2-bn.", sizes),
    "images": ("How many images per client and class?", images),
    "labels": ("What if clients have some classes only? Five clients, styles mixed.", labels),
    "weak": ("How weak may teachers be?", weak),
    "ablations": ("What does each part of FedLMG's guidance do?", ablations),
    "unseen": ("Do styles work that the public model has never seen?", unseen),
    "drift": ("What if styles change after the upload? Two clients.", drift),
    "foundations": ("How good must the public model be?", foundations),
    "students": ("Should FGL's student be pretrained?", students),
    "costs": ("What does a client pay?", costs),
}


COSTS: dict[str, Callable[[TrialResult], str]] = {
    "sent by a client, kB": lambda trial: f"{trial.up_bytes / 1000:,.0f}",
    "sent to a client, kB": lambda trial: f"{trial.down_bytes / 1000:,.0f}",
    "GFLOP of a client": lambda trial: "–" if trial.flops is None else f"{trial.flops / 1e9:,.1f}",
    "seconds of a client": lambda trial: f"{trial.work_seconds:.1f}",
}


def main(names: Sequence[str]) -> None:
    """Runs the questions and prints a table for each: accuracy in %, mean ± sd over seeds."""
    for name in names:
        question, rows = QUESTIONS[name]
        done = [(row, report(name, place, row)) for place, row in enumerate(rows())]
        labels = list(dict.fromkeys(label for _, each in done for label in each.methods))
        print(f"### {question}\n\n| | {' | '.join(labels)} |\n|---|{'---:|' * len(labels)}")
        for row, each in done:
            print(f"| {row.name} | {' | '.join(format_accuracy(each, label) for label in labels)} |")
            if name == "costs":
                for words, cost in COSTS.items():
                    print(f"| {words} | {' | '.join(cost(each.of(label)[0]) for label in labels)} |")
        print(flush=True)


def report(question: str, place: int, row: Row) -> Report:
    """Runs a row, or continues its run."""
    changes = [f"methods={list(row.methods)}".replace("'", '"'), f"seeds={list(SEEDS)}", *row.changes]
    changes = ["metrics.samples=0", "metrics.flops=false", "evaluation.every=0", "compute.threads=1", *changes]
    return genfed.run(read_config(CONFIG, changes), out=OUT / question / str(place), on_existing="resume")


def format_accuracy(report: Report, label: str) -> str:
    """Returns the accuracy, and the share of images of the requested class if images were evaluated."""
    scores = [100 * trial.accuracy for trial in report.of(label)]
    right = [100 * trial.quality.right_class for trial in report.of(label) if trial.quality]
    evaluated = f" ({fmean(right):.0f} % right)" if right else ""
    return f"{fmean(scores):.1f} ± {stdev(scores):.1f}{evaluated}" if scores else "–"


if __name__ == "__main__":
    main(sys.argv[1:] or list(QUESTIONS))
