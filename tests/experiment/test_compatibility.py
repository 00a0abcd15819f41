"""Runs that are attacked, with and without something set against it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.reader import read_config, to_toml
from genfed.core.errors import GenfedError
from genfed.experiment.checkpoint import read_checkpoint
from tests.conftest import left_by, start, tiny

LINEAR: dict[str, Any] = {
    "federation": {"clients": 5, "max_examples": 100, "architectures": ["linear"]},
    "evaluation": {"every": 0},
}


def final(config: dict[str, Any], out: Path) -> torch.Tensor:
    start(config, out)
    method = read_config(config).method["fedavg"]
    at = read_checkpoint(method, out / "trials" / "fedavg" / "seed-0")
    assert at is not None
    weights: torch.Tensor = torch.cat([w.flatten() for w in at.state.classifiers["linear"].values()])
    return weights


def test_rules_that_suspect_nobody_leave_equal_clients_their_mean(tmp_path: Path) -> None:
    plain = final(tiny("fedavg", **LINEAR), tmp_path / "plain")
    huge = tiny("fedavg", **LINEAR, aggregation={"kind": "norm_bounding", "bound": 1e9})
    assert torch.allclose(final(huge, tmp_path / "huge"), plain, atol=1e-6)
    none = tiny("fedavg", **LINEAR, aggregation={"kind": "trimmed_mean", "share": 0.0})
    assert torch.allclose(final(none, tmp_path / "none"), plain, atol=1e-6)
    assert not torch.allclose(
        final(tiny("fedavg", **LINEAR, aggregation={"kind": "median"}), tmp_path / "m"), plain, atol=1e-6
    )


def test_a_scaled_upload_drowns_the_mean_and_not_the_rules(tmp_path: Path) -> None:
    attack = {"kind": "scaling", "factor": 1e6, "share": 0.2}
    clean = final(tiny("fedavg", **LINEAR), tmp_path / "clean")
    assert final(tiny("fedavg", **LINEAR, attack=attack), tmp_path / "mean").norm() > 1e3 * clean.norm()
    for kind in ("median", "trimmed_mean", "krum", "multi_krum", "norm_bounding", "centered_clipping"):
        held = final(tiny("fedavg", **LINEAR, attack=attack, aggregation={"kind": kind}), tmp_path / kind)
        assert held.norm() < 2 * clean.norm()


@pytest.mark.usefixtures("in_pool")
def test_an_attacked_run_is_the_same_with_workers_and_when_repeated(tmp_path: Path) -> None:
    attack = {"kind": "free_rider", "noise": 0.1, "share": 0.4}
    config = tiny("fedavg", **LINEAR, attack=attack, aggregation={"kind": "centered_clipping"})
    start(config, tmp_path / "a")
    start(config, tmp_path / "b")
    start(config | {"compute": {"workers": 2}}, tmp_path / "c")
    assert left_by(tmp_path / "a") == left_by(tmp_path / "b") == left_by(tmp_path / "c")


@pytest.mark.usefixtures("page")
def test_only_bad_clients_reply_otherwise_and_only_in_the_named_phases(tmp_path: Path) -> None:
    losses = []
    for name, more in (("clean", {}), ("flipped", {"attack": {"kind": "label_flip", "share": 0.4}})):
        config = tiny("fedavg", **LINEAR, **more)
        config["defaults"] = config["defaults"] | {"rounds": 1}
        report = start(config, tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["phase"] == "train" and row["client"] is not None])
    changed = [i for i, (a, b) in enumerate(zip(*losses, strict=True)) if a != b]
    assert len(changed) == 2
    ids = ", ".join(map(str, changed))
    assert report.notes == (
        "This run simulates an attack: 2 of 5 clients train on false labels (class c is called C − 1 − c) "
        f"(label_flip; seed 0: {ids}). Scores are over all clients, including the malicious ones.",
    )
    assert "This run simulates an attack" in (tmp_path / "flipped" / "report.html").read_text()
    assert "attacked" not in (tmp_path / "clean" / "report.html").read_text()


def test_a_backdoor_is_learnt_and_told(tmp_path: Path) -> None:
    config = tiny("fedavg", baselines=["local", "centralised"], **LINEAR)
    config["attack"] = {"kind": "backdoor", "share": 0.6, "size": 3, "fraction": 0.5}
    config["defaults"] = {"rounds": 6, "training": {"epochs": 3, "batch_size": 8}}
    report = start(config, tmp_path / "run")
    rates = {trial.method: trial.triggered for trial in report.trials}
    assert rates["centralised"] is None  # one client with everybody's data is no federation
    assert rates["fedavg"] is not None
    assert rates["local"] is not None
    assert rates["fedavg"] > 0.6 > 0.3 > rates["local"]
    assert f"fedavg: with the trigger, {100 * rates['fedavg']:.1f} % of the examples" in " ".join(report.notes)


def test_what_a_rule_does_not_cover_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny("fgl", aggregation={"kind": "median"})
    report = start(config, tmp_path / "run")
    uncovered = "fgl: conditions, labels cannot be reduced by median, and are used as clients upload them."
    assert report.notes == ("Uploads that a method would average are reduced by median instead.", uncovered)
    before = "aggregation.kind = 'median': one client can still spoil what is not averaged; " + uncovered
    assert [record.message for record in caplog.records].count(before) == 1


def test_a_rule_that_has_no_effect_in_this_run_is_refused(tmp_path: Path) -> None:
    config = tiny("fgl", aggregation={"kind": "median"})
    config["method"]["fgl"] |= {"finetune_rounds": 0}
    with pytest.raises(GenfedError, match=r"the server of fgl averages no uploads of clients \(conditions, labels\)"):
        start(config, tmp_path / "run")


def test_settings_are_written_out() -> None:
    config = read_config(
        tiny("fedavg", aggregation={"kind": "krum"}, attack={"kind": "sign_flip", "phases": ["train"]})
    )
    text = to_toml(config)
    assert '[aggregation]\nkind = "krum"\nshare = 0.2' in text
    assert 'kind = "sign_flip"' in text
    assert "aggregation" not in to_toml(read_config(tiny("fedavg")))


@pytest.mark.parametrize(
    ("methods", "changes", "says"),
    [
        (["fedavg"], {"aggregation": {"kind": "medium"}}, "no such aggregation: 'medium'; did you mean 'median'?"),
        (["fedavg"], {"aggregation": {"kind": "krum", "share": 0.5}}, "aggregation.share = 0.5: input should be less"),
        (["fedavg"], {"aggregation": {"kind": "krum"}}, "linear: aggregation.share = 0.2: 1 of 2 uploads are assumed"),
        (["fedproto"], {"aggregation": {"kind": "median"}}, "the server of fedproto averages no uploads"),
        (
            ["fedgen"],
            {"aggregation": {"kind": "median"}},
            "would reduce extractor, and the server combines header, coun",
        ),
        (["ensemble"], {"aggregation": {"kind": "median"}}, "(classifier), so the rule would protect nothing"),
        (["fedavg"], {"attack": {"kind": "sign_flip", "share": 0.0}}, "attack.share = 0.0: input should be greater"),
        (["fedavg"], {"attack": {"kind": "sign_flip", "phases": ["trian"]}}, "in such a phase: 'trian'; did you mean"),
        (["local"], {"attack": {"kind": "sign_flip"}}, "attack.kind = 'sign_flip': no method of the run uploads"),
        (["ensemble"], {"attack": {"kind": "free_rider"}}, "it cannot attack ensemble: clients are sent nothing"),
        (
            ["fedavg"],
            {"attack": {"kind": "backdoor", "target": 10}},
            "attack.target = 10: there are 10 classes, from 0",
        ),
    ],
)
def test_what_is_refused_before_training(
    methods: list[str], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = tiny(*methods, **changes)
    with pytest.raises(GenfedError) as caught:
        start(config, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_sampled_group_that_would_be_too_small_is_found_before_training(tmp_path: Path) -> None:
    federation = {"clients": 6, "max_examples": 120, "architectures": ["linear"], "client_fraction": 0.5}
    config = tiny("fedavg", federation=federation, aggregation={"kind": "krum"})
    with pytest.raises(GenfedError, match="1 of 3 uploads are assumed malicious, and Krum then needs 5"):
        start(config, tmp_path / "run")
