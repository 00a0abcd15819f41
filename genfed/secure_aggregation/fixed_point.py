"""Uploads as vectors of whole numbers, to be added up modulo 2⁶⁴, and what their sums mean."""

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, list_groups
from genfed.core.errors import GenfedError, RecordError
from genfed.core.json_text import read_json

SCALE = 2.0**24
"""Steps per unit: every number, multiplied by its weight, is rounded to the nearest step. Whole numbers without a
weight are added up as they are, so their sums are exact."""
MEMBERS = 2**20
"""Maximum number of vectors in a sum. A server names it, and could otherwise have a client refuse because of a small
number, which would reveal it."""
_LARGEST = 2.0**62
LONGEST_FORM = 2**23
"""Maximum length of a form in characters (8 Mi: 100,000 tensors have less)."""
FORM_VALUES = 2**20
"""Maximum number of values in the JSON of a form."""
FORM_KEYS = 16
"""Maximum number of keys in the path of a value."""
FORM_LENGTHS = 16
"""Maximum number of dimensions of a value."""


def largest_number(members: int) -> float:
    """Returns the bound below which numbers of weight 1 can be added up, in sums of at most `members` uploads."""
    return _LARGEST / SCALE / members


@dataclass(frozen=True)
class GroupVector:
    """One client's contribution to the sums of a group. All but the numbers is public."""

    numbers: Tensor
    """int64 [1 + m]: the weight, then all values."""
    form: str
    """JSON: field, path, type and shape of each value in turn. It travels without a mask: neither the order in which a
    client filled its dicts nor the type of one of its Python numbers shows in it."""


def pack_vectors(
    upload: object, weight: float, aggregates: Mapping[str, Aggregate], info: ClientInfo, members: Mapping[str, int]
) -> dict[str, GroupVector]:
    """Returns an upload as one vector per group.

    Args:
        upload: the client's record.
        weight: the weight of its reply, above 0.
        aggregates: how each field is reduced; all are linear.
        info: the client.
        members: by group, the largest number of vectors that may be added up.

    Raises:
        GenfedError: a number is not finite, or so large that the sum could exceed 64 bits; the message does not say
            which. Or there may be too many vectors.
    """
    vectors = {}
    for group, fields in list_groups(aggregates, info).items():
        parts, form = [torch.tensor([weight * SCALE], dtype=torch.float64)], []
        for name, aggregate in fields.items():
            hint = typing.get_type_hints(type(upload))[name]
            for path, leaf in _leaves(aggregate.extract(getattr(upload, name)), []):
                kind, shape = _type_and_shape(leaf, hint, len(path))
                form.append([name, path, kind, shape])
                factor = _steps(kind, aggregate) * (weight if aggregate.weighted else 1.0)
                parts.append(_flatten(leaf).double() * factor)
        numbers = torch.cat(parts)
        if not 0 < members[group] <= MEMBERS:
            raise GenfedError(f"a sum of {members[group]} uploads: 1 to {MEMBERS} are allowed")
        largest = float(numbers.abs().max())
        if not largest < _LARGEST / members[group]:  # NaN too
            # Not which: the text goes to the server.
            raise GenfedError("its upload holds a number that secure aggregation cannot sum")
        vectors[group] = GroupVector(numbers.round().to(torch.int64), json.dumps(form))
    return vectors


_KINDS = (
    "int",
    "float",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)


def check_form(form: str, fields: Mapping[str, Aggregate], size: int) -> None:
    """Refuses a form that `unpack_sums` could not read.

    Args:
        form: the form of a `GroupVector`.
        fields: the fields of the group.
        size: the number of values.

    Raises:
        GenfedError: it is not JSON of the right structure, exceeds a bound, or describes other fields or another number
            of values.
    """
    try:
        values = read_json(form, longest=LONGEST_FORM, most=FORM_VALUES)
    except RecordError as error:
        raise GenfedError(f"the form of its upload is {error}") from None
    paths: set[tuple[Any, ...]] = set()
    total = 0
    for value in values if isinstance(values, list) else [None]:
        match value:
            case [str(name), list(path), str(kind), list(shape)] if (
                name in fields and _is_path(path) and _is_shape(kind, shape)
            ):
                paths.add((name, *path))
                total += math.prod(shape)
            case _:
                raise GenfedError("the form of its upload does not describe the fields of the phase")
    inside = any(path[:length] in paths for path in paths for length in range(1, len(path)))
    if total != size or len(paths) < len(values) or inside:
        raise GenfedError("the form of its upload describes other values than there are")


