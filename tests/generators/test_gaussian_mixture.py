"""Mixtures by federated EM: sums are exact for any split, likelihood never falls, and steps are scikit-learn's."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from genfed import Data, GenfedError, Task
from genfed.core.task import Weights
from genfed.generators.gaussian import Gaussian, GaussianNetwork
from genfed.generators.gaussian_mixture import SHARES, GaussianMixture, GaussianMixtureNetwork, divide
from genfed.generators.statistics_generator import STEPS, estimate_alone, merge, subtract

TASK = Task("features", (3,), ("a", "b", "c"))


def draw(count: int = 240, seed: int = 0, width: int = 3) -> Data:
    """Two clusters in each class."""
    rng = torch.Generator().manual_seed(seed)
    y, side = torch.randint(3, (count,), generator=rng), torch.randint(2, (count,), generator=rng)
    x = torch.randn(count, width, generator=rng) * 0.4 + y[:, None] * 0.7 + side[:, None] * torch.tensor([2.0, 0, -1])
    return Data(x, y)


def run_em(how: GaussianMixture, parts: Sequence[Data], seed: int = 1) -> list[Weights]:
    """The estimates after each pass over these clients."""
    estimates: list[Weights] = []
    for _ in range(how.passes):
        present = estimates[-1] if estimates else None
        total = how.measure(parts[0], TASK, present)
        for part in parts[1:]:
            total = merge(total, how.measure(part, TASK, present))
        estimates.append(how.estimate(TASK, total, present, torch.Generator().manual_seed(seed)))
    return estimates


def network(weights: Weights) -> GaussianMixtureNetwork:
    made = GaussianMixtureNetwork(TASK, weights["weight"].shape[1])
    made.load_state_dict(weights)
    return made


def rounded(data: Data) -> Tensor:
    return (data.x.double() * STEPS).round() / STEPS


def likelihood(weights: Weights, data: Data) -> float:
    return float(network(weights).double().log_joint(rounded(data)).gather(1, data.y[:, None]).mean())


@hypothesis_settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 240), max_size=4), order=st.permutations(range(240)))
def test_federated_is_centralised_to_the_bit(cuts: list[int], order: list[int]) -> None:
    how, data = GaussianMixture(components=3, em_steps=4), draw()
    shuffled, bounds = data[torch.tensor(order)], [0, *sorted(cuts), 240]
    parts = [shuffled[a:b] for a, b in itertools.pairwise(bounds)]
    many, one = run_em(how, parts)[-1], estimate_alone(how, data, TASK, torch.Generator().manual_seed(1))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_wide_features_are_exact_too() -> None:
    rng = torch.Generator().manual_seed(3)
    data = Data(torch.randn(90, 500, generator=rng).abs() * 4, torch.zeros(90, dtype=torch.int64))
    task, how = Task("features", (500,), ("a",)), GaussianMixture(components=3)
    present = how.estimate(task, how.measure(data, task), None, rng)
    whole = how.measure(data, task, present)
    single = [how.measure(data[i : i + 1], task, present) for i in range(90)]
    total = single[0]
    for part in single[1:]:
        total = merge(total, part)
    assert all(torch.equal(whole[name], total[name]) for name in whole)
    back = subtract(whole, single[5])
    assert torch.equal(back["sums"] + single[5]["sums"], whole["sums"])


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_never_falls(seed: int) -> None:
    data = draw(400, seed)
    how = GaussianMixture(components=3, em_steps=25, shrinkage=0.0)
    values = [likelihood(each, data) for each in run_em(how, [data])]
    assert all(after >= before - 1e-4 for before, after in itertools.pairwise(values))  # shares are rounded
    assert values[-1] > values[0] + 0.1


def test_two_clusters_are_found() -> None:
    found = run_em(GaussianMixture(components=2, em_steps=40), [draw(3000)])[-1]
    for label in range(3):
        means = found["mean"][label][found["mean"][label][:, 0].argsort()]
        expected = torch.tensor([[0.0, 0, 0], [2.0, 0, -1]]) + 0.7 * label
        torch.testing.assert_close(means, expected, atol=0.08, rtol=0)
        torch.testing.assert_close(found["weight"][label], torch.tensor([0.5, 0.5]), atol=0.05, rtol=0)


def test_a_step_is_that_of_scikit_learn() -> None:
    from sklearn.mixture import GaussianMixture as Theirs

    data = draw(400)
    x = rounded(data)[data.y == 1].numpy()
    first, *_, last = run_em(GaussianMixture(components=3, em_steps=8, shrinkage=0.0), [data])
    theirs = Theirs(
        3,
        covariance_type="diag",
        reg_covar=0.0,
        tol=0.0,
        max_iter=8,
        weights_init=np.full(3, 1 / 3),
        means_init=first["mean"][1].double().numpy(),
        precisions_init=1 / first["deviation"][1].double().square().numpy(),
    )
    with pytest.warns(UserWarning, match="converge"):
        theirs.fit(x)
    np.testing.assert_allclose(last["weight"][1], theirs.weights_, atol=2e-3)
    np.testing.assert_allclose(last["mean"][1], theirs.means_, atol=4e-3)
    np.testing.assert_allclose(last["deviation"][1] ** 2, theirs.covariances_, atol=4e-3)


def test_one_component_is_the_diagonal_gaussian() -> None:
    data, how, one = draw(), Gaussian(covariance="diagonal"), GaussianMixture(components=1)
    assert one.passes == 1
    found, gaussian = run_em(one, [data])[-1], how.estimate(TASK, how.measure(data, TASK))
    assert torch.equal(found["prior"], gaussian["prior"])
    assert torch.equal(found["mean"][:, 0], gaussian["mean"])
    assert torch.equal(found["deviation"][:, 0], gaussian["factor"])
    theirs = GaussianNetwork(TASK, "diagonal")
    theirs.load_state_dict(gaussian)
    torch.testing.assert_close(network(found).log_joint(data.x), theirs.log_joint(data.x))


def test_statistics_by_hand() -> None:
    task, how = Task("features", (1,), ("a", "b")), GaussianMixture(components=2)
    data = Data(torch.tensor([[0.5], [-0.5], [9.0]]), torch.tensor([0, 0, 1]))
    first = how.measure(data, task)
    assert first["counts"].tolist() == [2, 1]
    assert first["shares"].tolist() == [[2 * SHARES], [SHARES]]
    assert first["sums"].tolist() == [[[0]], [[512 * SHARES]]]  # 9 is clipped to 8
    assert first["squares"].tolist() == [[[2 * 32**2 * SHARES]], [[512**2 * SHARES]]]
    half = torch.full((2, 2), 0.5)
    mean = torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]])
    present = {"prior": half[0], "weight": half, "mean": mean, "deviation": torch.ones(2, 2, 1)}
    second = how.measure(data, task, present)
    # Of 0.5 the first component has 1 / (1 + exp(−½ (1.5² − 0.5²))) = 1 / (1 + e⁻¹) = 0.73106, 2994 of 4096 shares.
    assert second["shares"].tolist() == [[SHARES, SHARES], [SHARES, 0]]
    assert second["sums"][0].tolist() == [[32 * (2994 - 1102)], [-32 * (2994 - 1102)]]
    after = how.estimate(task, second, present)
    torch.testing.assert_close(after["mean"][0], torch.tensor([[0.5], [-0.5]]) * (2994 - 1102) / 4096)
    assert after["mean"][1].tolist() == [[8.0], [-1.0]]  # the component without a share stays
    assert after["weight"].tolist() == [[0.5, 0.5], [1.0, 0.0]]
    torch.testing.assert_close(after["prior"], torch.tensor([2 / 3, 1 / 3]))


def test_shares_are_whole_and_complete() -> None:
    shares = divide(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1e6]], dtype=torch.float64))
    assert shares.tolist() == [[1366, 1365, 1365], [2048, 2048, 0]]
    random = divide(torch.randn(500, 7, dtype=torch.float64) * 20)
    assert bool((random.sum(1) == SHARES).all())
    assert bool((random >= 0).all())


def test_draws_have_the_moments_of_their_class() -> None:
    found = network(run_em(GaussianMixture(components=2, em_steps=20), [draw(600)])[-1])
    y = torch.arange(3).repeat_interleave(20_000)
    x = found.sample(y, torch.Generator().manual_seed(0)).view(3, 20_000, 3)
    weight, mean = found.weight[..., None], found.mean
    expected = (weight * mean).sum(1)
    variance = (weight * (found.deviation.square() + mean.square())).sum(1) - expected.square()
    torch.testing.assert_close(x.mean(1), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(x.var(1), variance, atol=0.05, rtol=0.05)
    found.weight[:] = torch.tensor([0.0, 1.0])
    found.deviation[:] = 1e-6
    torch.testing.assert_close(found.sample(torch.tensor([2]), torch.Generator()), found.mean[2, 1:], atol=1e-4, rtol=0)


def test_scores_are_the_densities_of_scikit_learn() -> None:
    from sklearn.mixture import GaussianMixture as Theirs

    found, x = network(run_em(GaussianMixture(components=2), [draw()])[-1]), draw(7, seed=5).x
    scores = found.log_joint(x)
    for label in range(3):
        theirs = Theirs(2, covariance_type="diag")
        theirs.weights_, theirs.means_ = found.weight[label].numpy(), found.mean[label].numpy()
        theirs.covariances_ = found.deviation[label].square().numpy()
        theirs.precisions_cholesky_ = 1 / found.deviation[label].numpy()
        expected = torch.as_tensor(theirs.score_samples(x.numpy())) + found.prior[label].log()
        expected = expected.double() + 1.5 * np.log(2 * np.pi)
        torch.testing.assert_close(scores[:, label].double(), expected, atol=1e-3, rtol=1e-4)


def test_a_class_without_examples_is_never_predicted() -> None:
    data = draw()
    found = network(run_em(GaussianMixture(components=3), [data[data.y != 1]])[-1])
    assert not (found.log_joint(torch.randn(200, 3) * 50).argmax(1) == 1).any()


def test_another_seed_begins_elsewhere() -> None:
    how, data = GaussianMixture(em_steps=1), draw()
    assert not torch.equal(run_em(how, [data], 1)[-1]["mean"], run_em(how, [data], 2)[-1]["mean"])


def test_nothing_cannot_be_estimated() -> None:
    how = GaussianMixture()
    with pytest.raises(GenfedError, match="no client has an example"):
        how.estimate(TASK, how.measure(draw(0), TASK))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s | {"counts": s["counts"] + 1}, "counts do not add up"),
        (lambda s: s | {"shares": s["shares"] + 1}, "shares do not add up"),
        (lambda s: s | {"sums": s["sums"] * 40}, "not those of 30 examples"),
        (lambda s: s | {"squares": s["squares"] * 10**6}, "not those of 30 examples"),
        (lambda s: {name: s[name] for name in ("counts", "shares", "sums")}, "'squares' too many or too few"),
        (lambda s: s | {"sums": s["sums"].float()}, r"sums are torch.float32"),
        (lambda s: s | {"sums": s["sums"][:2]}, r"sums are torch.int64"),
    ],
)
def test_impossible_statistics_are_refused(first: bool, change: object, reason: str) -> None:
    how, data = GaussianMixture(components=2), draw(30)
    present = None if first else run_em(how, [draw()])[-1]
    statistics = how.measure(data, TASK, present)
    how.check(statistics, TASK, 30, int(not first))
    with pytest.raises(GenfedError, match=reason):
        how.check(change(statistics), TASK, 30, int(not first))  # type: ignore[operator]


def test_too_many_examples_of_one_client_are_refused() -> None:
    many = torch.zeros(1).expand(2**23, 1)
    with pytest.raises(GenfedError, match="at most 8388607 have exact sums"):
        GaussianMixture().measure(Data(many, torch.zeros(1, dtype=torch.int64).expand(2**23)), TASK)
