"""A table in a method's table changes the settings that it names, and no others."""

import dataclasses
from typing import Any

import pytest

from genfed.config import registry
from genfed.config.reader import build_settings, read_config, settings_table
from tests.conftest import tiny


def with_defaults() -> list[tuple[str, str]]:
    """Returns the methods whose settings have defaults, and the names of their settings that are tables."""
    found = []
    for name, cls in sorted(registry.list_classes(registry.METHODS).items()):
        if any(field.is_required() for field in cls.__pydantic_fields__.values()):
            continue
        method = cls()
        found += [(name, f.name) for f in dataclasses.fields(cls) if dataclasses.is_dataclass(getattr(method, f.name))]
    return found


@pytest.mark.parametrize(("name", "table"), with_defaults())
def test_naming_one_setting_leaves_the_others_as_they_are(name: str, table: str) -> None:
    cls: type[Any] = registry.find_class(registry.METHODS, name)
    method = cls()
    whole = settings_table(getattr(method, table))
    kind = {"kind": whole.pop("kind")} if "kind" in whole and "kind" not in vars(getattr(method, table)) else {}
    for key, value in whole.items():
        if not isinstance(value, dict):
            assert build_settings(cls, {table: {**kind, key: value}}, "") == method


def read(**settings: Any) -> Any:
    return read_config(tiny("fedgh", method={"fedgh": settings})).method["fedgh"]


def test_a_named_setting_is_set() -> None:
    header = read(header_training={"epochs": 3}).header_training
    assert (header.epochs, header.batch_size, header.learning_rate) == (3, 1, 0.01)


def test_defaults_of_a_run_stand_on_those_of_the_method() -> None:
    table = tiny("fedcvae_kd", method={"fedcvae_kd": {}}, defaults={"training": {"epochs": 3}})
    method: Any = read_config(table).method["fedcvae_kd"]
    training = method.training
    assert (training.epochs, training.optimizer, training.learning_rate) == (3, "adam", 0.001)


def test_another_kind_has_its_own_defaults() -> None:
    table = tiny("gh_ofl", method={"gh_ofl": {"generator": {"kind": "mixture", "components": 2}}})
    method: Any = read_config(table).method["gh_ofl"]
    cls: type[Any] = registry.find_class(registry.GENERATORS, "mixture")
    assert method.generator == cls(components=2)
