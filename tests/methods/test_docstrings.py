"""The class of every method says what each of its phases sends, in the names of its settings."""

import inspect
import re

import pytest

from genfed.config import registry
from genfed.config.renamed import find_new_setting
from genfed.core.phase import flatten_phases

METHODS = registry.list_classes(registry.METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_phase_has_a_line(name: str) -> None:
    """Numbered, with the name of the phase first; what is of a phase is in the same item."""
    text = inspect.getdoc(METHODS[name]) or ""
    items = [line.split(". ", 1)[1] for line in text.splitlines() if line[:1].isdigit()]
    named = {item.split(",")[0].split(":")[0] for item in items}
    assert {phase.name for phase in flatten_phases(METHODS[name]().phases())} <= named


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_setting_has_its_old_name(name: str) -> None:
    named = re.findall(r"`(\w+)`", inspect.getdoc(METHODS[name]) or "")
    assert [word for word in named if find_new_setting(METHODS[name], word)] == []
