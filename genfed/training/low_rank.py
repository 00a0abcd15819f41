"""Low-rank factorization of weights, and the mean of factorized weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
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


def outline(weights: FactoredWeights) -> Weights:
    """Returns tensors without numbers (on the device "meta"), of the names, shapes and types that `rebuild` returns.
    Nothing is multiplied: two small factors may have a product that fills the memory.

    >>> small = FactoredWeights({}, {"w": torch.ones(10**6, 1)}, {"w": torch.ones(1, 10**6)})
    >>> {name: tuple(tensor.shape) for name, tensor in outline(small).items()}
    {'w': (1000000, 1000000)}

    Raises:
        GenfedError: two factors have no product, or a tensor is both whole and a product.
    """
    products = Weights()
    for name in sorted(weights.left.keys() | weights.right.keys()):
        left, right = (tuple(side[name].shape) if name in side else None for side in (weights.left, weights.right))
        if left is None or right is None or len(left) != 2 or left[1:] != right[:1]:
            raise GenfedError(f"{name}: factors of shapes {left} and {right} have no product")
        if name in weights.whole:
            raise GenfedError(f"{name} is whole and has factors")
        products[name] = torch.empty(left[0], *right[1:], dtype=weights.left[name].dtype, device="meta")
    return {name: value.to("meta") for name, value in weights.whole.items()} | products


def check_factors(weights: FactoredWeights, like: Weights, most: float = math.inf) -> None:
    """Refuses factored weights of another network, before anything is multiplied.

    Args:
        weights: what another party sent; each factor is finite.
        like: tensors of the names, shapes and types that `rebuild` must return.
        most: bound on the absolute values that the products may have.

    Raises:
        GenfedError: names, shapes or types differ, or a product could hold larger numbers.
    """
    found = outline(weights)
    for name in sorted(found.keys() | like.keys()):
        forms = [(t.dtype, tuple(t.shape)) if (t := each.get(name)) is not None else None for each in (found, like)]
        if forms[0] != forms[1]:
            raise GenfedError(f"{name!r} is {forms[0] or 'missing'}; {forms[1] or 'no such tensor'} is allowed")
    for name, left in weights.left.items():
        largest = [float(each.double().abs().max()) if each.numel() else 0.0 for each in (left, weights.right[name])]
        if left.shape[1] * largest[0] * largest[1] > most:
            raise GenfedError(f"{name!r}: the product of its factors could hold numbers beyond ±{most:g}")


def rebuild(weights: FactoredWeights) -> Weights:
    """Multiplies the factors. Returns all tensors by name. `check_factors` comes before, if another party sent them.

    Raises:
        GenfedError: two factors have no product, or a tensor is both whole and a product.
    """
    outline(weights)
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
    """Returns the weights after an update; the inverse of `subtract_weights`.

    Raises:
        GenfedError: the update is of other weights.
    """
    check_factors(update, before)
    added = rebuild(update)
    return {k: v + added[k] if v.is_floating_point() else added[k] for k, v in before.items()}


@dataclass(frozen=True)
class RebuiltMean(Mean):
    """The mean of uploaded `FactoredWeights` of any rank: the mean of their products. A phase that declares it screens
    uploads by `check_factors`.
    """

    def extract(self, value: FactoredWeights) -> Weights:
        return rebuild(value)

    def read_layout(self, value: FactoredWeights, info: ClientInfo) -> dict[str, Any]:
        return Mean(by=self.by).read_layout(outline(value), info)


def _factorize_tensor(value: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    matrix = value.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    held = s.double().square().cumsum(0)
    rank = min(int((held < energy * held[-1]).sum()) + 1, len(s))
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return u[:, :rank] * s[:rank], v[:rank].reshape(rank, *value.shape[1:])
