"""A table in a method's table changes the settings that it names, and no others."""

import dataclasses
from typing import Any

import pytest

from genfed.config import registry
from genfed.config.reader import build_settings, read_config, settings_table
from genfed.core.errors import GenfedError
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
    table = tiny("gh_ofl", method={"gh_ofl": {"generator": {"kind": "gaussian_mixture", "components": 2}}})
    method: Any = read_config(table).method["gh_ofl"]
    cls: type[Any] = registry.find_class(registry.GENERATORS, "gaussian_mixture")
    assert method.generator == cls(components=2)


def generators(defaults: dict[str, Any], own: dict[str, Any]) -> Any:
    """Returns the generator of `gefl`, whose own default is a CVAE."""
    table = tiny("gefl", method={"gefl": {"generator": own} if own else {}}, defaults={"generator": defaults})
    table["method"]["gefl"] = {"generator": own} if own else {}
    method: Any = read_config(table).method["gefl"]
    return method.generator


@pytest.mark.parametrize(
    ("defaults", "own"),
    [
        ({"kind": "cvae", "width": 16}, {}),
        ({"kind": "cvae", "width": 16}, {"kind": "cvae", "latent_dim": 5}),
        ({"kind": "cvae", "width": 16}, {"latent_dim": 5}),
        ({"width": 16}, {"kind": "cvae", "latent_dim": 5}),
        ({"kind": "cvae", "width": 99, "latent_dim": 5}, {"kind": "cvae", "width": 16}),
    ],
)
def test_a_table_of_the_same_kind_keeps_what_the_defaults_of_the_run_say(
    defaults: dict[str, Any], own: dict[str, Any]
) -> None:
    cls: type[Any] = registry.find_class(registry.GENERATORS, "cvae")
    expected = {"width": 16} | ({"latent_dim": 5} if "latent_dim" in defaults | own else {})
    assert generators(defaults, own) == cls(**expected)


def test_a_table_of_another_kind_keeps_nothing_of_them() -> None:
    cls: type[Any] = registry.find_class(registry.GENERATORS, "cvae")
    assert generators({"kind": "ddpm", "width": 16}, {"kind": "cvae"}) == cls()


def test_a_default_that_another_kind_has_not_is_refused_by_its_own_name() -> None:
    with pytest.raises(GenfedError, match=r"^defaults\.generator\.no_such: no such setting"):
        generators({"no_such": 1}, {"kind": "cvae"})
    with pytest.raises(GenfedError, match=r"^method\.gefl\.generator\.no_such: no such setting"):
        generators({"width": 1}, {"kind": "cvae", "no_such": 1})


def test_a_default_of_the_kind_of_the_methods_own_keeps_its_other_settings() -> None:
    cls: type[Any] = registry.find_class(registry.METHODS, "fedpft")
    table = tiny("fedpft", defaults={"generator": {"kind": "gaussian_mixture", "components": 2}})
    table["method"]["fedpft"].pop("generator", None)
    method: Any = read_config(table).method["fedpft"]
    assert method.generator == dataclasses.replace(cls().generator, components=2)
    assert method.generator != registry.find_class(registry.GENERATORS, "gaussian_mixture")(components=2)
