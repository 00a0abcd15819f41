"""How the uploads of a phase are reduced, declared per field on the phase.

Replies are folded as they arrive, along a fixed binary tree over the clients asked: the sum has the same bits
whoever answers first, and memory stays at O(log n) partial sums plus what is in flight.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genfed.core.errors import GenfedError


@dataclass(frozen=True)
class ClientInfo:
    """What the server knows of a client."""

    id: int
    architecture: str
    examples: int

    @property
    def personal(self) -> bool:
        """Whether its architecture is its own, by "package.module:Class": a server of sites cannot run it."""
        return ":" in self.architecture


class Aggregate(ABC):
    """A reduction of one upload field: `lift` each value, `add` along the tree, `finish`."""

    def form(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        """By group, the names, shapes and types that all values added up in it must have; {}: they may have any."""
        return {}

    @abstractmethod
    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        """One client's contribution. What is summed must not alias `value`."""

    def lift_from(self, sent: Any, value: Any, weight: float, info: ClientInfo) -> Any:
        """`lift`, for a reduction that looks at what the value was made from: `sent` is the field of the same name of
        what the client was sent; None: there is none.
        """
        return self.lift(value, weight, info)

    @abstractmethod
    def add(self, left: Any, right: Any) -> Any:
        """Joins two contributions; `left` belongs to the lower client ids."""

    @abstractmethod
    def finish(self, total: Any) -> Any:
        """What `update` gets; `total` is None when nobody answered."""


