"""Clips a client's update to a norm."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import map_tree
from genfed.core.errors import GenfedError


def subtract(before: Any, after: Any) -> Any:
    """Returns `after` − `before` of one leaf, in double precision; 0 for integers."""
    if not isinstance(after, Tensor):
        return after - before
    return after.double() - before.double() if after.is_floating_point() else 0.0


def zeros_like(value: Any) -> Any:
    """Returns a tree of zeros with the names and shapes of `value`."""
    return map_tree(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else 0.0, value)


def clip_update(updates: Mapping[str, Any], clip: float) -> tuple[float, float]:
    """Returns the L2 norm of a client's whole update, and the factor that brings it to at most `clip`.

    Raises:
        GenfedError: the norm is not finite.
    """
    length = norm_of(updates)
    if not math.isfinite(length):
        raise GenfedError("its update is not finite")
    return length, clip_factor(length, clip)


def clip_factor(length: float, clip: float) -> float:
    """Returns the factor that brings an update of this L2 norm, which is finite, to at most `clip`."""
    return min(1.0, clip / length) if length else 1.0


def norm_of(updates: Mapping[str, Any]) -> float:
    """Returns the L2 norm of a client's whole update. Infinite or NaN: a number is not finite, or its square is too
    large.
    """
    try:
        return math.sqrt(sum(math.fsum(_leaves(map_tree(_square, update))) for update in updates.values()))
    except OverflowError:
        return math.inf


def _square(update: Any) -> float:
    return float(update.square().sum()) if isinstance(update, Tensor) else float(update) ** 2


def _leaves(tree: Any) -> list[Any]:
    return [leaf for part in tree.values() for leaf in _leaves(part)] if isinstance(tree, dict) else [tree]
