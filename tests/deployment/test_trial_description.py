"""What a server says about a trial: its fingerprint, which sites sign under secure aggregation."""

import json
from typing import Any

import pytest

from genfed.deployment.trial_description import TrialDescription, fingerprint_description, read_description

ABOUT: dict[str, Any] = {
    "run": "demo",
    "label": "fedavg",
    "seed": 0,
    "method": {"kind": "fedavg", "rounds": 3, "training": {"epochs": 1, "learning_rate": 0.1}},
    "classes": ["0", "1"],
    "federation": {"clients": 8, "client_fraction": 1.0},
    "precision": "float32",
    "flops": False,
    "secure_aggregation": {"minimum_group": 8},
    "privacy": None,
    "client_privacy": {"kind": "dp_fedavg", "clip_norm": 1.0},
}
OTHERS: dict[str, Any] = {
    "run": "demo2",
    "label": "other",
    "seed": 1,
    "method": {"kind": "fedavg", "rounds": 3, "training": {"epochs": 0, "learning_rate": 0.1}},
    "classes": ["1", "0"],
    "federation": {"clients": 8, "client_fraction": 0.5},
    "precision": "bfloat16",
    "flops": True,
    "secure_aggregation": {"minimum_group": 3},
    "privacy": {"kind": "dp_sgd"},
    "client_privacy": {"kind": "dp_fedavg", "clip_norm": 0.001},
    "sum_privacy": {"kind": "dp_sum", "clip_norm": 1.0},
}


def fingerprint(about: dict[str, Any], **form: Any) -> str:
    return fingerprint_description(read_description(json.dumps(about, **form)))


def test_the_same_description_has_one_fingerprint_however_it_is_written() -> None:
    assert fingerprint(ABOUT) == fingerprint(dict(reversed(ABOUT.items())), indent=2)


@pytest.mark.parametrize("name", sorted(TrialDescription.__annotations__))
def test_every_part_of_a_description_changes_its_fingerprint(name: str) -> None:
    assert fingerprint(ABOUT | {name: OTHERS[name]}) != fingerprint(ABOUT)
