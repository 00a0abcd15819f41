"""Names of 0.1: each is refused in one line that says the new name."""

import dataclasses
import typing
from typing import Any

import pytest

from genfed.config import registry
from genfed.config.reader import build_settings, read_config
from genfed.config.renamed import KINDS, SETTINGS
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from tests.conftest import tiny

CLASSES = [(family, name) for family in registry.FAMILIES for name in registry.list_classes(family)]


def settings_classes() -> dict[str, type[Any]]:
    """Every class whose fields are settings, and its bases, by name."""
    found: dict[str, type[Any]] = {}
    waiting: list[Any] = [Config, *(registry.find_class(family, name) for family, name in CLASSES)]
    while waiting:
        hint = waiting.pop()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint.__name__ not in found:
            found[hint.__name__] = hint
            waiting += [*hint.__mro__, *typing.get_type_hints(hint).values()]
        waiting += typing.get_args(hint)
    return found


NOW = settings_classes()
RENAMED = [(name, old, new) for name, names in SETTINGS.items() for old, new in names.items()]


@pytest.mark.parametrize(("name", "old", "new"), RENAMED)
def test_an_old_setting_is_refused_with_its_new_name(name: str, old: str, new: str) -> None:
    heirs = [cls for cls in NOW.values() if issubclass(cls, NOW[name])]
    for cls in heirs:
        fields = {field.name for field in dataclasses.fields(cls)}
        assert new.split()[0] in fields, "renamed again: the table must say the newest name"
        assert old not in fields
        with pytest.raises(GenfedError) as caught:
            build_settings(cls, {old: 1}, "at.")
        assert str(caught.value) == f"at.{old} is called {new} since genfed 0.2"


@pytest.mark.parametrize(("old", "new"), KINDS.items())
def test_an_old_kind_is_refused_with_its_new_name(old: str, new: str) -> None:
    (family,) = [family for family, name in CLASSES if name == new]
    with pytest.raises(GenfedError) as caught:
        registry.find_class(family, old)
    assert str(caught.value) == f"{old} is called {new} since genfed 0.2"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beside": []}, "beside is called baselines since genfed 0.2"),
        ({"federation": {"examples": 80}}, "federation.examples is called max_examples since genfed 0.2"),
        ({"client_privacy": {}}, 'client_privacy is called privacy with kind = "dp_fedavg" since genfed 0.2'),
        ({"data": {"kind": "looks"}}, "looks is called digit_domains since genfed 0.2"),
        (
            {"defaults": {"training": {"optimiser": "sgd"}}},
            "defaults.training.optimiser is called optimizer since genfed 0.2",
        ),
        (
            {"method": {"gefl": {"generator": {"kind": "cvae", "latent": 4}}}},
            "method.gefl.generator.latent is called latent_dim since genfed 0.2",
        ),
    ],
)
def test_a_config_is_refused_where_the_old_name_stands(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GenfedError) as caught:
        read_config(tiny("gefl", **changes))
    assert str(caught.value) == says


def test_a_default_that_no_longer_reaches_a_method_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    table = tiny("fedavg", "fgl")
    del table["method"]["fgl"]["finetune_rounds"]
    read_config(table)
    assert "defaults.rounds does not reach fgl, which calls it finetune_rounds since genfed 0.2" in caplog.text
    assert "defaults.training" not in caplog.text, "client_training is set"


def test_a_method_that_is_not_run_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read_config(tiny("fedavg", method={"fgl": {}}))
    assert "does not reach" not in caplog.text
