"""Low-rank factorization of weights, and the mean of factorized weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genfed.core.aggregate import Mean
from genfed.core.errors import GenfedError
from genfed.core.task import Weights


@dataclass(frozen=True)
class FactoredWeights:
    """Tensors by name: some are whole, the others products left [rows, rank] · right [rank, *the other dimensions]."""

    whole: Weights
    left: Weights
    right: Weights


def factorize(weights: Weights, energy: float) -> FactoredWeights:
    """Factorizes every matrix by its singular values (a kernel [out, in, h, w] is a matrix [out, in·h·w]).

    It keeps the fewest of the largest singular values that hold the share `energy` in (0, 1] of the sum of all squares.
    A tensor that would not become smaller stays whole.
    """
    whole, left, right = Weights(), Weights(), Weights()
    for name, value in weights.items():
        factors = _factorize_tensor(value, energy) if value.is_floating_point() and value.dim() > 1 else None
        if factors is None:
            whole[name] = value
        else:
            left[name], right[name] = factors
    return FactoredWeights(whole, left, right)


def rebuild(weights: FactoredWeights) -> Weights:
    """Multiplies the factors. Returns all tensors by name.

    Raises:
        GenfedError: two factors have no product.
    """
    for name in sorted(weights.left.keys() | weights.right.keys()):
        left, right = (tuple(side[name].shape) if name in side else None for side in (weights.left, weights.right))
        if left is None or right is None or len(left) != 2 or left[1:] != right[:1]:
            raise GenfedError(f"{name}: factors of shapes {left} and {right} have no product")
    # In double precision, so that the last bit does not depend on the memory layout.
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
    """The mean of uploaded `FactoredWeights` of any rank: the mean of their products."""

    def extract(self, value: FactoredWeights) -> Weights:
        return rebuild(value)


def _factorize_tensor(value: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    matrix = value.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    held = s.double().square().cumsum(0)
    rank = min(int((held < energy * held[-1]).sum()) + 1, len(s))
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return u[:, :rank] * s[:rank], v[:rank].reshape(rank, *value.shape[1:])
