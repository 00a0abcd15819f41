"""Distances of vectors [n, d] to their nearest neighbors, in float64."""

import torch
from torch import Tensor

LARGEST = 1000.0
"""Maximum of a ratio; that of an exact copy would be infinite."""
_AT_ONCE = 50_000_000


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns the Euclidean distances [len(a), len(b)]. They are exact: two equal vectors have distance 0."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def nearest_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distance from each vector of `a` to the nearest of `b`, and its row in `b`; each [len(a)]."""
    distances, rows = nearest_neighbors(a, b, 1)
    return distances[:, 0], rows[:, 0]


def nearest_neighbors(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ascending distances from each vector of `a` to its k nearest of `b`, and their rows in `b`; each
    [len(a), k].
    """
    parts = torch.split(a, max(1, _AT_ONCE // max(1, len(b))))
    found = [pairwise_distances(some, b).topk(k, dim=1, largest=False) for some in parts]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def distance_ratios(train: Tensor, fresh: Tensor, generated: Tensor) -> Tensor:
    """Returns the nearest-neighbor distance ratio [n] of each training vector x: min_v d(x, v) / min_s d(x, s) over the
    fresh vectors v and the generated vectors s. It is at most LARGEST, and 1 where both distances are 0. GeFL, arXiv
    2412.18460.

    Args:
        train: the training vectors [n, d].
        fresh: vectors of real examples that were not used in training.
        generated: vectors of generated examples.
    """
    to_fresh, to_generated = nearest_distance(train, fresh)[0], nearest_distance(train, generated)[0]
    return torch.where(to_fresh + to_generated > 0, to_fresh / to_generated, 1.0).clamp(max=LARGEST)
