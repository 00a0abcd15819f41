"""Moments with noise of known size, brought back to what moments can be."""

import math

import torch
from torch import Tensor


def drop_noisy_counts(counts: Tensor, deviation: Tensor) -> Tensor:
    """Returns numbers of examples [classes] without those that could be noise alone, below two standard deviations of
    it. If all could be, the largest stays, as 1 or more.

    >>> drop_noisy_counts(torch.tensor([90.0, 7.0, -3.0]), torch.full((3,), 5.0))
    tensor([90.,  0.,  0.])
    """
    kept = torch.where(counts >= (2 * deviation).clamp_min(1), counts, 0.0)
    if bool((kept > 0).any()):
        return kept
    return torch.where(torch.arange(len(counts)) == counts.argmax(), counts.clamp_min(1), 0.0)


def largest_eigenvalue(deviation: float, width: int) -> float:
    """Returns the largest eigenvalue of a symmetric matrix of noise, to which it tends as matrices grow (Wigner 1958).

    Args:
        deviation: standard deviation of the noise off the diagonal.
        width: number of rows.

    >>> largest_eigenvalue(0.5, 100)
    10.0
    """
    return 2 * deviation * math.sqrt(width)


def raise_eigenvalues(matrices: Tensor, least: float) -> Tensor:
    """Returns symmetric matrices [g, d, d] whose eigenvalues below `least` are raised to it.

    >>> raise_eigenvalues(torch.diag_embed(torch.tensor([[3.0, -1.0]])), 0.5)
    tensor([[[3.0000, 0.0000],
             [0.0000, 0.5000]]])
    """
    values, vectors = torch.linalg.eigh(matrices)
    raised: Tensor = (vectors * values.clamp_min(least)[:, None, :]) @ vectors.mT
    return raised
