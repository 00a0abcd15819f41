"""A site that uploads only with noise of its own."""

import re
from pathlib import Path
from typing import Any

import pytest

from genfed.core.errors import GenfedError, WithheldError
from genfed.methods.bases import averaging
from genfed.methods.fml import FML
from genfed.privacy.accounting import epsilon
from genfed.privacy.site_budget import CLIENT_BUDGET, read_site_ledger

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.deployment import server as deployment_server
from genfed.deployment import site as deployment_site
from genfed.deployment import site_settings
from genfed.engines.flower.client import answer_message
from genfed.engines.flower.messages import EMPTY, decode_message
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
        (
            MASKED | {"secure_aggregation": {"neighbors": 2, "threshold": 0.99}},
            {},
            "its noise is a share of that of all clients",
        ),
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


OVERFLOWS: dict[str, Any] = {"training": {"epochs": 5, "batch_size": 80, "learning_rate": 1e9, "weight_decay": 1e9}}


def test_a_server_learns_nothing_from_an_update_that_overflows(tmp_path: Path) -> None:
    """Whether it does depends on the examples. So the round is like any other: charged, and full of noise."""
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, evaluation={"every": 0}, method={"fedavg": OVERFLOWS})
    plain = serve(config, Grid(sites(config, tmp_path / "plain")), tmp_path / "without")
    assert "not finite" in plain.error
    config |= MASKED
    files = sites(config, tmp_path / "sites", b=OWN_NOISE)
    seen: list[Any] = []

    def answer(handle: Any, message: Any, context: Any) -> Any:
        reply = answer_message(handle, message, context)
        seen.append(decode_message(reply.content)[0])
        return reply

    assert not serve(config, Grid(files, answer), tmp_path / "run").error
    assert not any("failed" in head for head in seen)
    (paid,) = read_site_ledger(site_settings.read_site(files[1]).folder, CLIENT_BUDGET).trials
    assert len(paid.charges) == 2


def test_a_failure_on_examples_is_charged_and_has_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opacus")
    config = some("fedavg", federation=ALIKE, evaluation={"every": 0}, **MASKED)
    files = sites(config, tmp_path / "sites", **dict.fromkeys("abc", OWN_NOISE))
    errors = iter((ValueError("patient 17"), GenfedError("label 3 is rare"), MemoryError()))

    def train(*about: Any, **options: Any) -> float:
        raise next(errors)

    monkeypatch.setattr(averaging, "train", train)
    said: set[str] = set()

    def answer(handle: Any, message: Any, context: Any) -> Any:
        reply = answer_message(handle, message, context)
        if "failed" in (head := decode_message(reply.content)[0]):
            said.add(head["failed"])
        return reply

    assert serve(config, Grid(files, answer), tmp_path / "run").error
    assert said == {str(WithheldError())}
    for file, reason in zip(files, ("patient 17", "label 3 is rare", "MemoryError"), strict=True):
        assert any(reason in line for line in log_of(file)), "the site's own log says why"
        (paid,) = read_site_ledger(site_settings.read_site(file).folder, CLIENT_BUDGET).trials
        assert len(paid.charges) == 1


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("local", "it takes no part in local: phase train gets no noise"),
        ("fml", "it takes no part in fml: its classifier is the site's own, whose scores get no noise"),
        ("fedkd", "it takes no part in fedkd: its classifier is the site's own"),
    ],
)
@pytest.mark.parametrize("protects", [{}, MASKED], ids=["plain", "masked"])
def test_a_site_trains_nothing_whose_scores_would_leave_without_noise(
    tmp_path: Path, method: str, says: str, protects: dict[str, Any]
) -> None:
    pytest.importorskip("opacus")
    config = some(method, federation=ALIKE, **protects)
    files = sites(config, tmp_path / "sites", b=OWN_NOISE)
    assert f"site b: its file has [client_privacy], and {says}" in serve(config, Grid(files), tmp_path / "run").error
    refuses(files[1], letter(config, method), says, EMPTY)
    refuses(files[1], letter(config, method, "evaluate"), says, EMPTY)


def test_a_classifier_that_the_site_trained_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the method says of itself."""
    pytest.importorskip("opacus")
    monkeypatch.setattr(FML, "classifier_reads_storage", False)
    config = some("fml", federation=ALIKE, **MASKED)
    files = sites(config, tmp_path / "sites", a=OWN_NOISE)
    says = "its classifier is built from what it trained itself, and its scores get no noise"
    refuses(files[0], letter(config, "fml", "evaluate"), says, EMPTY)


def test_only_evaluations_have_metrics_at_a_site_with_a_demand(tmp_path: Path) -> None:
    """A loss is an exact number about the examples, and the server chooses the learning rate and the seed."""
    config = some("local", federation=ALIKE, metrics={"flops": True})
    files = sites(config, tmp_path / "sites", b={"minimum_group": 3})
    metrics = [
        deployment_site.handle(letter(config, "local"), EMPTY, {"site": str(file)})[0]["metrics"] for file in files[:2]
    ]
    assert metrics[0].keys() == {"loss", "flops", "parameters"}
    assert not metrics[1]
    assert not serve(config, Grid(files), tmp_path / "run").error
