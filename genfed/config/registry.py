"""Things found by name: a method, generator, data source or audit is a file; others come by entry point or
"module:Class".
"""

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from genfed.audits.audit import Audit
from genfed.core.errors import GenfedError, first_line
from genfed.core.method import Method
from genfed.data.dataset import Source
from genfed.data.partition import Partitioner
from genfed.generators.generator import Generator
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule


@dataclass(frozen=True)
class Family:
    """A kind of thing that a config names."""

    plural: str
    """As in `genfed list methods`, and the entry-point group genfed.methods."""
    base: type[Any]
    package: str
    """Where genfed's own are: one a file, or, where it is a module, all of its classes."""


METHODS = Family("methods", Method, "genfed.methods")
DATA = Family("data", Source, "genfed.data")
PARTITIONS = Family("partitions", Partitioner, "genfed.data.partition")
GENERATORS = Family("generators", Generator, "genfed.generators")
AUDITS = Family("audits", Audit, "genfed.audits")
AGGREGATIONS = Family("aggregations", AggregationRule, "genfed.robustness.rules")
ATTACKS = Family("attacks", Attack, "genfed.robustness.attacks")
FAMILIES = (METHODS, DATA, PARTITIONS, GENERATORS, AUDITS, AGGREGATIONS, ATTACKS)


def list_classes(family: Family) -> dict[str, type[Any]]:
    """Every name of the family, genfed's own and those that installed packages register."""
    package = importlib.import_module(family.package)
    if hasattr(package, "__path__"):
        modules = {m.name: importlib.import_module(f"{family.package}.{m.name}") for m in list_modules(package)}
        found = {name: classes[0] for name, module in modules.items() if (classes := _classes(module, family.base))}
    else:
        found = {_snake(c.__name__): c for c in _classes(package, family.base)}
    for point in importlib.metadata.entry_points(group=f"genfed.{family.plural}"):
        found[point.name] = point.load()
    return found


def find_class(family: Family, name: str) -> type[Any]:
    """The class of that name, or of "package.module:Class".

    Raises:
        GenfedError: there is none; the nearest name is given.
    """
    if ":" in name:
        cls = import_class(name, family.base)
        if "__dataclass_fields__" not in vars(cls):
            raise GenfedError(f"{name}: a {family.base.__name__} bears @genfed.settings, and this has none")
        if inspect.isabstract(cls):
            raise GenfedError(f"{name}: it lacks {', '.join(sorted(cls.__abstractmethods__))}")
        return cls
    known = list_classes(family)
    if name not in known:
        raise GenfedError(explain_unknown(name, known, f"no such {family.plural.removesuffix('s')}"))
    return known[name]


def name_of(family: Family, cls: type[Any]) -> str:
    """The name by which `find` gives this class."""
    return next((n for n, c in list_classes(family).items() if c is cls), f"{cls.__module__}:{cls.__qualname__}")


def explain_unknown(name: str, known: Iterable[str], what: str) -> str:
    """One line that says what there is, the nearest first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: {name!r}{hint} (there are: {', '.join(names) or 'none'})"


def list_modules(package: ModuleType) -> list[pkgutil.ModuleInfo]:
    """Returns the modules of a package whose names have no leading underscore."""
    return [m for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]


def _classes(module: ModuleType, base: type[Any]) -> list[type[Any]]:
    return [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c) and c.__module__ == module.__name__
    ]


def import_class(path: str, base: type[Any]) -> type[Any]:
    """Imports "package.module:Class".

    Raises:
        GenfedError: the module cannot be imported, or has no such subclass of `base`.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise GenfedError(f"{path}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from None
    except Exception as error:  # it is run, and may fail in any way
        raise GenfedError(
            f"{path}: cannot import {module_name!r} ({type(error).__name__}: {first_line(error)})"
        ) from error
    cls = getattr(module, class_name, None)
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise GenfedError(f"{path}: {module_name} has no class {class_name} that is a {base.__name__}")
    return cls


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
