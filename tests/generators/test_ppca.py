"""Probabilistic principal components: the maximum likelihood of Tipping and Bishop, from sums that any split gives."""

import pytest
import torch
from torch import Tensor

from genfed import Data, GenfedError, Task
from genfed.generators.ppca import PPCA, PPCANetwork, find_components
from genfed.generators.statistics_generator import merge

FEATURES = Task("features", (5,), ("a", "b"))
IMAGES = Task("image", (1, 8, 8), ("a", "b"))


def draw(count: int = 4000) -> Data:
    """Features of two planes in five dimensions, with a little noise."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    planes = torch.tensor([[[2.0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], [[0, 0, 0, 0, 2.0], [0, 0, 0, 1, 0]]])
    z = torch.randn(count, 2, generator=rng)
    x = (z[:, :, None] * planes[y]).sum(1) + y[:, None] + 0.1 * torch.randn(count, 5, generator=rng)
    return Data(x, y)


def network(how: PPCA, data: Data, task: Task) -> PPCANetwork:
    made = how.new(task, torch.Generator())
    made.load_state_dict(how.estimate(task, how.measure(data, task)))
    return made


def test_components_by_hand() -> None:
    covariance = torch.diag(torch.tensor([9.0, 1.0, 3.0, 2.0]).double())[None]
    factor, rest = find_components(covariance, 2)
    assert rest.tolist() == [1.5]  # the mean of 1 and 2
    assert torch.allclose(factor @ factor.mT, torch.diag(torch.tensor([7.5, 0.0, 1.5, 0.0]).double()))
    whole, none = find_components(covariance, 6)
    assert whole.shape == (1, 4, 6)
    assert none.tolist() == [0.0]
    assert torch.allclose(whole @ whole.mT, covariance)


def test_it_finds_the_planes_of_classes_and_draws_in_them() -> None:
    made = network(PPCA(rank=2), draw(), FEATURES)
    assert made.rest[:, 0].sqrt().tolist() == pytest.approx([0.1, 0.1], abs=0.01)
    drawn = made.sample(torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(1))
    deviations: list[float] = drawn.std(0).tolist()
    assert deviations[:2] == pytest.approx([2.0, 1.0], rel=0.05)
    assert max(deviations[2:]) < 0.05  # no variance in the directions that are left out


def test_densities_are_those_of_the_gaussian() -> None:
    made, x = network(PPCA(rank=2), draw(), FEATURES), draw(40).x

    def density(label: int) -> Tensor:
        factor, mean = made.factor[label, 0].double(), made.mean[label, 0].double()
        covariance = factor @ factor.T + made.rest[label, 0].double() * torch.eye(5)
        centered = x.double() - mean
        return -0.5 * (centered @ covariance.inverse() * centered).sum(1) - 0.5 * covariance.logdet()

    expected = torch.stack([density(0), density(1)], 1)
    found = made.log_joint(x).double()
    assert torch.allclose((found - expected), (found - expected).mean(), atol=1e-3)  # but for one constant


def test_images_are_reduced_and_enlarged() -> None:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(300, 1, 4, 4, generator=rng) * 1.6 - 0.8
    data = Data(coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.arange(300) % 2)
    how = PPCA(rank=3, size=4)
    statistics = how.measure(data, IMAGES)
    assert statistics["products"].shape == (2, 16 * 17 // 2)
    by_hand = PPCA(rank=3).measure(Data(coarse, data.y), Task("image", (1, 4, 4), ("a", "b")))
    assert all(torch.equal(statistics[name], by_hand[name]) for name in statistics)
    drawn = network(how, data, IMAGES).sample(torch.tensor([0, 1, 1]), rng)
    assert drawn.shape == (3, 1, 8, 8)
    assert float(drawn.abs().max()) <= 1


def test_any_split_has_the_same_sum() -> None:
    how, data = PPCA(rank=2), draw(60)
    parts = merge(how.measure(data[:7], FEATURES), how.measure(data[7:], FEATURES))
    whole = how.measure(data, FEATURES)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_class_without_examples_and_a_class_with_one() -> None:
    data = draw(41)[torch.tensor([1, *range(0, 41, 2)])]
    made = network(PPCA(rank=2), data, Task("features", (5,), ("a", "b", "c")))
    scores = made.log_joint(data.x)
    assert bool(scores.isfinite().all())
    assert not bool((scores.argmax(1) == 2).any())


@pytest.mark.parametrize(("size", "task"), [(16, IMAGES), (4, FEATURES)])
def test_a_size_that_does_not_fit_is_refused(size: int, task: Task) -> None:
    with pytest.raises(GenfedError, match=f"generator.size = {size}: examples of"):
        PPCA(size=size).new(task, torch.Generator())


def test_no_examples_at_all() -> None:
    how = PPCA()
    with pytest.raises(GenfedError, match="no client has an example"):
        how.estimate(FEATURES, how.measure(draw(0), FEATURES))
