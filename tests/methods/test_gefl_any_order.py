"""GeFL with a network that generates rows of a table."""

from pathlib import Path
from typing import Any

import pytest

from genfed import GenfedError
from tests.conftest import left_by, start, tiny

SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "generator_rounds": 2,
    "generator_epochs": 1,
    "training": {"epochs": 1, "batch_size": 8},
    "generator": {"kind": "any_order", "width": 8},
}


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    rows = "\n".join(f"{i % 7},{'fm'[i % 3 % 2]},{'yes' if i % 2 else 'no'}" for i in range(120))
    (tmp_path / "rows.csv").write_text(f"age,sex,ill\n{rows}\n")
    return {"kind": "table", "path": str(tmp_path / "rows.csv"), "label": "ill"}


def config(table: dict[str, Any], **changes: Any) -> dict[str, Any]:
    federation = {"clients": 4, "max_examples": 80, "architectures": ["linear", "mlp-small"]}
    return tiny("gefl", method={"gefl": SETTINGS | changes}) | {"data": table, "federation": federation}


def test_rows_are_generated_and_the_run_repeats_with_workers(table: dict[str, Any], tmp_path: Path) -> None:
    (trial,) = start(config(table), tmp_path / "alone").trials
    assert not trial.failures
    start(config(table) | {"compute": {"workers": 2}}, tmp_path / "together")
    left = left_by(tmp_path / "alone")
    assert left == left_by(tmp_path / "together")
    losses = {row["loss"] for row in left["metrics"] if row["phase"] == "generator" and "loss" in row}
    assert len(losses) == 8  # 2 rounds of 4 clients, who all learn


def test_the_server_can_draw_the_rows(table: dict[str, Any], tmp_path: Path) -> None:
    (trial,) = start(config(table, pool="server"), tmp_path / "run").trials
    assert not trial.failures


def test_trees_are_refused(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="CART: what sites fit alone has no mean; allowed is another generator"):
        start(config(table, generator={"kind": "cart"}), tmp_path / "run")


def test_gradients_can_be_private(table: dict[str, Any], tmp_path: Path) -> None:
    privacy = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}
    (trial,) = start(config(table) | {"privacy": privacy}, tmp_path / "run").trials
    assert not trial.failures