@dataclass(frozen=True)
class Mean(Aggregate):
    """Σ weight·value / Σ weight of tensors, numbers or dicts of them, in double precision. Integer tensors (a
    BatchNorm's counter) are those of the lowest client id. With `by="architecture"` the result is a dict of means;
    an architecture that nobody answered for is not in it.
    """

    by: Literal["architecture"] | None = None

    def averaged(self, value: Any) -> Any:
        """What of an upload is averaged: tensors, numbers or dicts of them."""
        return value

    def form(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {self.group(info): map_tree(_form, self.averaged(value))}

    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        tree = self.averaged(value)
        return {self.group(info): (weight, map_tree(lambda leaf: _times(leaf, weight), tree), map_tree(_dtype, tree))}

    def add(self, left: Any, right: Any) -> Any:
        out = dict(left)
        for group, (weight, total, dtypes) in right.items():
            if group in out:
                before, sum_before, dtypes = out[group]
                weight, total = before + weight, map_tree(_plus, sum_before, total)
            out[group] = (weight, total, dtypes)
        return out

    def finish(self, total: Any) -> Any:
        def divide(weight: float, value: Any, dtypes: Any) -> Any:
            return map_tree(lambda leaf, dtype: _divided(leaf, weight, dtype), value, dtypes)

        means = {group: divide(*parts) for group, parts in sorted((total or {}).items())}
        return means if self.by else means.get("")

    def group(self, info: ClientInfo) -> str:
        """The clients of one name are averaged together."""
        return info.architecture if self.by else ""


@dataclass(frozen=True)
class Sum(Aggregate):
    """Σ value, weights aside: floating-point tensors in double precision, integers and booleans as int64."""

    def form(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {"": map_tree(_form, value)}

    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        return map_tree(_widened, value), map_tree(_dtype, value)

    def add(self, left: Any, right: Any) -> Any:
        return map_tree(lambda a, b: a + b, left[0], right[0]), left[1]

    def finish(self, total: Any) -> Any:
        return None if total is None else map_tree(_narrowed, *total)


@dataclass(frozen=True)
class Collect(Aggregate):
    """Every upload, by client id: for a method that needs each single one."""

    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        return {info.id: value}

    def add(self, left: Any, right: Any) -> Any:
        return left | right

    def finish(self, total: Any) -> Any:
        return dict(sorted((total or {}).items()))


class Fold:
    """Reduces the replies to one ask. Every client asked is given once, in any order: with `add` or `skip`."""

    def __init__(self, aggregates: Mapping[str, Aggregate], asked: list[ClientInfo]) -> None:
        self._aggregates = aggregates
        self._place = {info.id: place for place, info in enumerate(sorted(asked, key=lambda i: i.id))}
        self._waiting: dict[tuple[int, int], dict[str, Any] | None] = {}  # (level, index) -> partial; None: empty
        self._forms: dict[tuple[str, str], Any] = {}  # (field, group) -> that of the first reply
        self._unheard = set(self._place)

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Folds one reply in; `sent` is the record that the client was sent.

        Raises:
            GenfedError: the upload does not fit those before it; the fold is then as it was.
        """
        forms = {
            (name, group): form
            for name, how in self._aggregates.items()
            for group, form in how.form(getattr(upload, name), info).items()
        }
        # Here and not when partial sums are joined, which may be much later and on another's account.
        for key, form in forms.items():
            map_tree(_same, self._forms.get(key, form), form)
        values = {
            name: how.lift_from(getattr(sent, name, None), getattr(upload, name), weight, info)
            for name, how in self._aggregates.items()
        }
        self._place_at(info, values)
        self._forms |= forms

    def skip(self, info: ClientInfo) -> None:
        """Leaves a client out."""
        self._place_at(info, None)

    def _place_at(self, info: ClientInfo, partial: dict[str, Any] | None) -> None:
        assert info.id in self._unheard, f"client {info.id} was not asked, or has been heard already"
        index, level, size, joined = self._place[info.id], 0, len(self._place), []
        while size > 1:
            if (sibling := index ^ 1) < size:
                if (level, sibling) not in self._waiting:
                    break
                joined.append((level, sibling))
                other = self._waiting[level, sibling]
                left, right = (other, partial) if sibling < index else (partial, other)
                partial = self._join(left, right)
            level, index, size = level + 1, index >> 1, (size + 1) >> 1
        for key in joined:
            del self._waiting[key]
        self._waiting[level, index] = partial
        self._unheard.remove(info.id)

    def _join(self, left: dict[str, Any] | None, right: dict[str, Any] | None) -> dict[str, Any] | None:
        if left is None or right is None:
            return right if left is None else left
        return {name: how.add(left[name], right[name]) for name, how in self._aggregates.items()}

    def finish(self) -> dict[str, Any]:
        """The reduced value of every declared field."""
        assert not self._unheard, "a client asked has neither answered nor been skipped"
        (total,) = list(self._waiting.values()) or [None]  # nobody may have been asked
        return {name: how.finish(None if total is None else total[name]) for name, how in self._aggregates.items()}


def map_tree(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies to every leaf of dicts that have the same keys."""
    first = trees[0]
    if any(isinstance(tree, dict) for tree in trees):
        if not all(isinstance(tree, dict) and tree.keys() == first.keys() for tree in trees):
            raise GenfedError("uploads of one group have different names")
        return {key: map_tree(function, *(tree[key] for tree in trees)) for key in first}
    return function(*trees)


def refuse_unequal(first: Any, other: Any) -> None:
    """Of `map_tree`: refuses what two clients of a group were sent where it differs.

    Raises:
        GenfedError: it does.
    """
    same = torch.equal if isinstance(first, Tensor) else operator.eq
    if type(first) is not type(other) or not same(first, other):
        raise GenfedError("clients of one group were sent different states: their updates have no common origin")


def _times(leaf: Any, weight: float) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(torch.float64, copy=True).mul_(weight) if leaf.is_floating_point() else leaf.clone()
    return leaf * weight


def _plus(left: Any, right: Any) -> Any:
    return left if isinstance(left, Tensor) and not left.is_floating_point() else left + right


def _divided(leaf: Any, weight: float, dtype: torch.dtype | None) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf / weight).to(dtype) if leaf.is_floating_point() else leaf
    return leaf / weight


def _dtype(leaf: Any) -> torch.dtype | None:
    return leaf.dtype if isinstance(leaf, Tensor) else None


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(torch.float64 if leaf.is_floating_point() else torch.int64, copy=True)
    return leaf


def _narrowed(leaf: Any, dtype: torch.dtype | None) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _form(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else "a number"


def _same(expected: str, found: str) -> None:
    if found != expected:
        raise GenfedError(f"uploads of one group have different shapes or types: {expected} and {found}")


def list_groups(aggregates: Mapping[str, Aggregate], info: ClientInfo) -> dict[str, dict[str, Aggregate]]:
    """The fields of a client's upload by the group that they are summed in; "" is everybody."""
    found: dict[str, dict[str, Aggregate]] = {}
    for name, how in aggregates.items():
        found.setdefault(how.group(info) if isinstance(how, Mean) else "", {})[name] = how
    return found
