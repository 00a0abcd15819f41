"""A run's settings: a TOML file, `key=value` on top, checked before anything is done."""

import dataclasses
import logging
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tomli_w

from genfed.audits.audit import Audit
from genfed.config import registry
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.data.dataset import Source
from genfed.report.results import Published

T = TypeVar("T")
Table = dict[str, Any]
log = logging.getLogger(__name__)


def read_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Reads a TOML file, a run's folder (its resolved config) or a table of settings; `overrides` are "key=value" with
    a dotted key and a TOML value (a bare word is a string).

    Raises:
        GenfedError: no such file, not TOML, or a setting that is unknown, missing, of a wrong type or out of bounds.
    """
    return _config(read_table(source, overrides))


def read_table(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Table:
    """The settings as they stand, not yet checked; see `read`."""
    if isinstance(source, Mapping):
        table = {k: _mutable(v) for k, v in source.items()}
    else:
        path = Path(source)
        path = path / "config.toml" if path.is_dir() else path
        try:
            table = {"name": path.stem} | tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise GenfedError(f"{path}: {why}; give a TOML file or the folder of a run") from None
        except tomllib.TOMLDecodeError as error:
            raise GenfedError(f"{path}: not TOML: {error}") from None
    for override in overrides:
        _override(table, override)
    return table


def to_toml(config: Config) -> str:
    """The resolved settings, every default written out; `read` gives the same config."""
    return dump_toml(config)


def dump_toml(config: object) -> str:
    """Any settings, every default written out."""
    return tomli_w.dumps(_dump(config))


def flatten_settings(config: object) -> Table:
    """Any settings by dotted key."""
    return _flat(_dump(config))


_FREE = (
    r"name|data_root|compute\.workers|audits"
    r"|(data|public)\.(path|validation_path|test_path)|(quality|published|audit)\..*"
)


def decisive_settings(config: Config) -> Table:
    """The settings that the outcome depends on, by dotted key. Where data lie is not among them: that they are the same
    is known from the data themselves.
    """
    return {key: value for key, value in _flat(_dump(config)).items() if not re.fullmatch(_FREE, key)}


def source_table(source: Source) -> Table:
    """A data source as the table [data] of a config; `read_source` reads it."""
    table: Table = _dump(source)
    return table


def read_source(table: Table, at: str = "data") -> Source:
    """A data source from the table [data] of a config, or another; `at` is the table's dotted key.

    Raises:
        GenfedError: a setting that is unknown, missing, of a wrong type or out of bounds.
    """
    source: Source = _value(Source, table, at)
    return source


def method_table(method: Method[Any]) -> Table:
    """A method with all its settings, as the table [method.WORD] of a config; `read_method` reads it."""
    table: Table = _dump(method)
    return table


def settings_table(some: object) -> Table:
    """Any settings as a table; `build` reads it."""
    table: Table = _dump(some)
    return table


def read_method(table: Table, at: str = "method") -> Method[Any]:
    """A method from its table; `at` is the table's dotted key.

    Raises:
        GenfedError: a setting that is unknown, missing, of a wrong type or out of bounds.
    """
    method: Method[Any] = _value(Method, table, at)
    return method


def _config(table: Table) -> Config:
    defaults = _table(table.pop("defaults", {}), "defaults")
    own = _table(table.pop("method", {}), "method")
    labels = dict.fromkeys((*_labels(table, "methods"), *_labels(table, "beside", Config.beside)))
    if not labels:
        raise GenfedError('methods is empty: name at least one, such as methods = ["gefl"]')
    built, used = {}, set()
    for label in dict.fromkeys((*labels, *own)):  # a table for a method that is not run is checked all the same
        given = _table(own.get(label, {}), f"method.{label}")
        if not isinstance(kind := given.get("kind", label), str):
            raise GenfedError(f"method.{label}.kind = {kind!r}: expected the name of a method")
        if kind != label and label in registry.list_classes(registry.METHODS):
            raise GenfedError(f"method.{label}.kind = {kind!r}: {label} is a method itself; use another label")
        cls = registry.find_class(registry.METHODS, kind)
        fields = {f.name for f in dataclasses.fields(cls)}
        used |= fields & defaults.keys()
        merged = _merge({k: v for k, v in defaults.items() if k in fields}, given)
        try:
            method = build_settings(cls, {k: v for k, v in merged.items() if k != "kind"}, f"method.{label}.")
        except GenfedError as error:
            found = re.match(rf"method\.{re.escape(label)}\.(\w+)", line := str(error))
            if found is None or found[1] in given:
                raise
            raise GenfedError(line.replace(found[0], f"defaults.{found[1]}", 1)) from None
        if label in labels:
            built[label] = method
    if idle := [label for label in own if label not in labels]:
        tables = ", ".join(f"[method.{label}]" for label in idle)
        log.warning("%s: not used, since neither methods nor beside names %s", tables, ", ".join(idle))
    for key in defaults.keys() - used:
        known = {f.name for method in built.values() for f in dataclasses.fields(method)}
        raise GenfedError(
            registry.explain_unknown(key, known, f"defaults.{key}: no method of the run has such a setting")
        )
    figures = _table(table.pop("published", {}), "published")
    for label in figures:
        if label not in (known := {*labels, *own, *registry.list_classes(registry.METHODS)}):
            raise GenfedError(registry.explain_unknown(label, known, f"published.{label}: no such method"))
    published = {
        k: build_settings(Published, _table(v, f"published.{k}"), f"published.{k}.") for k, v in figures.items()
    }
    # As with [method.WORD], a table for a method that is not run is checked all the same, and left out.
    ours = {label: figure for label, figure in published.items() if label in labels}
    return build_settings(Config, table | {"method": built, "published": ours, "audit": _audits(table)}, "")


def _audits(table: Table) -> dict[str, Audit]:
    """Of every label that `audits` names or that has a table."""
    own = _table(table.pop("audit", {}), "audit")
    built = {}
    for label in dict.fromkeys((*_labels(table, "audits"), *own)):
        given = _table(own.get(label, {}), f"audit.{label}")
        if not isinstance(kind := given.get("kind", label), str):
            raise GenfedError(f"audit.{label}.kind = {kind!r}: expected the name of an audit")
        cls = registry.find_class(registry.AUDITS, kind)
        built[label] = build_settings(cls, {k: v for k, v in given.items() if k != "kind"}, f"audit.{label}.")
    return built


def _labels(table: Table, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    value = table.get(key, default)
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise GenfedError(f'{key} = {value!r}: expected a list of names, such as {key} = ["gefl"]')
    if bad := [v for v in value if not re.fullmatch(r"\w[\w+-]{,63}", v)]:
        raise GenfedError(f"{key}: {bad[0]!r} is no label: up to 64 letters, digits and _ + - (it names a folder)")
    if twice := [v for v in value if value.count(v) > 1]:
        raise GenfedError(f"{key}: {twice[0]!r} stands twice; another label with its kind can run it beside itself")
    return tuple(value)


def build_settings(cls: type[T], table: Table, at: str) -> T:
    """A settings object from a table; `at` is the dotted key of the table, with a dot at its end."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise GenfedError(registry.explain_unknown(key, fields, f"{at}{key}: no such setting"))
        values[key] = _value(hints[key], value, f"{at}{key}")
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        raise GenfedError("; ".join(_complaints(at, error.errors()))) from None


