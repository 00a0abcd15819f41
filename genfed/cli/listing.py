"""The tables of `genfed list`: names, what they are, and every setting."""

import dataclasses
import functools
import inspect
import re
import types
import typing
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Compute, Config, Evaluation, Federation, Metrics
from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.report.glossary import METRICS
from genfed.report.results import Published
from genfed.secure_aggregation.settings import SecureAggregation


def build_listing(what: str, name: str | None = None) -> RenderableType:
    """Returns the table of a kind of things, or one of them with its settings.

    Args:
        what: Kind, such as "methods"; "settings" and "metrics" take no name.
        name: One thing of this kind; None: all.

    Raises:
        GenfedError: there is no such kind or name.
    """
    families = {family.plural: family for family in registry.FAMILIES}
    whole = {"architectures": _build_architectures, "settings": _build_all_settings, "metrics": _build_metrics}
    if what not in families and what not in whole:
        raise GenfedError(registry.explain_unknown(what, [*families, *whole], "cannot list"))
    if what in ("settings", "metrics") and name is not None:
        raise GenfedError(f"list {what} takes no name ({name!r}); it shows all of them")
    return _build_family(families[what], name) if what in families else whole[what](name)


def _build_family(family: registry.Family, name: str | None) -> RenderableType:
    if name is not None:
        cls = registry.find_class(family, name)
        return Group(
            f"{name}: {_read_docstring(cls)}",
            *_read_paragraphs(cls),
            "",
            _build_settings(cls, "settings"),
            *_build_inner(cls),
        )
    table = Table(Column("name", no_wrap=True), "what it is", "settings")
    for key, cls in sorted(registry.list_classes(family).items()):
        table.add_row(key, _read_docstring(cls), ", ".join(f.name for f in dataclasses.fields(cls)) or "–")
    closing = (
        f'`genfed list {family.plural} NAME` explains one and its settings. Your own is named "package.module:Class".'
    )
    return Group(table, closing)


def _build_all_settings(_: str | None) -> RenderableType:
    tables = {"": Config, "federation": Federation, "evaluation": Evaluation, "compute": Compute}
    tables |= {"metrics": Metrics, "secure_aggregation": SecureAggregation, "published.LABEL": Published}
    opening = "[defaults] holds settings for every method that has them; [method.LABEL] those of one method."
    titles = {key: f"[{key}]" if key else "the top of the file" for key in tables}
    return Group(opening, *(_build_settings(cls, titles[key]) for key, cls in tables.items()))


def _build_metrics(_: str | None) -> RenderableType:
    table = Table("name", "what it is", Column("range", no_wrap=True), "better", box=box.SIMPLE_HEAD)
    for group in METRICS:
        for metric in group:
            table.add_row(*metric)
        table.add_section()
    return Group(table, "docs/measures.md defines each of them, with its limits.")


def _build_inner(cls: type[Any]) -> list[Table]:
    """Returns a table for each setting that is itself a table of settings, with the defaults that it has there;
    settings of one type with the same defaults share it.
    """
    found: dict[tuple[type[Any], str], tuple[list[str], Any]] = {}
    hints = typing.get_type_hints(cls)
    for name, field in cls.__pydantic_fields__.items():
        value = field.get_default(call_default_factory=True)
        named: list[Any] = list(typing.get_args(hints[name]) or (hints[name],))
        parts = [part for part in named if _is_settings(part)]
        if not parts and _is_settings(kind := type(value)) and value != kind():  # other defaults than its kind's
            parts = [kind]
        for part in parts:
            default = value if type(value) is part else None
            found.setdefault((part, repr(default)), ([], default))[0].append(name)
    return [_build_settings(part, ", ".join(names), default) for (part, _), (names, default) in found.items()]


def _is_settings(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and not inspect.isabstract(kind)


def _build_architectures(name: str | None) -> RenderableType:
    shown = {
        "1×32×32": Task("image", (1, 32, 32), tuple("0123456789")),
        "16 features": Task("table", (16,), ("no", "yes")),
        "series 9×128": Task("series", (9, 128), tuple("012345")),
    }
    table = Table(Column("name", no_wrap=True), "what it is", *(f"parameters\n({form})" for form in shown))
    known = Architectures()
    if name is not None and name not in known.names():
        raise GenfedError(registry.explain_unknown(name, known.names(), "no such architecture"))
    for key in known.names() if name is None else [name]:
        counts = (_count_parameters(known, key, task) for task in shown.values())
        table.add_row(key, describe_network(known.factory(key)), *counts)
    return Group(table, 'Your own is named "package.module:Class". It is called with the task (kind, shape, classes).')


def describe_network(make: Any) -> str:
    """Returns the start of its docstring, and the arguments in which it differs from others of its class."""
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


def _count_parameters(known: Architectures, name: str, task: Task) -> str:
    try:
        network = known.new(name, task, torch.Generator().manual_seed(0))
    except GenfedError:
        return "–"
    return f"{sum(p.numel() for p in network.parameters()):,}"


def _build_settings(cls: type[Any], title: str, defaults: Any = None) -> Table:
    """Returns a table of settings. `defaults`: an object that has their defaults; None: the class has them."""
    table = Table(Column("setting", no_wrap=True), "type", "default", "what it is", title=title, title_justify="left")
    for field in dataclasses.fields(cls):
        about = cls.__pydantic_fields__[field.name]
        hint = typing.get_type_hints(cls)[field.name]
        known = about.get_default(call_default_factory=True) if defaults is None else getattr(defaults, field.name)
        required = defaults is None and about.is_required()
        default = _format_default(known, required, field.name if cls is Config else "")
        table.add_row(field.name, _describe_type(hint), default, " ".join((about.description or "").split()))
    return table


_TYPES: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _describe_type(hint: Any) -> str:
    """Returns a type in words; None is not mentioned, since the default says so."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return " or ".join(map(repr, parts))
    words = [_describe_type(part) for part in parts if part not in (type(None), ...)]
    if kind in (tuple, dict):
        return ("list of " if kind is tuple else "table of ") + re.sub(r"\b(number|table)\b", r"\1s", words[-1])
    return " or ".join(words) if kind in (typing.Union, types.UnionType) else _TYPES.get(hint, "table")


READ = {"name": "the file's name", "method": "each with its defaults"}
"""Defaults of settings that a `Config` requires and a file does not."""


def _format_default(value: Any, required: bool, name: str) -> str:
    if required:
        return READ.get(name, "required")
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return "unset" if value is None else repr(value)


def _read_docstring(cls: type[Any]) -> str:
    """Returns the first paragraph of the docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _read_paragraphs(cls: type[Any]) -> list[str]:
    """Returns the other paragraphs of the docstring, without examples; a point of a list is one line."""
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")[1:]
    return ["\n" + re.sub(r"\n +", " ", text) for text in paragraphs if not text.startswith(">>>")]
