"""Every measure against numbers that can be computed by hand, and on generators that cheat."""

import math

import pytest
import torch
from torch import Tensor, nn

from genfed.metrics.generator_metrics import frechet_distance, memorization, network_features, precision_recall
from genfed.metrics.nearest_neighbors import LARGEST, pairwise_distances


def points(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def with_moments(mean: list[float], deviations: list[float]) -> Tensor:
    """Six vectors with exactly this mean and diagonal covariance (with n − 1): ± along each axis."""
    d = len(mean)
    assert d == 3
    spread = torch.diag(torch.tensor(deviations, dtype=torch.float64)) * math.sqrt((2 * d - 1) / 2)
    return torch.tensor(mean, dtype=torch.float64) + torch.cat([spread, -spread])


def test_frechet_of_diagonal_gaussians_has_its_closed_form() -> None:
    a, b = with_moments([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), with_moments([1.0, 1.0, 0.0], [2.0, 2.0, 0.5])
    # ‖Δμ‖² + Σ (σ_a − σ_b)² = (1 + 0 + 4) + (1 + 0 + 6.25)
    assert frechet_distance(a, b) == pytest.approx(12.25, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(12.25, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """In two dimensions tr (AB)^½ = √(tr AB + 2 √det AB)."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=rng, dtype=torch.float64) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]).double()
    y = torch.randn(70, 2, generator=rng, dtype=torch.float64) @ torch.tensor([[1.0, -1.0], [0.3, 1.0]]).double()
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.sqrt((a @ b).trace() + 2 * torch.sqrt(torch.linalg.det(a @ b)))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_of_a_set_and_itself_is_nothing_even_where_its_covariance_is_singular() -> None:
    few = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few[:1], few[:1] + 1) == pytest.approx(40, rel=1e-6)


def test_neighbourhoods_on_a_line() -> None:
    real, made = points(0, 1, 2, 10), points(0.5, 1.5, 12, 30)
    # k = 1. Radii of the real: 1, 1, 1, 8: the balls [−1, 1], [0, 2], [1, 3], [2, 18]. Of the made: 1, 1, 10.5, 18:
    # [−0.5, 1.5], [0.5, 2.5], [1.5, 22.5], [12, 48].
    assert precision_recall(real, made, k=1) == {
        "precision": 3 / 4,  # 30 lies in none
        "recall": 1.0,
        "density": (2 + 2 + 1 + 0) / 4,  # 0.5 in the first two, 1.5 in the next two, 12 in the last
        "coverage": 1.0,
    }
    # k = 2. Radii of the real: 2, 1, 2, 9.
    found = precision_recall(real, made, k=2)
    assert found["precision"] == 3 / 4
    assert found["density"] == (3 + 4 + 1 + 0) / 4 / 2  # of [−2, 2], [0, 2], [0, 4] and [1, 19], 0.5 misses the last


def test_one_mode_is_precise_and_covers_little() -> None:
    real, made = points(0, 1, 2, 100, 101, 102), points(0.9, 1.0, 1.1, 1.2)
    found = precision_recall(real, made, k=1)
    assert (found["precision"], found["recall"], found["coverage"]) == (1.0, 1 / 6, 1 / 2)
    assert found["density"] == (2 + 3 + 2 + 2) / 4  # how often in [−1, 1], [0, 2] and [1, 3]


def test_a_set_and_itself_are_one_neighbourhood() -> None:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    found = precision_recall(x, x)
    assert (found["precision"], found["recall"], found["coverage"]) == (1.0, 1.0, 1.0)
    assert found["density"] == pytest.approx(6 / 5)  # each vector's ball holds its five and itself


def test_fewer_vectors_than_neighbours_reach_to_the_farthest() -> None:
    assert precision_recall(points(0, 1), points(5, 6))["precision"] == 0.0
    assert precision_recall(points(0), points(0))["precision"] == 1.0


def test_the_ratio_is_the_mean_of_the_examples_ratios() -> None:
    assert memorization(points(0, 10), fresh=points(3, 6), generated=points(1, 8)) == (3 / 1 + 4 / 2) / 2


def test_fresh_draws_are_silent_and_a_leak_is_found() -> None:
    rng = torch.Generator().manual_seed(0)
    train, fresh, made = (torch.randn(300, 20, generator=rng) for _ in range(3))
    assert memorization(train, fresh, made) == pytest.approx(1, abs=0.03)
    noise = torch.rand(300, 20, generator=rng) * 8
    assert memorization(train, fresh, noise) < 1
    leak = torch.cat([made[:285], train[:15] + 0.01 * torch.randn(15, 20, generator=rng)])
    assert memorization(train, fresh, leak) > 2  # one of twenty, nearly copied
    assert memorization(train, fresh, train) == LARGEST


def test_copies_of_what_is_not_secret_say_nothing() -> None:
    assert memorization(points(1, 2), fresh=points(1, 2), generated=points(1, 2)) == 1
    assert memorization(points(1, 2), fresh=points(1, 2), generated=points(5, 6)) == 0


def test_distances_of_equal_vectors_are_exactly_zero() -> None:
    x = 1000 + torch.rand(100, 50, generator=torch.Generator().manual_seed(0))
    assert pairwise_distances(x, x).diagonal().eq(0).all()


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.9), nn.Linear(3, 2)).train()
    x = torch.randint(256, (7, 1, 2, 2), dtype=torch.uint8)
    found = network_features(network, x, batch_size=3)
    expected = network[:3](x.float() * 2 / 255 - 1)
    assert found.shape == (7, 3)
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)
    assert not network[4]._forward_pre_hooks