def _value(hint: Any, value: Any, at: str) -> Any:
    branches = [h for h in typing.get_args(hint) if h is not type(None)]
    if len(branches) == 1 and type(None) in typing.get_args(hint):
        hint = branches[0]  # of something optional
    if isinstance(hint, type) and isinstance(value, dict):
        for family in registry.FAMILIES:
            if hint is family.base:
                if not isinstance(kind := value.get("kind"), str):
                    raise GenfedError(f"{at}.kind: says which of {', '.join(sorted(registry.list_classes(family)))}")
                rest = {k: v for k, v in value.items() if k != "kind"}
                return build_settings(registry.find_class(family, kind), rest, f"{at}.")
        if dataclasses.is_dataclass(hint):
            return build_settings(hint, value, f"{at}.")
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {key: _value(typing.get_args(hint)[1], item, f"{at}.{key}") for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    **dict.fromkeys(("is_instance_of", "dataclass_type", "dataclass_exact_type"), "a table of settings"),
}


def _complaints(at: str, errors: Sequence[Any]) -> list[str]:
    """One for every key that is wrong; of a table or list whose parts are wrong, those of the parts."""
    by_key: dict[str, list[Any]] = {}
    for error in errors:
        key = at + ".".join(str(part) for part in error["loc"] if not _is_branch(part))
        by_key.setdefault(key, []).append(error)
    return [_complaint(k, e) for k, e in by_key.items() if not any(other.startswith(f"{k}.") for other in by_key)]


def _complaint(key: str, errors: Sequence[Any]) -> str:
    """`errors` are of one key: one for each branch of a union."""
    first, kinds = errors[0], [error["type"] for error in errors]
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: this setting is required"
    shown = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    if all(kind in _EXPECTED for kind in kinds):
        return f"{key} = {shown!r}: expected {' or '.join(dict.fromkeys(_EXPECTED[kind] for kind in kinds))}"
    return f"{key} = {shown!r}: {(first['msg'][0].lower() + first['msg'][1:]).replace('tuple', 'list')}"


def _is_branch(part: Any) -> bool:
    """Whether pydantic names the branch of a union rather than a key."""
    return (isinstance(part, str) and any(mark in part for mark in "[(")) or part in ("int", "none", "float", "str")


def _override(table: Table, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise GenfedError(f"--set {text!r}: expected key=value, such as federation.clients=5")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise GenfedError(f"--set {text!r}: {part} is not a table")
    table[last] = parsed


def _table(value: Any, at: str) -> Table:
    if not isinstance(value, dict):
        raise GenfedError(f"{at} = {value!r}: expected a table, such as [{at}]")
    return value


def _merge(under: Table, over: Table) -> Table:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and "kind" not in value
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _flat(table: Table, at: str = "") -> Table:
    flat: Table = {}
    for key, value in table.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


def _mutable(value: Any) -> Any:
    return {k: _mutable(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _dump(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        family = next((f for f in registry.FAMILIES if isinstance(value, f.base)), None)
        kind = {"kind": registry.name_of(family, type(value))} if family else {}
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return kind | {name: _dump(v) for name, v in fields.items() if v is not None}
    if isinstance(value, dict):
        return {k: _dump(v) for k, v in value.items()}
    return [_dump(v) for v in value] if isinstance(value, tuple) else value