def _is_path(path: list[Any]) -> bool:
    return len(path) <= FORM_KEYS and all(type(key) in (str, int) for key in path)


def _is_shape(kind: str, shape: list[Any]) -> bool:
    """Returns whether a value of this type may have this shape. Lengths are bounded before they are multiplied."""
    if kind not in _KINDS or len(shape) > (0 if kind in ("int", "float") else FORM_LENGTHS):
        return False
    if not all(type(length) is int and 0 <= length <= _LARGEST for length in shape):
        return False
    product: int = math.prod(length or 1 for length in shape)  # torch multiplies the others even beside a 0
    return product <= _LARGEST


def unpack_sums(sums: Mapping[str, GroupVector], aggregates: Mapping[str, Aggregate]) -> dict[str, Any]:
    """Returns the reduced value of every field, from the sums of all groups."""
    by_group: dict[str, dict[str, Any]] = {name: {} for name in aggregates}
    for group, total in sums.items():
        weight, place = total.numbers[0].double(), 0
        trees: dict[str, Any] = {}
        for name, path, kind, shape in json.loads(total.form):
            size, weighted = torch.Size(shape).numel(), aggregates[name].weighted
            part = total.numbers[1 + place : 1 + place + size]
            if weighted or _steps(kind, aggregates[name]) != 1:
                part = part.double() / (weight if weighted else SCALE)
            place += size
            _put(trees, [name, *path], _restore(part, kind, shape, widen=not weighted))
        for name, tree in trees.items():
            by_group[name][group] = tree
    return {name: aggregate.join_groups(by_group[name]) for name, aggregate in aggregates.items()}


def _leaves(tree: Any, path: list[Any]) -> list[tuple[list[Any], Any]]:
    if isinstance(tree, dict):
        keys = sorted(tree, key=lambda key: (type(key).__name__, key))
        return [found for key in keys for found in _leaves(tree[key], [*path, key])]
    return [(path, tree)]


def _put(tree: dict[Any, Any], path: list[Any], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _steps(kind: str, aggregate: Aggregate) -> float:
    """Returns the steps per unit of a value of this type."""
    return SCALE if aggregate.weighted or kind.startswith(("float", "bfloat")) else 1.0


def _type_and_shape(leaf: Any, hint: Any, depth: int) -> tuple[str, list[int]]:
    """Returns type and shape of a leaf, `depth` dicts below a field that is declared as `hint`."""
    if isinstance(leaf, Tensor):
        return str(leaf.dtype).removeprefix("torch."), list(leaf.shape)
    for _ in range(depth):
        hint = next(iter(typing.get_args(hint)[1:]), None)
    return "float" if hint is float else type(leaf).__name__, []


def _flatten(leaf: Any) -> Tensor:
    return leaf.flatten() if isinstance(leaf, Tensor) else torch.tensor([float(leaf)], dtype=torch.float64)


def _restore(part: Tensor, kind: str, shape: list[int], *, widen: bool) -> Any:
    """Returns a value of its type and shape; `widen`: integer tensors become int64, as sums of them are."""
    if kind in ("float", "int"):
        return round(part.item()) if widen and kind == "int" else part.item()
    dtype = getattr(torch, kind)
    if not dtype.is_floating_point:
        part, dtype = part.round() if part.is_floating_point() else part, torch.int64 if widen else dtype
    return part.to(dtype).reshape(shape)
