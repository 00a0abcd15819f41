"""Runs whose server learns sums alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.app.config import read
from genfed.app.trial import read_checkpoint
from genfed.core.errors import GenfedError
from genfed.report.metrics import read as read_metrics
from genfed.report.privacy import read_audits
from tests.conftest import start, tiny

LINEAR: dict[str, Any] = {
    "federation": {"clients": 5, "examples": 100, "architectures": ["linear"]},
    "evaluation": {"every": 0},
}


def final(config: dict[str, Any], out: Path, **options: Any) -> torch.Tensor:
    start(config, out, **options)
    at = read_checkpoint(read(config).method["fedavg"], out / "trials" / "fedavg" / "seed-0")
    assert at is not None
    weights: torch.Tensor = torch.cat([w.flatten() for w in at.state.classifiers["linear"].values()])
    return weights


def test_it_ends_where_a_plain_run_does_and_repeats_to_the_bit(tmp_path: Path) -> None:
    plain = final(tiny("fedavg", **LINEAR), tmp_path / "plain")
    config = tiny("fedavg", **LINEAR, secure={"minimum_group": 3})
    hidden = final(config, tmp_path / "hidden")
    assert torch.allclose(hidden, plain, atol=1e-5)
    assert torch.equal(final(config | {"compute": {"workers": 2}}, tmp_path / "workers"), hidden)
    rows = [json.loads(line) for line in (tmp_path / "hidden" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train" and row["client"] is not None]
    assert len(trained) == 10
    assert not any("loss" in row for row in trained)
    assert all(row["up_bytes"] > 8 * len(hidden) for row in trained)
    scored = {
        out: [r for r in read_metrics(tmp_path / out / "metrics.jsonl") if "own" in r] for out in ("plain", "hidden")
    }
    assert len(scored["plain"]) == len(scored["hidden"]) == 5
    assert all(row["own"] is not None for row in scored["plain"])
    assert all(row["own"] is None for row in scored["hidden"]), "it is weighted by the classes that a client has"


def test_it_goes_on_after_a_stop(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    config = tiny("fedavg", **LINEAR, secure={})
    left = 8  # in the second round

    def stop(progress: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise StoppedError

    with pytest.raises(StoppedError):
        start(config, tmp_path / "run", notify=stop)
    again = final(config, tmp_path / "run", resume=True)
    assert torch.equal(again, final(config, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("methods", "changes", "says"),
    [
        (["ensemble"], {}, "of ensemble cannot be aggregated securely: its server needs every single classifier"),
        (["fedgen"], {}, "its server needs every single header"),
        (
            ["fedavg"],
            {"aggregation": {"kind": "median"}},
            "[secure] hides single uploads, which [aggregation] looks at",
        ),
        (
            ["fedavg"],
            {"attack": {"kind": "sign_flip"}},
            "[secure] hides single uploads, which [attack] is simulated on",
        ),
        (
            ["fedavg"],
            {"privacy": {"noise_multiplier": 1.0, "delta": 1e-3}},
            "[secure] with [privacy] is not built: its exchanges are not charged; leave one of them out",
        ),
        (["fedavg"], {}, "a sum would be of 2 uploads of architecture linear"),
        (["fedavg"], {"secure": {"threshold": 0.5}}, "secure.threshold = 0.5: input should be greater than 0.5"),
        (["fedavg"], {"secure": {"neighbours": 3}}, "secure.neighbours = 3: an even number is needed"),
    ],
)
def test_what_is_refused_before_training(
    methods: list[str], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = tiny(*methods, **({"secure": {}} | changes))
    with pytest.raises(GenfedError) as caught:
        start(config, tmp_path / "run")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_single_upload_is_there_to_be_audited(tmp_path: Path) -> None:
    start(tiny("fedavg", **LINEAR, secure={}, audits=["inversion"]), tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    assert found.results[0].not_possible == "uploads were sent under masks: nobody has a single one to attack"
