"""Classes that a config names: a method, generator, data source or audit is a file of genfed; others come by entry
point or as "module:Class".
"""

import difflib
import functools
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
from genfed.config.renamed import KINDS
from genfed.core.errors import GenfedError, MissingCodeError, describe_error
from genfed.core.files import keep_directory
from genfed.core.method import Method
from genfed.data.dataset import Source
from genfed.data.partition import Partitioner
from genfed.encoders.encoder import Encoder
from genfed.generators.generator import Generator
from genfed.privacy.settings import PrivacySettings
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule


@dataclass(frozen=True)
class Family:
    """A kind of class that a config names."""

    plural: str
    """Name in `genfed list methods`, and in the entry-point group genfed.methods."""
    base: type[Any]
    """Base class of the family."""
    package: str
    """Where genfed's own classes are: a package with one class per file, or a module."""


METHODS = Family("methods", Method, "genfed.methods")
DATA = Family("data", Source, "genfed.data")
PARTITIONS = Family("partitions", Partitioner, "genfed.data.partition")
GENERATORS = Family("generators", Generator, "genfed.generators")
ENCODERS = Family("encoders", Encoder, "genfed.encoders")
AUDITS = Family("audits", Audit, "genfed.audits")
AGGREGATIONS = Family("aggregations", AggregationRule, "genfed.robustness.rules")
ATTACKS = Family("attacks", Attack, "genfed.robustness.attacks")
PRIVACY = Family("privacy", PrivacySettings, "genfed.privacy.settings")
FAMILIES = (METHODS, DATA, PARTITIONS, GENERATORS, ENCODERS, AUDITS, AGGREGATIONS, ATTACKS, PRIVACY)


def list_classes(family: Family) -> dict[str, type[Any]]:
    """Returns the classes of the family by name: genfed's own, and those that installed packages register."""
    package = importlib.import_module(family.package)
    if hasattr(package, "__path__"):
        modules = {m.name: importlib.import_module(f"{family.package}.{m.name}") for m in list_modules(package)}
        found = {name: classes[0] for name, module in modules.items() if (classes := _classes(module, family.base))}
    else:
        found = {
            getattr(c, "kind", _snake(c.__name__)): c for c in _classes(package, family.base) if c is not family.base
        }
    for point in list_entry_points(f"genfed.{family.plural}"):
        found[point.name] = point.load()
    return found


@functools.cache
def list_entry_points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Returns what the installed packages register in an entry-point group. It is read once: that reads a file of each
    package, and a config asks for it a dozen times.
    """
    return tuple(importlib.metadata.entry_points(group=group))


def find_class(family: Family, name: str) -> type[Any]:
    """Returns the class of that name, or of "package.module:Class".

    Raises:
        GenfedError: there is none, or it cannot be used. The text names the nearest name.
    """
    if ":" in name:
        cls = import_class(name, family.base)
        if "__dataclass_fields__" not in vars(cls):
            raise GenfedError(f"{name}: a {family.base.__name__} is decorated with @genfed.settings, and this is not")
        if inspect.isabstract(cls):
            raise GenfedError(f"{name}: it lacks {', '.join(sorted(cls.__abstractmethods__))}")
        return cls
    known = list_classes(family)
    if name in KINDS and name not in known:
        raise GenfedError(f"{name} is called {KINDS[name]} since genfed 0.2")
    if name not in known:
        raise GenfedError(explain_unknown(name, known, f"no such {family.plural.removesuffix('s')}"))
    return known[name]


def name_of(family: Family, cls: type[Any]) -> str:
    """Returns the name by which `find_class` finds this class."""
    return next((n for n, c in list_classes(family).items() if c is cls), f"{cls.__module__}:{cls.__qualname__}")


def explain_unknown(name: str, known: Iterable[str], what: str) -> str:
    """Returns a line for an unknown name: `what` was looked up, the nearest known name, and all of them."""
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
        GenfedError: the module is not found (`MissingCodeError`) or cannot be imported, or has no such subclass of
            `base`.
    """
    module_name, _, class_name = path.partition(":")
    try:
        with keep_directory():
            module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        raise MissingCodeError(f"{path}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from None
    except BaseException as error:  # a user's own code may fail in any way
        raise GenfedError(f"{path}: cannot import {module_name!r} ({describe_error(error)})") from error
    cls = getattr(module, class_name, None)
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise GenfedError(f"{path}: {module_name} has no class {class_name} that is a {base.__name__}")
    return cls


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
