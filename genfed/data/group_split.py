"""Split of examples in which rows of one group, such as a patient, stay together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.rng import stream

_LACKING = 1e6
"""Cost of a class that a part lacks; above every other cost."""
_PASSES = 5
"""Passes over the groups that move single groups to parts that lack a class."""


def split_by_group(
    y: Tensor, groups: Sequence[str], fractions: Sequence[float], seed: int, classes: Sequence[str]
) -> list[Tensor]:
    """Splits the rows by group. Returns the sorted rows of the rest, then of each fraction.

    The parts are disjoint and together hold every row, and no group has rows in two of them. Each group goes where it
    brings the numbers of each class nearest to the fractions, large groups first.

    Args:
        y: The labels, int64 [n].
        groups: The group of each row, n names.
        fractions: The share of each part but the rest; 0: an empty part.
        seed: The seed of the split.
        classes: The names of the classes.

    Raises:
        GenfedError: there are fewer groups than parts, or the rest lacks a class.
    """
    names, number = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)
    shares = np.array([1 - sum(fractions), *fractions])
    if len(names) < (needed := int((shares > 0).sum())):
        raise GenfedError(f"{len(names)} groups are too few: each of {needed} parts needs one")
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (number, y.numpy()), 1)
    shuffled = torch.randperm(len(names), generator=stream(seed, "split", "groups")).numpy()
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    place = _place_groups(counts, shares, order)
    parts = [torch.from_numpy(np.flatnonzero(place[number] == part)) for part in range(len(shares))]
    if lacking := sorted(set(range(len(classes))) - set(y[parts[0]].tolist())):
        raise GenfedError(
            f"class {classes[lacking[0]]!r} is in too few groups: the training part would have none of it"
        )
    return parts


def _place_groups(
    counts: NDArray[np.float64], shares: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the part of each group. `counts` [groups, classes], `shares` [parts], `order`: the groups in turn."""
    used = np.flatnonzero(shares > 0)
    target = shares[used, None] * counts.sum(0)  # [parts, classes]
    weight = 1 / np.maximum(target, 1e-9)
    have, place = np.zeros_like(target), np.zeros(len(counts), np.int64)
    for group in order:
        # what the sum of (have − target)² / target grows by
        growth = (counts[group] * (counts[group] + 2 * (have - target)) * weight).sum(1)
        place[group] = best = int(growth.argmin())
        have[best] += counts[group]
    there = counts.sum(0) > 0
    for _ in range(_PASSES):
        if not ((have == 0) & there).any():
            break
        for group in order:
            _move_if_better(group, counts, place, have, target, there)
    return used[place]


def _move_if_better(
    group: int,
    counts: NDArray[np.float64],
    place: NDArray[np.int64],
    have: NDArray[np.float64],
    target: NDArray[np.float64],
    there: NDArray[np.bool_],
) -> None:
    """Moves a group to the part where the whole cost is least; changes `place` and `have`."""
    now, costs = place[group], []
    for part in range(len(target)):
        after = have.copy()
        after[now] -= counts[group]
        after[part] += counts[group]
        empty = (after.sum(1) == 0).sum() * len(there)  # a part without any row is worse than one that lacks classes
        lacking = ((after == 0) & there).sum(1)
        lacking[0] *= len(target)  # every class must be in the training part, if it can
        costs.append(_LACKING * (lacking.sum() + empty) + ((after - target) ** 2 / np.maximum(target, 1e-9)).sum())
    best = int(np.argmin(costs))
    if costs[best] < costs[now]:
        have[now] -= counts[group]
        have[best] += counts[group]
        place[group] = best
