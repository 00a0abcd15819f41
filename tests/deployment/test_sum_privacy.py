"""Privacy of sums at sites: the same bits as in one process, and what a site refuses."""

import re
from pathlib import Path
from typing import Any

import pytest

from genfed.core.errors import GenfedError

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from tests.conftest import start
from tests.deployment.test_sites import ALIKE, HERE, Grid, serve, sites, some, state_of

pytestmark = pytest.mark.flower

SMALL = {"fedcgs": {"encoder": {"kind": "random_conv", "filters": 2, "cells": 2}}}
SUMS: dict[str, Any] = {"kind": "dp_sum", "noise_multiplier": 2.0, "delta": 1e-5}


@pytest.fixture(autouse=True)
def _sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages say who sent them."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize("secure", [{}, {"secure_aggregation": {}}])
def test_sites_come_to_the_bits_of_one_process(tmp_path: Path, secure: dict[str, Any]) -> None:
    pytest.importorskip("opacus")
    fixed = SUMS | {"reproducible_noise": True, "clip_norm": 2.0}
    config = some("fedcgs", federation=ALIKE, method=SMALL, privacy=fixed, **secure)
    report = start(config, tmp_path / "embedded")
    assert not serve(config, Grid(sites(config, tmp_path / "sites")), tmp_path / "sited").error
    assert state_of(tmp_path / "sited", "fedcgs") == state_of(tmp_path / "embedded", "fedcgs")
    assert report.trials[0].protection is not None


@pytest.mark.parametrize("secure", [{}, {"secure_aggregation": {}}])
@pytest.mark.parametrize(
    ("demand", "says"),
    [
        (
            {"privacy": HERE},
            r'it takes part only under \[privacy\] kind = "dp_sgd", since its file has a privacy budget',
        ),
        ({"client_privacy": HERE}, "it uploads only with noise of its own"),
    ],
)
def test_a_site_with_a_budget_of_its_own_takes_no_part(
    tmp_path: Path, secure: dict[str, Any], demand: dict[str, Any], says: str
) -> None:
    pytest.importorskip("opacus")
    config = some("fedcgs", federation=ALIKE, method=SMALL, privacy=SUMS, **secure)
    files = sites(config, tmp_path / "sites", b=demand)
    assert re.search(f"site b: {says}", serve(config, Grid(files), tmp_path / "run").error)
    assert not (tmp_path / "run").exists()
