"""Synthetic tables on UCI's Adult and heart disease: `python -m benchmarks.tables FOLDER [adult|heart] [generator …]`.

FOLDER has adult.data, adult.test and heart_disease/processed.*.data. Adult: five silos with Dirichlet(0.5) shares of the
classes, seed 2; the whole test file is the held-out rows. Heart: four hospitals, half of each for fitting, by the seed.
Each line has the mean over seeds, and the lowest and highest of the AUC.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from genfed import Synthesizer
from genfed.data.partition import Dirichlet
from genfed.metrics.table_utility import train_on_synthetic
from genfed.metrics.tables import measure_table

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
ADULT = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation", "relationship"),
    *("race", "sex", "gain", "loss", "hours", "country", "income"),
)
CODES = ("cp", "restecg", "slope", "thal", "sex", "fbs", "exang")
TOGETHER = [["education", "education_num"]]
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "adult": {
        "mixture": {"settings": {"components": 500, "smoothing": 0.1, "spread": 0.1, "together": TOGETHER}},
        "mixture-800": {
            "generator": "mixture",
            "settings": {"components": 800, "smoothing": 0.1, "spread": 0.1, "together": TOGETHER},
        },
        "mixture-apart": {"generator": "mixture", "settings": {"components": 500, "smoothing": 0.1, "spread": 0.1}},
        "tan": {"settings": {"bins": 24, "together": TOGETHER}},
        "cart": {},
        "any_order": {},
    },
    "heart": {
        # one of the four numbers its codes in another way, so that some are at one silo only
        "mixture": {"settings": {"components": 3, "smoothing": 2.0, "bins": 16, "spread": 0.3}, "least_silos": 1},
        "tan": {"settings": {"bins": 5, "smoothing": 0.5}, "least_silos": 1},
    },
}


def read_adult(folder: Path) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Returns the rows of five silos, and the test rows."""
    parts = []
    for name in ("adult.data", "adult.test"):
        rows = pd.read_csv(folder / name, names=list(ADULT), skipinitialspace=True, na_values="?").dropna(
            subset="income"
        )
        parts.append(rows.assign(income=rows["income"].str.rstrip(".")))
    train, test = parts
    y = torch.from_numpy((train["income"] == ">50K").to_numpy().astype(np.int64))
    shares = Dirichlet(alpha=0.5).split(y, 5, torch.Generator().manual_seed(2), {})
    return {f"silo-{i}": train.iloc[rows.numpy()].reset_index(drop=True) for i, rows in enumerate(shares)}, test


def read_heart(folder: Path, seed: int) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Returns half of the rows of four hospitals, and the other half of all."""
    silos, held = {}, []
    for file in sorted((folder / "heart_disease").glob("processed.*.data")):
        rows = pd.read_csv(file, na_values="?", encoding="utf-8-sig")
        rows["target"] = np.where(rows["target"] == 0, "well", "ill")
        rows[list(CODES)] = rows[list(CODES)].astype("Int64").astype("string").astype(object)
        order = np.random.default_rng(seed).permutation(len(rows))
        silos[file.name.split(".")[1]] = rows.iloc[order[: len(rows) // 2]].reset_index(drop=True)
        held.append(rows.iloc[order[len(rows) // 2 :]])
    return silos, pd.concat(held, ignore_index=True)


def measure(
    method: str, how: Mapping[str, Any], silos: Mapping[str, pd.DataFrame], test: pd.DataFrame, label: str, seed: int
) -> dict[str, float | None]:
    """Fits, draws as many rows, and measures them."""
    started = time.process_time()
    numeric = ("ca",) if label == "target" else ()
    synth = Synthesizer(
        how.get("generator", method),
        label=label,
        numeric=numeric,
        random_state=seed,
        **{name: value for name, value in how.items() if name != "generator"},
    ).fit(silos)
    seconds = time.process_time() - started
    real = pd.concat(silos.values(), ignore_index=True)
    drawn = synth.sample(len(real) * (10 if len(real) < 1000 else 1))
    quality = measure_table(real, drawn, test, label, seed=seed)
    boosting = next(name for name in quality.tstr if "boost" in name)
    other = next(name for name in quality.tstr if name != boosting)
    return {
        "auc": quality.tstr[boosting].auc,
        "auc of logistic regression": quality.tstr[other].auc,
        "accuracy": quality.tstr[boosting].accuracy,
        "shape": quality.shape,
        "pairs": quality.pair_trends.synthetic,
        "c2st": quality.c2st.synthetic,
        "nearer to training": quality.nearness.nearer.share,
        "seconds": seconds,
        "real": quality.trtr[boosting].auc,
    }


def measure_local(silos: Mapping[str, pd.DataFrame], test: pd.DataFrame, label: str) -> dict[str, float]:
    """Returns the AUC of gradient boosting that learned from the rows of one silo: mean and lowest."""
    found = []
    for rows in silos.values():
        scores = train_on_synthetic(rows, test, label)
        found.append(scores[next(name for name in scores if "boost" in name)].auc or 0.5)
    return {"auc": float(np.mean(found)), "lowest": float(np.min(found))}


def run(folder: Path, task: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a line for each method and seed."""
    label = "income" if task == "adult" else "target"
    for seed in SEEDS:
        silos, test = read_adult(folder) if task == "adult" else read_heart(folder, seed)
        if not wanted or "local" in wanted:
            yield {"task": task, "method": "local", "seed": seed, **measure_local(silos, test, label)}
        for method, how in METHODS[task].items():
            if not wanted or method in wanted:
                yield {"task": task, "method": method, "seed": seed, **measure(method, how, silos, test, label, seed)}


def main() -> None:
    """Measures, and adds the lines to benchmarks/results/tables.jsonl."""
    folder, tasks, wanted = Path(sys.argv[1]), sys.argv[2:3] or list(METHODS), sys.argv[3:]
    with (RESULTS / "tables.jsonl").open("a") as file:
        for task in tasks:
            for line in run(folder, task, wanted):
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
