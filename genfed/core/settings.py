"""Settings: frozen dataclasses whose fields are checked when they are made and documented where they stand."""

from typing import TypeVar, cast, dataclass_transform

import pydantic
import pydantic.dataclasses

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(pydantic.Field,))
def settings(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen, keyword-only dataclass that refuses unknown names, wrong types and values out of
    bounds; the string under a field is its description (`genfed list` shows it).
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    for name, field in made.__pydantic_fields__.items():  # pydantic reads the strings of this class alone
        above = (getattr(base, "__pydantic_fields__", {}).get(name) for base in made.__mro__[1:])
        field.description = field.description or next((f.description for f in above if f and f.description), None)
    return cast(type[T], made)
