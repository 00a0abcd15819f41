"""Synthetic tables in a minute: `make demo-tables`. Three hospitals with scikit-learn's breast cancer rows fit one
generator; drawn rows stand beside each hospital's own and beside all of them together.
"""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from genfed import Synthesizer
from genfed.metrics.table_utility import train_on_synthetic

OUT = Path("runs/demo-tables")
BOOSTING = "gradient boosting"


def read_hospitals() -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Returns the rows of three hospitals, of which one sees small tumors and one large ones; and the test rows."""
    rows = load_breast_cancer(as_frame=True).frame
    rows["target"] = rows["target"].map({0: "malignant", 1: "benign"})
    train, test = train_test_split(rows, test_size=0.3, random_state=0, stratify=rows["target"])
    order = train.sort_values("mean radius").reset_index(drop=True)
    small, large = order.iloc[: len(order) // 2], order.iloc[len(order) // 2 :]
    parts = {
        "north": pd.concat([small.iloc[::2], large.iloc[::16]]),
        "south": pd.concat([large.iloc[1::2], small.iloc[1::16]]),
        "west": pd.concat([small.iloc[3::4], large.iloc[4::8]]),
    }
    return {name: part.reset_index(drop=True) for name, part in parts.items()}, test.reset_index(drop=True)


def main() -> None:
    """Fits, draws, prints a table and writes the page."""
    hospitals, test = read_hospitals()
    console, table = Console(), Table("a classifier (gradient boosting) learned from", "rows", "AUC on test rows")
    OUT.mkdir(parents=True, exist_ok=True)

    def add(what: str, rows: pd.DataFrame) -> None:
        auc = train_on_synthetic(rows, test, "target")[BOOSTING].auc
        table.add_row(what, f"{len(rows)}", "–" if auc is None else f"{auc:.3f}")

    for name, rows in hospitals.items():
        add(f"own rows of {name}", rows)
    together = pd.concat(hospitals.values(), ignore_index=True)
    for generator, settings in (("tan", {"bins": 12}), ("mixture", {"components": 8, "bins": 24})):
        synth = Synthesizer(generator, label="target", settings=settings).fit(hospitals)
        add(f"rows drawn from {generator}", synth.sample(len(together)))
    add("all rows in one place, which nobody has", together)
    console.print(table)
    for line in synth.report(OUT / "report.html", test):
        console.print(line)
    synth.sample(1000).to_csv(OUT / "rows.csv", index=False)
    synth.save(OUT / "tumors.synth")
    console.print(f"report: {OUT / 'report.html'}   rows: {OUT / 'rows.csv'}")


if __name__ == "__main__":
    main()
