"""Weights as products of low rank, and their mean."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genfed.core.aggregate import Mean
from genfed.core.errors import GenfedError
from genfed.core.task import Weights


@dataclass(frozen=True)
class FactoredWeights:
    """Tensors by name: some whole, the others as left [rows, rank] · right [rank, *the other dimensions]."""

    whole: Weights
    left: Weights
    right: Weights


def factorize(weights: Weights, energy: float) -> FactoredWeights:
    """Cuts the singular values of every matrix (a kernel [out, in, h, w] is [out, in·h·w]): the fewest largest ones
    that hold `energy` in (0, 1] of the sum of their squares are kept. What would not get smaller stays whole.
    """
    whole, left, right = Weights(), Weights(), Weights()
    for name, value in weights.items():
        factors = _factors(value, energy) if value.is_floating_point() and value.dim() > 1 else None
        if factors is None:
            whole[name] = value
        else:
            left[name], right[name] = factors
    return FactoredWeights(whole, left, right)


def rebuild(weights: FactoredWeights) -> Weights:
    """The tensors that the products stand for, each in one piece.

    Raises:
        GenfedError: factors that do not belong together.
    """
    for name in sorted(weights.left.keys() | weights.right.keys()):
        left, right = (tuple(side[name].shape) if name in side else None for side in (weights.left, weights.right))
        if left is None or right is None or len(left) != 2 or left[1:] != right[:1]:
            raise GenfedError(f"{name}: factors of shapes {left} and {right} have no product")
    # In double precision, so that how a tensor lies in memory does not show in the last bit.
    products = {
        name: torch.tensordot(left.double(), weights.right[name].double(), 1).to(left.dtype)
        for name, left in weights.left.items()
    }
    return weights.whole | products


def subtract_weights(after: Weights, before: Weights) -> Weights:
    """Returns the differences of floating-point tensors, and counters as in `after`."""
    return {k: v - before[k] if v.is_floating_point() else v for k, v in after.items()}


def apply_update(before: Weights, update: FactoredWeights) -> Weights:
    """Returns the weights after an update; the inverse of `subtract_weights`."""
    added = rebuild(update)
    return {k: v + added[k] if v.is_floating_point() else added[k] for k, v in before.items()}


@dataclass(frozen=True)
class RebuiltMean(Mean):
    """The mean of what `FactoredWeights` uploads stand for, whatever rank each has."""

    def extract(self, value: FactoredWeights) -> Weights:
        return rebuild(value)


def _factors(value: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    matrix = value.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    held = s.double().square().cumsum(0)
    rank = min(int((held < energy * held[-1]).sum()) + 1, len(s))
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return u[:, :rank] * s[:rank], v[:rank].reshape(rank, *value.shape[1:])
