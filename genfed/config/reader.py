"""A run's settings: a TOML file, `key=value` on top, checked before anything is done."""

import dataclasses
import logging
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import pydantic_core
import tomli_w

from genfed.audits.audit import Audit
from genfed.config import registry
from genfed.config.renamed import find_new_setting
from genfed.config.settings import Config
from genfed.config.toml import parse_toml, read_toml
from genfed.core.errors import GenfedError
from genfed.core.files import refuse_links
from genfed.core.method import Method
from genfed.core.text import NAME, file_name, one_line
from genfed.data.dataset import Source
from genfed.privacy.settings import PrivacySettings
from genfed.report.results import Published

T = TypeVar("T")
P = TypeVar("P", bound=PrivacySettings)
Table = dict[str, Any]
log = logging.getLogger(__name__)


def read_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Returns a checked config.

    Args:
        source: a TOML file, the folder of a run (its resolved config), or a table of settings.
        overrides: "key=value" with a dotted key and a TOML value; a bare word is a string.

    Raises:
        GenfedError: there is no such file, it is not TOML, or a setting is unknown, missing or wrong.
    """
    return _config(read_table(source, overrides))


def read_table(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Table:
    """Returns the settings as they stand, not yet checked. See `read_config`.

    Raises:
        GenfedError: there is no such file, it is not TOML, it is a run of genfed 0.1 or one with links, or an override
            is no "key=value".
    """
    if isinstance(source, Mapping):
        table = {k: _mutable(v) for k, v in source.items()}
    else:
        path = Path(source)
        if path.is_dir() and os.path.lexists(path / "config.toml"):
            refuse_links(path)
        path = path / "config.toml" if path.is_dir() else path
        table = {"name": path.stem} | read_toml(path, "a TOML file or the folder of a run")
        if Path(source).is_dir():
            refuse_old_run(table, source)
    for override in overrides:
        _override(table, override)
    return table


def refuse_old_run(table: Mapping[str, Any], run: object) -> None:
    """Refuses the settings of a finished or a stopped run of genfed 0.1, which always name `beside`.

    Raises:
        GenfedError: they are; `run` is its folder.
    """
    if "beside" in table:
        raise GenfedError(f"{run} is a run of genfed 0.1, which 0.2 cannot read; use genfed 0.1, or run it anew")


def to_toml(config: Config) -> str:
    """Returns the resolved settings with every default; `read_config` reads them as the same config."""
    return dump_toml(config)


def dump_toml(config: object) -> str:
    """Returns any settings as TOML, with every default."""
    return tomli_w.dumps(_dump(config))


def flatten_settings(config: object) -> Table:
    """Returns any settings by dotted key."""
    return _flat(_dump(config))


_INDECISIVE = (
    r"name|data_root|compute\.workers|audits"
    r"|(data|public)\.(path|validation_path|test_path)|(metrics|published|audit)\..*"
)
"""Settings that the outcome of training does not depend on."""


def decisive_settings(config: Config) -> Table:
    """Returns the settings that the outcome depends on, by dotted key. The place of the data is not among them: a
    fingerprint of the data is compared instead.
    """
    return {key: value for key, value in _flat(_dump(config)).items() if not re.fullmatch(_INDECISIVE, key)}


def source_table(source: Source) -> Table:
    """Returns a data source as the table [data] of a config; `read_source` reads it."""
    table: Table = _dump(source)
    return table


def read_source(table: Table, at: str = "data") -> Source:
    """Reads a data source from a table of a config, whose dotted key is `at`.

    Raises:
        GenfedError: a setting is unknown, missing or wrong.
    """
    source: Source = _value(Source, table, at)
    return source


def read_privacy(table: Table, kind: type[P], at: str = "privacy") -> P:
    """Reads settings of differential privacy from a table, which must be of this kind.

    Raises:
        GenfedError: they are of another kind, or a setting is unknown, missing, of a wrong type or out of bounds.
    """
    if table.get("kind") != kind.kind:  # before anything that the name may stand for is imported
        raise GenfedError(f"{at}.kind = {table.get('kind')!r}: expected {kind.kind!r}")
    return build_settings(kind, {key: value for key, value in table.items() if key != "kind"}, f"{at}.")


def method_table(method: Method[Any]) -> Table:
    """Returns a method with all its settings, as the table [method.LABEL] of a config; `read_method` reads it."""
    table: Table = _dump(method)
    return table


def settings_table(some: object) -> Table:
    """Returns any settings as a table; `build_settings` reads it."""
    table: Table = _dump(some)
    return table


def read_method(table: Table, at: str = "method") -> Method[Any]:
    """Reads a method from its table, whose dotted key is `at`.

    Raises:
        GenfedError: a setting is unknown, missing or wrong.
    """
    method: Method[Any] = _value(Method, table, at)
    return method


def _config(table: Table) -> Config:
    defaults = _table(table.pop("defaults", {}), "defaults")
    own = _table(table.pop("method", {}), "method")
    labels = dict.fromkeys((*_labels(table, "methods"), *_labels(table, "baselines", Config.baselines)))
    if not labels:
        raise GenfedError('methods is empty: name at least one, such as methods = ["gefl"]')
    # A table for a method that is not run is checked, and dropped.
    built = {
        label: _build_method(label, _table(own.get(label, {}), f"method.{label}"), defaults)
        for label in dict.fromkeys((*labels, *own))
    }
    if idle := [label for label in own if label not in labels]:
        tables = ", ".join(f"[method.{label}]" for label in idle)
        log.warning("%s: not used, since neither methods nor baselines names %s", tables, ", ".join(idle))
    for key in defaults:
        if not any(key in _field_names(method) for method in built.values()):
            known = {name for label in labels for name in _field_names(built[label])}
            if new := next((new for m in built.values() if (new := find_new_setting(type(m), key))), None):
                raise GenfedError(f"defaults.{key} is called {new} since genfed 0.2")
            what = f"defaults.{key}: no method of the run has such a setting"
            raise GenfedError(registry.explain_unknown(key, known, what))
        _warn_of_unreached(key, defaults, own, {label: built[label] for label in labels})
    parts = {
        "method": {label: built[label] for label in labels},
        "published": _published(table, labels, (*labels, *own)),
        "audit": _audits(table),
    }
    return build_settings(Config, table | parts, "")


def _warn_of_unreached(key: str, defaults: Table, own: Table, methods: Mapping[str, Method[Any]]) -> None:
    """Warns of a default that reached a method in 0.1, where its setting has another name now that is not set."""
    for label, method in methods.items():
        new = find_new_setting(type(method), key)
        if new is not None and new not in defaults and new not in own.get(label, {}):
            log.warning("defaults.%s does not reach %s, which calls it %s since genfed 0.2", key, label, new)


def _build_method(label: str, given: Table, defaults: Table) -> Method[Any]:
    """Builds the method of a label from its table, on top of the defaults that it has."""
    if not isinstance(kind := given.get("kind", label), str):
        raise GenfedError(f"method.{label}.kind = {kind!r}: expected the name of a method")
    if kind != label and label in registry.list_classes(registry.METHODS):
        raise GenfedError(f"method.{label}.kind = {kind!r}: {label} is a method itself; use another label")
    cls = registry.find_class(registry.METHODS, kind)
    fields = {field.name for field in dataclasses.fields(cls)}
    merged = _merge({key: value for key, value in defaults.items() if key in fields}, given)
    try:
        method: Method[Any] = build_settings(cls, {k: v for k, v in merged.items() if k != "kind"}, f"method.{label}.")
        return method
    except GenfedError as error:
        found = re.match(rf"method\.{re.escape(label)}\.(\w+(?:\.\w+)*)", line := str(error))
        if found is None or _names(given, found[1]) or not _names(defaults, found[1]):
            raise
        raise GenfedError(line.replace(found[0], f"defaults.{found[1]}", 1)) from None


def _names(table: Any, key: str) -> bool:
    """Returns whether a table, or one in it, names a setting by its dotted key."""
    for part in key.split("."):
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _field_names(settings: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(settings)}


def _published(table: Table, labels: Iterable[str], named: Iterable[str]) -> dict[str, Published]:
    """Builds the published results of `labels`; those of other methods are checked, and dropped."""
    built = {}
    for label, figures in _table(table.pop("published", {}), "published").items():
        if label not in (known := {*named, *registry.list_classes(registry.METHODS)}):
            raise GenfedError(registry.explain_unknown(label, known, f"published.{label}: no such method"))
        built[label] = build_settings(Published, _table(figures, f"published.{label}"), f"published.{label}.")
    return {label: published for label, published in built.items() if label in labels}


def _audits(table: Table) -> dict[str, Audit]:
    """Returns the audits that `audits` names or that have a table, by label."""
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
    if invalid := [v for v in value if not re.fullmatch(r"\w[\w+-]{,63}", v) or file_name(v, "") != v]:
        raise GenfedError(
            f"{key}: {one_line(repr(invalid[0]), NAME)} is no label: use up to 64 letters, digits and _ + - (it names "
            "a folder)"
        )
    if twice := [v for v in value if value.count(v) > 1]:
        raise GenfedError(f"{key}: {twice[0]!r} stands twice; to run it twice, give it a second label with this kind")
    return tuple(value)


def build_settings(cls: type[T], table: Table, at: str, default: T | None = None) -> T:
    """Builds a settings object from a table.

    Args:
        cls: class of the object.
        table: the settings.
        at: dotted key of the table, with a dot at its end.
        default: has the values of settings that the table does not name. None: the class has them.

    Raises:
        GenfedError: a setting is unknown, missing or wrong.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {} if default is None else {name: getattr(default, name) for name in fields}
    for key, value in table.items():
        if key not in fields:
            if new := find_new_setting(cls, key):
                raise GenfedError(f"{at}{key} is called {new} since genfed 0.2")
            raise GenfedError(registry.explain_unknown(key, fields, f"{at}{key}: no such setting"))
        known = _default_value(cls, key) if default is None else getattr(default, key)
        values[key] = _value(hints[key], value, f"{at}{key}", known)
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        raise GenfedError("; ".join(_complaints(at, error.errors()))) from None


