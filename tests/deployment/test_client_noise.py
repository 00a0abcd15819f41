"""A site that uploads only with noise of its own."""

import re
from pathlib import Path
from typing import Any

import pytest

from genfed.core.errors import GenfedError
from genfed.privacy.accounting import epsilon
from genfed.privacy.site_budget import CLIENT_BUDGET, read_site_ledger

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.deployment import server as deployment_server
from genfed.deployment import site_settings
from genfed.engines.flower.messages import EMPTY
from tests.deployment.test_hostile_server import log_of, refuses
from tests.deployment.test_sites import (
    ALIKE,
    CLIENTS,
    EXAMPLES,
    FIXED,
    NOISY,
    Grid,
    letter,
    serve,
    sites,
    some,
)

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def _sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages say who sent them."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


OWN_NOISE: dict[str, Any] = {"client_privacy": {"epsilon": 20.0, "delta": 1e-3, "accountant": "rdp"}}
MASKED: dict[str, Any] = {"privacy": CLIENTS | NOISY | {"noise_multiplier": 2.0}, "secure_aggregation": {}}


@pytest.mark.parametrize(
    ("changes", "demand", "says"),
    [
        ({}, {}, r"it uploads only with noise of its own, since its file has \[client_privacy\]"),
        ({"secure_aggregation": {}}, {}, r"it uploads only with noise of its own"),
        ({"privacy": MASKED["privacy"]}, {}, r"it uploads only with noise of its own"),
        ({"privacy": EXAMPLES | NOISY}, {}, r"it uploads only with noise of its own"),
        (MASKED | {"privacy": CLIENTS | FIXED}, {}, "it refuses privacy.reproducible_noise"),
        (MASKED, {"noise_multiplier": 2.5}, "fedavg has a noise multiplier of 2, and its file demands 2.5"),
        (MASKED, {"epsilon": 1.0}, r"this run costs ε = 2\.\d+ and would exceed the site's privacy budget"),
    ],
)
def test_a_site_that_demands_noise_of_its_own_is_heard_before_training(
    tmp_path: Path, changes: dict[str, Any], demand: dict[str, Any], says: str
) -> None:
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, **changes)
    table = {"client_privacy": OWN_NOISE["client_privacy"] | demand}
    files = sites(config, tmp_path / "sites", b=table)
    assert re.search(f"site b: {says}", serve(config, Grid(files), tmp_path / "run").error)
    assert not (tmp_path / "run").exists()
    step = {"phase": "train.masked" if "secure_aggregation" in changes else "train", "round": 0, "number": 0}
    if "epsilon" not in demand:
        refuses(files[1], letter(config) | {"step": step}, says, EMPTY)


def test_uploads_with_noise_of_its_own_are_charged_over_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus")
    from genfed.cli.main import main

    config = some("fedavg", federation=ALIKE, evaluation={"every": 0}, **MASKED)
    table = {"client_privacy": OWN_NOISE["client_privacy"] | {"epsilon": 3.0, "noise_multiplier": 2.0}}
    files = sites(config, tmp_path / "sites", b=table)
    assert not serve(config, Grid(files), tmp_path / "first").error
    folder = site_settings.read_site(files[1]).folder
    (paid,) = read_site_ledger(folder, CLIENT_BUDGET).trials
    assert [(c.phase, c.rate, c.noise_multiplier, c.steps) for c in paid.charges] == [("train", 1.0, 2.0, 1)] * 2
    assert not read_site_ledger(folder).trials
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["site", "budget", str(files[1])])
    shown = capsys.readouterr().out
    assert shown.count("fedavg") == 1
    assert "budget: ε = 3 at δ = 0.001" in shown
    # A server that does not ask before training gets what is left, and no more.
    monkeypatch.setattr(deployment_server, "_ask_consent", lambda *about: None)
    assert serve(config, Grid(files), tmp_path / "second").error
    spent = read_site_ledger(folder, CLIENT_BUDGET).mechanisms()
    assert spent == [(2.0, 1.0, 3)]
    assert epsilon(spent, 1e-3, "rdp") <= 3.0 < epsilon([(2.0, 1.0, 4)], 1e-3, "rdp")
    assert any(
        "another round would exceed the site's privacy budget over all runs" in line for line in log_of(files[1])
    )
