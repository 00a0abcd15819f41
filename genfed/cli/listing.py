"""What `genfed list` shows: names, what they are, and every setting."""

import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Column, Table

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Compute, Config, Evaluation, Federation, Metrics
from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.privacy.settings import AdaptiveClipping, ClientPrivacy, Privacy
from genfed.report.results import Published
from genfed.secure_aggregation.settings import SecureAggregation


def print_listing(what: str, name: str | None = None) -> RenderableType:
    """All of a kind in a table; one alone, or "settings", with its settings.

    Raises:
        GenfedError: no such name.
    """
    if what == "settings":
        if name is not None:
            raise GenfedError(f"list settings takes no name ({name!r}); it shows all of them")
        tables = {"": Config, "federation": Federation, "evaluation": Evaluation, "compute": Compute}
        tables |= {"quality": Metrics, "secure": SecureAggregation, "privacy": Privacy, "client_privacy": ClientPrivacy}
        tables |= {"client_privacy.adaptive": AdaptiveClipping, "published.WORD": Published}
        closing = "[defaults] holds settings for every method that has them; [method.LABEL] those of one method."
        return Group(
            closing, *(_settings(cls, f"[{key}]" if key else "the top of the file") for key, cls in tables.items())
        )
    if what == "architectures":
        return _architectures(name)
    family = next(f for f in registry.FAMILIES if f.plural == what)
    if name is not None:
        cls = registry.find_class(family, name)
        return Group(f"{name}: {_about(cls)}", *_more(cls), "", _settings(cls, "settings"), *_inner(cls))
    table = Table("name", "what it is", "settings")
    for key, cls in sorted(registry.list_classes(family).items()):
        table.add_row(key, _about(cls), ", ".join(f.name for f in dataclasses.fields(cls)) or "–")
    closing = f'`genfed list {what} NAME` explains one with its settings; your own is "package.module:Class".'
    return Group(table, closing)


def _inner(cls: type[Any]) -> list[Table]:
    """A table for each setting that is a table of settings itself; fields of one type have one."""
    found: dict[type[Any], list[str]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        for part in typing.get_args(hint) or (hint,):
            if name in cls.__pydantic_fields__ and dataclasses.is_dataclass(part) and not inspect.isabstract(part):
                found.setdefault(typing.cast(type[Any], part), []).append(name)
    return [_settings(part, ", ".join(names)) for part, names in found.items()]


def _architectures(name: str | None) -> RenderableType:
    about = Column("what it is", no_wrap=True)
    table = Table("name", about, "parameters (1×32×32, 10 classes)", "on a table of 16 features")
    known = Architectures()
    if name is not None and name not in known.names():
        raise GenfedError(registry.explain_unknown(name, known.names(), "no such architecture"))
    image = Task("image", (1, 32, 32), tuple("0123456789"))
    features = Task("table", (16,), ("no", "yes"))
    for key in known.names() if name is None else [name]:
        what = _network(known.factory(key))
        table.add_row(key, what, _parameters(known, key, image), _parameters(known, key, features))
    return Group(table, 'Your own is "package.module:Class", called with the task (kind, shape, classes).')


def _network(make: Any) -> str:
    """What stands before the colon of its first line, and what makes it another than the others of its class."""
    cls, given = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    parts = [(inspect.getdoc(cls) or "").partition("\n")[0].partition(":")[0].rstrip(".")]
    for key, value in given.items():
        if isinstance(value, tuple):
            parts.append(f"{key} {', '.join(map(str, value)) or 'none'}")
        elif isinstance(value, str) and key != "name":
            parts.append(f"{key} by {value}")
        elif callable(value):
            parts.append(getattr(value, "func", value).__name__)
    return "; ".join(parts)


def _parameters(known: Architectures, name: str, task: Task) -> str:
    try:
        network = known.new(name, task, torch.Generator().manual_seed(0))
    except GenfedError:
        return "–"
    return f"{sum(p.numel() for p in network.parameters()):,}"


def _settings(cls: type[Any], title: str) -> Table:
    table = Table("setting", "type", "default", "what it is", title=title, title_justify="left")
    for field in dataclasses.fields(cls):
        about = cls.__pydantic_fields__[field.name]
        hint = typing.get_type_hints(cls)[field.name]
        told = _default(about, field.name if cls is Config else "")
        table.add_row(field.name, _type(hint), told, " ".join((about.description or "").split()))
    return table


_TYPES: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _type(hint: Any) -> str:
    """In words; what may be left out has that as its default."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return " or ".join(map(repr, parts))
    words = [_type(part) for part in parts if part not in (type(None), ...)]
    if kind in (tuple, dict):
        return ("list of " if kind is tuple else "table of ") + words[-1].replace("number", "numbers")
    return " or ".join(words) if kind in (typing.Union, types.UnionType) else _TYPES.get(hint, "table")


READ = {"name": "the file's name", "method": "each with its defaults"}
"""What a file may leave out though a `Config` has it."""


def _default(field: Any, name: str = "") -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() and name in READ:
        return READ[name]
    if field.is_required():
        return "required"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return "unset" if value is None else repr(value)


def _about(cls: type[Any]) -> str:
    """Returns the first paragraph of the docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _more(cls: type[Any]) -> list[str]:
    """Returns the other paragraphs of the docstring as they are, but for examples."""
    return [f"\n{text}" for text in (inspect.getdoc(cls) or "").split("\n\n")[1:] if not text.startswith(">>>")]
