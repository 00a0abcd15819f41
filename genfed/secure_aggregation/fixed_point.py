"""Uploads as vectors of whole numbers, to be added up modulo 2⁶⁴, and their sums as what was to be reduced."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Mean, Sum, list_groups
from genfed.core.errors import GenfedError

SCALE = 2.0**24
"""Steps per unit: what is summed is rounded to the nearest, weight included."""
_LARGEST = 2.0**62


@dataclass(frozen=True)
class GroupVector:
    """One client's contribution to the sums of a group; public but for the numbers."""

    numbers: Tensor
    """int64 [1 + m]: the weight, then all values."""
    form: str
    """JSON: field, path, type and shape of each value in turn."""


def pack_vectors(
    upload: object, weight: float, aggregates: Mapping[str, Aggregate], info: ClientInfo, members: Mapping[str, int]
) -> dict[str, GroupVector]:
    """An upload by group; `members` is how many may be added up in each.

    Raises:
        GenfedError: numbers that are not finite, or so large that the sum could pass what 64 bits hold.
    """
    made = {}
    for group, fields in list_groups(aggregates, info).items():
        parts, form = [torch.tensor([weight * SCALE], dtype=torch.float64)], []
        for name, how in fields.items():
            value = getattr(upload, name)
            for path, leaf in _leaves(how.averaged(value) if isinstance(how, Mean) else value, []):
                kind, shape = _kind(leaf)
                form.append([name, path, kind, shape])
                by = weight if isinstance(how, Mean) else 1.0
                parts.append(_flat(leaf).double() * (by * SCALE))
        numbers = torch.cat(parts)
        most = float(numbers.abs().max())
        if not most < _LARGEST / members[group]:  # NaN too
            raise GenfedError(f"its upload holds a number that secure aggregation cannot sum ({most / SCALE:g})")
        made[group] = GroupVector(numbers.round().to(torch.int64), json.dumps(form))
    return made


def unpack_sums(sums: Mapping[str, GroupVector], aggregates: Mapping[str, Aggregate]) -> dict[str, Any]:
    """What `update` gets, from the sums of all groups."""
    values: dict[str, Any] = {
        name: {} if isinstance(how, Mean) and how.by else None for name, how in aggregates.items()
    }
    for group, total in sorted(sums.items()):
        weight, numbers, place = total.numbers[0].double(), total.numbers[1:].double(), 0
        trees: dict[str, Any] = {}
        for name, path, kind, shape in json.loads(total.form):
            size = torch.Size(shape).numel()
            part = numbers[place : place + size]
            part, place = (part / weight if isinstance(aggregates[name], Mean) else part / SCALE), place + size
            _put(trees, [name, *path], _typed(part, kind, shape, isinstance(aggregates[name], Sum)))
        for name, tree in trees.items():
            how = aggregates[name]
            if isinstance(how, Mean) and how.by:
                values[name][group] = tree
            else:
                values[name] = tree
    return values


def _leaves(tree: Any, path: list[Any]) -> list[tuple[list[Any], Any]]:
    if isinstance(tree, dict):
        return [found for key in tree for found in _leaves(tree[key], [*path, key])]
    return [(path, tree)]


def _put(tree: dict[Any, Any], path: list[Any], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _kind(leaf: Any) -> tuple[str, list[int]]:
    if isinstance(leaf, Tensor):
        return str(leaf.dtype).removeprefix("torch."), list(leaf.shape)
    return type(leaf).__name__, []


def _flat(leaf: Any) -> Tensor:
    return leaf.flatten() if isinstance(leaf, Tensor) else torch.tensor([float(leaf)], dtype=torch.float64)


def _typed(part: Tensor, kind: str, shape: list[int], summed: bool) -> Any:
    if kind in ("float", "int"):
        return round(part.item()) if summed and kind == "int" else part.item()
    dtype = getattr(torch, kind)
    if not dtype.is_floating_point:
        part, dtype = part.round(), torch.int64 if summed else dtype
    return part.to(dtype).reshape(shape)
