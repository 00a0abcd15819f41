"""Every public name and every method has an example that runs."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import genfed
from genfed.config import registry

PUBLIC = {name: getattr(genfed, name) for name in genfed.__all__} | registry.list_classes(registry.METHODS)


@pytest.mark.parametrize("module", sorted({value.__module__ for value in PUBLIC.values()}))
def test_the_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in an empty folder, and leave nothing there."""
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(module)).failed == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (PUBLIC[name].__doc__ or "")


def test_the_package_groups_its_names() -> None:
    """`help(genfed)` begins with them."""
    text = genfed.__doc__ or ""
    assert [name for name in genfed.__all__ if f"`{name}`" not in text] == []


def modules() -> Iterator[ModuleType]:
    for package in ("core", "methods", "config", "cli"):
        root = importlib.import_module(f"genfed.{package}")
        for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            yield importlib.import_module(found.name)


def public_definitions(owner: object, module: str) -> Iterator[object]:
    """Classes and functions that the module defines, and the methods and properties that a class defines."""
    for name, value in vars(owner).items():
        where = getattr(value.fget if isinstance(value, property) else value, "__module__", None)
        if not name.startswith("_") and where == module and (inspect.isroutine(value) or isinstance(value, type)):
            yield getattr(owner, name)
            if isinstance(value, type) and inspect.ismodule(owner):
                yield from public_definitions(value, module)
        elif not name.startswith("_") and isinstance(value, property):
            yield value


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_a_public_definition_has_a_docstring(module: ModuleType) -> None:
    """A method that overrides another one may say what that one says."""
    found = public_definitions(module, module.__name__)
    assert [value for value in found if not inspect.getdoc(value)] == []
