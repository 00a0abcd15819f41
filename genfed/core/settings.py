"""Settings: frozen dataclasses that check their fields and describe them by the string below each field."""

from typing import TypeVar, cast, dataclass_transform

import pydantic
import pydantic.dataclasses

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(pydantic.Field,))
def settings(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen, keyword-only dataclass that refuses unknown names, wrong types and values out of bounds.

    The string below a field is its description, which `genfed list` shows.

    >>> import genfed
    >>> @genfed.settings
    ... class Decay:
    ...     rate: float = 0.5
    ...     "Factor per round, in (0, 1]."
    >>> Decay(rate=0.9).rate
    0.9
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
    dataclass = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    for name, field in dataclass.__pydantic_fields__.items():  # pydantic reads the strings of this class only
        inherited = (getattr(base, "__pydantic_fields__", {}).get(name) for base in dataclass.__mro__[1:])
        field.description = field.description or next((f.description for f in inherited if f and f.description), None)
    return cast(type[T], dataclass)
