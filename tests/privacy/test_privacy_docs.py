"""What docs/privacy.md says can protect a method does, and what it says is refused is."""

import re
from pathlib import Path
from typing import Any

import pytest

from genfed.config import registry
from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import flatten_phases
from genfed.privacy import compatibility as privacy_compatibility
from genfed.privacy.settings import DPFedAvg
from genfed.secure_aggregation.protocol import reason_to_refuse_secure
from tests.conftest import tiny

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "privacy.md").read_text("utf-8").split("## What leaves a client, and what can protect it")[1]
ROWS = [line.strip("| ").split(" | ") for line in TEXT.split("\n\n")[1].splitlines()[2:]]
SHOWN = sorted(registry.list_classes(registry.METHODS))


def names(cell: str) -> set[str]:
    """The methods that a cell names; `fedcvae_*` are several."""
    given = re.findall(r"`([a-z_*]+)`", cell)
    return {name for name in SHOWN for each in given if re.fullmatch(each.replace("*", ".*"), name)}


def allowed(cell: str, name: str) -> bool:
    if cell.startswith("no") and not cell.startswith("nothing"):
        return False
    return name not in names(cell) if cell.startswith(("yes", "nothing")) else name in names(cell)


def by_example(method: Method[Any]) -> bool:
    try:
        privacy_compatibility.check_method("it", method)
    except GenfedError:
        return False
    return True


def test_every_federated_method_stands_there_once() -> None:
    there = [name for row in ROWS for name in names(row[0])]
    assert sorted(there) == [name for name in SHOWN if name not in ("centralised", "prompts_only")]


@pytest.mark.parametrize("name", [name for row in ROWS for name in sorted(names(row[0]))])
def test_what_can_protect_it(name: str) -> None:
    (row,) = [row for row in ROWS if name in names(row[0])]
    method = read_config(tiny(name)).method[name]
    sent = [phase for phase in flatten_phases(method.phases()) if phase.aggregate]
    how = DPFedAvg(noise_multiplier=1.0, delta=1e-3)
    found = (
        by_example(method),
        not any(privacy_compatibility.reason_to_refuse(phase, how) for phase in sent),
        not any(reason_to_refuse_secure(phase) for phase in sent),
    )
    assert found == tuple(allowed(cell, name) for cell in row[3:6])
