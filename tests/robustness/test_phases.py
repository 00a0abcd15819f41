"""An attack acts in the phases that it names, and in no other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.core.record import digest, pack
from genfed.experiment.checkpoint import read_checkpoint
from genfed.training.weights import Model
from tests.conftest import start, tiny

FEATURES = {"extractor_rounds": 1, "generator_rounds": 1, "rounds": 1}
ENCODED = {
    "encoder": {"kind": "random_conv", "filters": 4, "cells": 2},
    "generator": {"kind": "gaussian"},
    "rounds": 1,
}


def left(settings: dict[str, Any], out: Path, phases: list[str] | None) -> Any:
    """The state that a run leaves, with or without an attack by all clients in these phases."""
    config = tiny("gefl_f", method={"gefl_f": settings}, evaluation={"every": 0})
    if phases is not None:
        config["attack"] = {"kind": "label_flip", "share": 1.0, "phases": phases}
    start(config, out)
    at = read_checkpoint(read_config(config).method["gefl_f"], out / "trials" / "gefl_f" / "seed-0")
    assert at is not None
    return at.state


def same(one: Any, other: Any, name: str) -> bool:
    return digest(pack(Model(flatten(getattr(one, name))))) == digest(pack(Model(flatten(getattr(other, name)))))


def flatten(tree: dict[str, Any]) -> dict[str, torch.Tensor]:
    nested = {
        f"{outer} {key}": value for outer, each in tree.items() if isinstance(each, dict) for key, value in each.items()
    }
    return nested or tree


@pytest.mark.parametrize("settings", [FEATURES, ENCODED], ids=["shared", "fixed"])
def test_stored_features_do_not_carry_an_attack_to_another_phase(settings: dict[str, Any], tmp_path: Path) -> None:
    honest = left(settings, tmp_path / "honest", None)
    joint = left(settings, tmp_path / "joint", ["joint"])
    assert same(honest, joint, "generator")
    assert not same(honest, joint, "headers"), "their own labels were stored before"
    earlier = left(settings, tmp_path / "generator", ["generator"])
    both = left(settings, tmp_path / "both", ["generator", "joint"])
    assert not same(honest, earlier, "generator")
    assert same(earlier, both, "generator")
    assert not same(earlier, both, "headers"), "honest headers would learn from false labels"


@pytest.mark.parametrize("kind", ["sign_flip", "scaling"])
def test_attacks_on_updates_are_refused_where_clients_add_up_whole_numbers(kind: str, tmp_path: Path) -> None:
    """They would change nothing, and the method would look immune."""
    for label, method in (("fedcgs", {}), ("gefl_f", ENCODED)):
        config = tiny(label, method={label: method}) | {"attack": {"kind": kind}}
        with pytest.raises(
            GenfedError, match=r"in phase \w+ clients add up whole numbers, not updates; use label_flip"
        ):
            start(config, tmp_path / label)
    config = tiny("gefl_f", method={"gefl_f": ENCODED}) | {"attack": {"kind": kind, "phases": ["joint"]}}
    start(config, tmp_path / "joint")
