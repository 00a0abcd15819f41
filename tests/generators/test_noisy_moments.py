"""Moments with noise: what is known of the noise brings them nearer to the truth."""

import pytest
import torch
from torch import Tensor

from genfed.generators.noisy_moments import denoise, drop_noisy_counts, largest_eigenvalue


def noise(width: int, seed: int) -> Tensor:
    """Symmetric noise as privacy of sums adds it: deviation 1 off the diagonal, √2 on it."""
    drawn = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    upper = drawn.triu(1)
    return upper + upper.T + drawn.diag().diag() * 2**0.5


def truth(width: int) -> Tensor:
    """A covariance with some large eigenvalues and many small ones."""
    return torch.diag(200.0 / (1 + torch.arange(width, dtype=torch.float64)))


def test_noise_has_the_largest_eigenvalue_that_is_said() -> None:
    for width in (100, 400):
        found = float(torch.linalg.eigvalsh(noise(width, 0)).max())
        assert found == pytest.approx(largest_eigenvalue(1.0, width), rel=0.07)


@pytest.mark.parametrize("seed", range(5))
def test_denoised_covariances_are_nearer_to_the_truth(seed: int) -> None:
    exact = truth(80)
    noisy = exact + noise(80, seed)
    better = denoise(noisy[None], 1.0, 0.0)[0]
    assert float((better - exact).norm()) < 0.75 * float((noisy - exact).norm())
    whole = torch.linalg.eigvalsh(denoise(noisy[None], 1.0, 0.12)[0])
    assert float(whole.min()) >= 0.12 * largest_eigenvalue(1.0, 80) - 1e-9


def test_without_noise_a_covariance_stays() -> None:
    exact = truth(30)
    rotation = torch.linalg.qr(noise(30, 1))[0]
    matrix = rotation @ exact @ rotation.T
    torch.testing.assert_close(denoise(matrix[None], 1e-9, 0.12)[0], matrix)


def test_by_hand() -> None:
    """Eigenvalues 4 and 0 with σ = 1 repel: 4 becomes 4 − 2 · 4 / (16 + 1), 0 becomes 0 + 8 / 17; then 2 · 0.5 · √2."""
    moved = denoise(torch.diag(torch.tensor([4.0, 0.0]).double())[None], 1.0, 0.5)[0]
    torch.testing.assert_close(moved, torch.diag(torch.tensor([4 - 8 / 17, 2**0.5]).double()))
    moved = denoise(torch.diag(torch.tensor([4.0, 0.0]).double())[None], 1.0, 0.1)[0]
    torch.testing.assert_close(moved, torch.diag(torch.tensor([4 - 8 / 17, 8 / 17]).double()))


def test_counts_that_noise_could_be_are_dropped() -> None:
    five = torch.full((3,), 5.0)
    assert drop_noisy_counts(torch.tensor([10.0, 9.9, 40.0]), five).tolist() == [10, 0, 40]
    assert drop_noisy_counts(torch.tensor([-4.0, 3.0, 2.0]), five).tolist() == [0, 3, 0]
    assert drop_noisy_counts(torch.tensor([-4.0, -3.0, -9.0]), five).tolist() == [0, 1, 0]
