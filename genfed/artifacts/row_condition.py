"""Conditions on drawn rows, as people write them: {"sex": "Female", "age": (30, 40)}."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Column, Task
from genfed.data.cells import plain_number, text_cells
from genfed.data.features import MISSING, TableSchema
from genfed.data.numerals import Notation, read_numbers
from genfed.generators.row_generator import Condition
from genfed.preprocessing.source_summary import list_some, show

Where = Mapping[str, Any]
"""By column: a category, a list of them, a number, a pair (least, most) of numbers, or None for missing."""


def read_condition(where: Where, schema: TableSchema, task: Task, label: str | None) -> tuple[Condition, Tensor]:
    """Returns a condition on features, and which labels are allowed, float64 [classes] of 0 and 1.

    Args:
        where: The condition.
        schema: The schema of the rows.
        task: Their task.
        label: The column of classes. None: there is none.

    Raises:
        GenfedError: a column or a category is not known, or a range is empty.
    """
    labels = torch.ones(len(task.classes), dtype=torch.float64)
    columns = {column.name: column for column in task.columns}
    allowed: dict[str, Tensor] = {}
    limits: dict[str, tuple[float, float]] = {}
    for name, wanted in where.items():
        if name == label:
            known = {text: i for i, text in enumerate(task.classes)}
            labels *= _allow(_as_list(wanted), known, name)
        elif name not in columns:
            known_names = [*columns, *(() if label is None else (label,))]
            raise GenfedError(f"where: there is no column {name!r}; {', '.join(known_names)} are allowed")
        elif name in schema.categories:
            places = {text: i for i, text in enumerate(schema.categories[name])}
            texts = [MISSING if each is None else _spell(each, name in schema.as_numbers) for each in _as_list(wanted)]
            allowed[name] = _allow(texts, places, name)
        else:
            allowed[name], span = _allow_numbers(wanted, columns[name], schema)
            if span is not None:
                limits[name] = span
    return Condition(allowed, limits), labels


def _as_list(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]


def _spell(value: Any, as_number: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return plain_number(str(value)) if as_number else str(value).strip()


def _allow(texts: list[Any], places: Mapping[str, int], name: str) -> Tensor:
    allowed = torch.zeros(len(places), dtype=torch.float64)
    for text in texts:
        if str(text) not in places:
            known = list_some([repr(show(each)) for each in places], 8)
            raise GenfedError(f"where: column {name!r} has no category {text!r}; {known} are allowed")
        allowed[places[str(text)]] = 1
    return allowed


def _allow_numbers(wanted: Any, column: Column, schema: TableSchema) -> tuple[Tensor, tuple[float, float] | None]:
    """Returns how much of each code of a column of numbers is allowed [codes], and between which features. None: the
    number is missing.

    Raises:
        GenfedError: it is no number, or the range is empty.
    """
    allowed, about = torch.zeros(column.codes, dtype=torch.float64), schema.numbers[column.name]
    if wanted is None:
        if column.gap is None:
            raise GenfedError(f"where: column {column.name!r} has no missing value")
        allowed[-1] = 1
        return allowed, None
    ends = wanted if isinstance(wanted, tuple | list) else (wanted, wanted)
    if len(ends) != 2 or ends == (None, None):
        raise GenfedError(_explain(column.name, wanted))
    least, most = (
        open_end if end is None else (_read_number(end, column.name, about.notation) - about.shift) / about.scale
        for end, open_end in zip(ends, (-math.inf, math.inf), strict=True)
    )
    if least > most:
        raise GenfedError(_explain(column.name, wanted))
    slack = 1e-6 * max(1.0, *(abs(end) for end in (least, most) if math.isfinite(end)))
    for i, (low, high) in enumerate(column.cells):
        if high >= least - slack and low <= most + slack:
            share = (min(high, most) - max(low, least)) / (high - low) if low < high else 1.0
            allowed[i] = max(share, 0.0) if least < most else 1.0
    return allowed, (least, most)


def _explain(name: str, wanted: Any) -> str:
    return f"where: column {name!r}: {wanted!r}; a number, a pair (least, most) of numbers, or None is allowed"


def _read_number(value: Any, name: str, notation: Notation) -> float:
    """Returns a number, a day or a time of day.

    Raises:
        GenfedError: it is none.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    number = float(read_numbers(text_cells([str(value)]), notation)[0][0])
    if not math.isfinite(number):
        raise GenfedError(_explain(name, value))
    return number