def _default_value(cls: type[Any], key: str) -> Any:
    """Returns the value of a setting that is not named. None: it must be named."""
    (field,) = (field for field in dataclasses.fields(cls) if field.name == key)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(default, pydantic.fields.FieldInfo):
        default = default.get_default(call_default_factory=True, validated_data={})
    return None if default in (dataclasses.MISSING, pydantic_core.PydanticUndefined) else default


def _value(hint: Any, value: Any, at: str, default: Any = None) -> Any:
    """Returns the value of a setting. A table that names some settings of `default` leaves its others as they are."""
    branches = [h for h in typing.get_args(hint) if h is not type(None)]
    if len(branches) == 1 and type(None) in typing.get_args(hint):
        hint = branches[0]  # an optional value
    if isinstance(hint, type) and isinstance(value, dict):
        for family in registry.FAMILIES:
            if issubclass(hint, family.base):
                if not isinstance(kind := value.get("kind"), str):
                    raise GenfedError(f"{at}.kind: says which of {', '.join(sorted(registry.list_classes(family)))}")
                rest, cls = {k: v for k, v in value.items() if k != "kind"}, registry.find_class(family, kind)
                return build_settings(cls, rest, f"{at}.", default if type(default) is cls else None)
        if dataclasses.is_dataclass(hint):
            return build_settings(hint, value, f"{at}.", default if type(default) is hint else None)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {key: _value(typing.get_args(hint)[1], item, f"{at}.{key}") for key, item in value.items()}
    return _freeze(value)


