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


def denoise(matrices: Tensor, deviation: float, floor: float) -> Tensor:
    """Returns symmetric matrices [g, d, d] nearer to those that they were before they got noise. Eigenvectors stay. An
    eigenvalue λ becomes λ − 2 σ² d h(λ), the mean over d of 1 / (λ − λⱼ) being h: Bun, Allez, Bouchaud, Potters,
    Rotational Invariant Estimator for General Noisy Matrices, IEEE Transactions on Information Theory 2016, arXiv
    1502.06736. Then those below a share of the noise are raised to it.

    Args:
        matrices: noisy matrices.
        deviation: standard deviation σ of the noise off the diagonal.
        floor: share of the largest eigenvalue of the noise, below which no eigenvalue stays.

    >>> torch.linalg.eigvalsh(denoise(torch.diag_embed(torch.tensor([[3.0, -1.0]]).double()), 0.5, 0.5))
    tensor([[0.7071, 2.8769]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(matrices)
    width = values.shape[1]
    gaps = values[:, :, None] - values[:, None, :]
    blur = deviation  # of about the distance between eigenvalues: 4 σ √d of them over d
    repulsion = (gaps / (gaps.square() + blur**2).clamp_min(1e-300)).sum(2)
    moved = values - 2 * deviation**2 * repulsion
    least = floor * largest_eigenvalue(deviation, width)
    moved = moved.cummax(1).values.clamp_min(least)  # in the order that they had
    raised: Tensor = (vectors * moved[:, None, :]) @ vectors.mT
    return raised
