"""Distances of vectors [n, d] to their nearest neighbours, in float64."""

import torch
from torch import Tensor

LARGEST = 1000.0
"""What the ratio of an exact copy counts for."""
_AT_ONCE = 50_000_000


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, [len(a), len(b)]; exact: of two equal vectors it is 0."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def nearest_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The distance from each vector of `a` to the nearest of `b`, and which that is; each [len(a)]."""
    far, which = nearest_neighbors(a, b, 1)
    return far[:, 0], which[:, 0]


def nearest_neighbors(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distances from each vector of `a` to its k nearest of `b`, rising, and which these are; each [len(a), k]."""
    parts = torch.split(a, max(1, _AT_ONCE // max(1, len(b))))
    found = [pairwise_distances(some, b).topk(k, dim=1, largest=False) for some in parts]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def distance_ratios(train: Tensor, fresh: Tensor, made: Tensor) -> Tensor:
    """The nearest-neighbour distance ratio of each training vector x [n], min_v d(x, v) / min_s d(x, s), v real ones
    that were not trained on and s made ones: LARGEST at most, 1 where both distances are 0. GeFL, arXiv 2412.18460.
    """
    near_fresh, near_made = nearest_distance(train, fresh)[0], nearest_distance(train, made)[0]
    return torch.where(near_fresh + near_made > 0, near_fresh / near_made, 1.0).clamp(max=LARGEST)