def _freeze(value: Any) -> Any:
    """Returns a list as a tuple, and so the lists in it."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


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
    """Returns a complaint for every wrong key; where parts of a table or list are wrong, only for these."""
    by_key: dict[str, list[Any]] = {}
    for error in errors:
        key = at + ".".join(str(part) for part in error["loc"] if not _is_branch(part))
        by_key.setdefault(key, []).append(error)
    return [_complaint(k, e) for k, e in by_key.items() if not any(other.startswith(f"{k}.") for other in by_key)]


def _complaint(key: str, errors: Sequence[Any]) -> str:
    """Returns the complaint for one key; a union has an error for each of its branches."""
    first, kinds = errors[0], [error["type"] for error in errors]
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: this setting is required"
    shown = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    if all(kind in _EXPECTED for kind in kinds):
        return f"{key} = {shown!r}: expected {' or '.join(dict.fromkeys(_EXPECTED[kind] for kind in kinds))}"
    return f"{key} = {shown!r}: {(first['msg'][0].lower() + first['msg'][1:]).replace('tuple', 'list')}"


def _is_branch(part: Any) -> bool:
    """Returns whether pydantic names a branch of a union here, rather than a key."""
    return (isinstance(part, str) and any(mark in part for mark in "[(")) or part in ("int", "none", "float", "str")


def _override(table: Table, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise GenfedError(f"--set {text!r}: expected key=value, such as federation.clients=5")
    try:
        parsed = parse_toml(f"x = {value}")["x"]
    except GenfedError:
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
    """Returns a table with the settings of both; where both name one, that of `over`. A table in it of another kind
    replaces the one below it.
    """
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict) and _are_of_one_kind(below, value)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _are_of_one_kind(under: Table, over: Table) -> bool:
    """Returns whether two tables are of one kind, or one of them does not say its kind."""
    return "kind" not in under or "kind" not in over or under["kind"] == over["kind"]


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
