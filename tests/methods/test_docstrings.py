"""The class of every method says what each of its phases sends."""

import inspect

import pytest

from genfed.config import registry
from genfed.core.phase import flatten_phases

METHODS = registry.list_classes(registry.METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_phase_has_a_line(name: str) -> None:
    """Numbered, with the name of the phase first; what is of a phase is in the same item."""
    text = inspect.getdoc(METHODS[name]) or ""
    items = [line.split(". ", 1)[1] for line in text.splitlines() if line[:1].isdigit()]
    named = {item.split(",")[0].split(":")[0] for item in items}
    assert {phase.name for phase in flatten_phases(METHODS[name]().phases())} <= named
