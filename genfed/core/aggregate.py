"""How the uploads of a phase are reduced, declared per field on the phase.

Replies are folded as they arrive, along a fixed binary tree over the clients asked: the sum has the same bits
whoever answers first, and memory stays at O(log n) partial sums plus what is in flight.
"""

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


class Aggregate(ABC):
    """A reduction of one upload field: `lift` each value, `add` along the tree, `finish`."""

    holds_all = False
    """Whether every single upload is held until the end (and so cannot be summed on the way, or secretly)."""

    @abstractmethod
    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        """One client's contribution; must not alias `value`."""

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

    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        group = info.architecture if self.by else ""
        return {group: (weight, _map(lambda leaf: _times(leaf, weight), value), _map(_dtype, value))}

    def add(self, left: Any, right: Any) -> Any:
        out = dict(left)
        for group, (weight, total, dtypes) in right.items():
            if group in out:
                before, sum_before, dtypes = out[group]
                weight, total = before + weight, _map(_plus, sum_before, total)
            out[group] = (weight, total, dtypes)
        return out

    def finish(self, total: Any) -> Any:
        def divide(weight: float, value: Any, dtypes: Any) -> Any:
            return _map(lambda leaf, dtype: _divided(leaf, weight, dtype), value, dtypes)

        means = {group: divide(*parts) for group, parts in sorted((total or {}).items())}
        return means if self.by else means.get("")


@dataclass(frozen=True)
class Sum(Aggregate):
    """Σ value, weights aside; floating-point sums are taken in double precision."""

    def lift(self, value: Any, weight: float, info: ClientInfo) -> Any:
        return _map(lambda leaf: _times(leaf, 1.0), value), _map(_dtype, value)

    def add(self, left: Any, right: Any) -> Any:
        return _map(_plus_all, left[0], right[0]), left[1]

    def finish(self, total: Any) -> Any:
        return None if total is None else _map(lambda leaf, dtype: _divided(leaf, 1.0, dtype), *total)


@dataclass(frozen=True)
class Collect(Aggregate):
    """Every upload, by client id: for a method that needs each single one."""

    holds_all = True

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

    def add(self, info: ClientInfo, upload: object, weight: float) -> None:
        """Folds one reply in.

        Raises:
            GenfedError: the upload does not fit those before it; the fold is then as it was.
        """
        values = {name: how.lift(getattr(upload, name), weight, info) for name, how in self._aggregates.items()}
        self._place_at(self._place[info.id], values)

    def skip(self, info: ClientInfo) -> None:
        """Leaves a client out."""
        self._place_at(self._place[info.id], None)

    def _place_at(self, index: int, partial: dict[str, Any] | None) -> None:
        level, size, joined = 0, len(self._place), []
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

    def _join(self, left: dict[str, Any] | None, right: dict[str, Any] | None) -> dict[str, Any] | None:
        if left is None or right is None:
            return right if left is None else left
        return {name: how.add(left[name], right[name]) for name, how in self._aggregates.items()}

    def finish(self) -> dict[str, Any]:
        """The reduced value of every declared field."""
        assert len(self._waiting) == 1, "a client asked has neither answered nor been skipped"
        (total,) = self._waiting.values()
        return {name: how.finish(None if total is None else total[name]) for name, how in self._aggregates.items()}


def _map(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies to every leaf of dicts that have the same keys."""
    first = trees[0]
    if isinstance(first, dict):
        for other in trees[1:]:
            if not isinstance(other, dict) or other.keys() != first.keys():
                raise GenfedError("uploads of one group have different names")
        return {key: _map(function, *(tree[key] for tree in trees)) for key in first}
    return function(*trees)


def _times(leaf: Any, weight: float) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(torch.float64, copy=True).mul_(weight) if leaf.is_floating_point() else leaf.clone()
    return leaf * weight


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, Tensor):
        if left.shape != right.shape or left.dtype != right.dtype:
            raise GenfedError(
                f"uploads of one group have different shapes: {tuple(left.shape)} and {tuple(right.shape)}"
            )
        return left + right if left.is_floating_point() else left
    return left + right


def _plus_all(left: Any, right: Any) -> Any:
    integers = isinstance(left, Tensor) and not left.is_floating_point()
    return left + right if integers and left.shape == right.shape else _plus(left, right)


def _divided(leaf: Any, weight: float, dtype: torch.dtype | None) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf / weight).to(dtype) if leaf.is_floating_point() else leaf
    return leaf / weight


def _dtype(leaf: Any) -> torch.dtype | None:
    return leaf.dtype if isinstance(leaf, Tensor) else None
