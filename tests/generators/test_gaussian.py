"""The Gaussian of features: its statistics are sums, exact for any split, and its estimates are computed by hand."""

import math
from itertools import pairwise

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genfed import Data, GenfedError, Task
from genfed.core.task import Weights
from genfed.generators.gaussian import (
    CANDIDATES,
    Covariance,
    Gaussian,
    GaussianNetwork,
    LinearDiscriminant,
    linear_discriminant,
    unfold_triangle,
)
from genfed.generators.statistics_generator import STEPS, merge, narrow, subtract

TASK = Task("features", (3,), ("a", "b", "c"))
KINDS = ("tied", "full", "diagonal")


def draw(count: int = 60, seed: int = 0, width: int = 3) -> Data:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=rng)
    x = torch.randn(count, width, generator=rng) * torch.tensor([0.5, 1.0, 2.0][:width]) + y[:, None] * 0.7
    return Data(x, y)


def network(how: Gaussian, data: Data) -> GaussianNetwork:
    made = how.new(TASK, torch.Generator())
    made.load_state_dict(how.estimate(TASK, how.measure(data, TASK)))
    return made


def rounded(data: Data) -> Tensor:
    return (data.x.double() * STEPS).round() / STEPS


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), order=st.permutations(range(60)))
def test_the_sum_is_the_same_for_any_split(kind: str, cuts: list[int], order: list[int]) -> None:
    how, data = Gaussian(covariance=kind), draw()  # type: ignore[arg-type]
    shuffled = data[torch.tensor(order)]
    parts = [how.measure(shuffled[a:b], TASK) for a, b in pairwise([0, *sorted(cuts), 60])]
    total = parts[0]
    for part in parts[1:]:
        total = merge(total, part)
    whole = how.measure(data, TASK)
    assert all(torch.equal(total[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_can_be_subtracted_to_the_bit(kind: str) -> None:
    how, data = Gaussian(covariance=kind), draw()  # type: ignore[arg-type]
    left = subtract(how.measure(data, TASK), how.measure(data[:20], TASK))
    own = how.measure(data[20:], TASK)
    assert all(torch.equal(left[name], own[name]) for name in own)
    again = how.estimate(TASK, left)
    assert all(torch.equal(value, how.estimate(TASK, own)[name]) for name, value in again.items())


def test_statistics_by_hand() -> None:
    task = Task("features", (2,), ("a", "b"))
    data = Data(torch.tensor([[0.5, -1.0], [1.0, 9.0], [0.25, 0.0]]), torch.tensor([0, 1, 1]))
    half, one, top, quarter = 32, 64, 512, 16  # 9 is clipped to 8
    tied = Gaussian().measure(data, task)
    assert tied["counts"].tolist() == [1, 2]
    assert tied["sums"].tolist() == [[half, -one], [one + quarter, top]]
    assert tied["products"].tolist() == [[half**2 + one**2 + quarter**2, -half * one + one * top, one**2 + top**2]]
    full = Gaussian(covariance="full").measure(data, task)["products"].tolist()
    assert full == [[half**2, -half * one, one**2], [one**2 + quarter**2, one * top, top**2]]
    diagonal = Gaussian(covariance="diagonal").measure(data, task)["products"].tolist()
    assert diagonal == [[half**2, one**2], [one**2 + quarter**2, top**2]]


def test_estimates_are_the_textbook_ones() -> None:
    data = draw(400)
    x = rounded(data)
    means = torch.stack([x[data.y == label].mean(0) for label in range(3)])
    own = torch.stack([torch.cov(x[data.y == label].T, correction=0) for label in range(3)])
    shares = torch.bincount(data.y).double() / 400
    tied = (shares[:, None, None] * own).sum(0)
    found = network(Gaussian(shrinkage=0.0), data)
    torch.testing.assert_close(found.prior.double(), shares, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mean.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((found.factor @ found.factor.mT)[0].double(), tied, rtol=1e-4, atol=1e-5)
    full = network(Gaussian(covariance="full", tying=0.25, shrinkage=0.5), data)
    mixed = 0.75 * own + 0.25 * tied
    levels = mixed.diagonal(dim1=1, dim2=2).mean(1)
    expected = 0.5 * mixed + 0.5 * levels[:, None, None] * torch.eye(3).double()
    torch.testing.assert_close((full.factor @ full.factor.mT).double(), expected, rtol=1e-4, atol=1e-5)
    diagonal = network(Gaussian(covariance="diagonal", shrinkage=0.0), data)
    torch.testing.assert_close(diagonal.factor.square().double(), own.diagonal(dim1=1, dim2=2), rtol=1e-4, atol=1e-5)


def test_the_linear_head_is_that_of_scikit_learn() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    data, new = draw(300), draw(200, seed=1)
    how = Gaussian(shrinkage=0.0)
    head = linear_discriminant(how.estimate(TASK, how.measure(data, TASK)))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rounded(data).numpy(), data.y.numpy())
    scores = new.x.double() @ head["weight"].double().T + head["bias"].double()
    assert (scores.argmax(1).numpy() == theirs.predict(new.x.double().numpy())).mean() == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_densities_of_scipy(kind: str) -> None:
    from scipy.stats import multivariate_normal

    data = draw(300)
    found, x = network(Gaussian(covariance=kind), data), draw(5, seed=2).x  # type: ignore[arg-type]
    scores = found.log_joint(x)
    for label in range(3):
        factor = found.factor[label if len(found.factor) > 1 else 0]
        covariance = (factor.diag().square() if factor.ndim == 1 else factor @ factor.T).numpy()
        density = multivariate_normal(found.mean[label].numpy(), covariance).logpdf(x.numpy())
        density = torch.as_tensor(density) + found.prior[label].log() + 1.5 * torch.log(torch.tensor(2 * torch.pi))
        torch.testing.assert_close(scores[:, label].double(), density.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_their_class(kind: str) -> None:
    found = network(Gaussian(covariance=kind), draw(300))  # type: ignore[arg-type]
    y = torch.arange(3).repeat_interleave(20_000)
    x = found.sample(y, torch.Generator().manual_seed(0)).view(3, 20_000, 3)
    torch.testing.assert_close(x.mean(1), found.mean, atol=0.06, rtol=0)
    for label in range(3):
        factor = found.factor[label if len(found.factor) > 1 else 0]
        covariance = factor.square().diag() if factor.ndim == 1 else factor @ factor.T
        torch.testing.assert_close(torch.cov(x[label].T), covariance, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_examples_is_never_predicted(kind: str) -> None:
    data = draw(80)
    data = data[data.y != 1]
    how = Gaussian(covariance=kind)  # type: ignore[arg-type]
    found, far = network(how, data), torch.randn(200, 3) * 50
    assert not (found.log_joint(far).argmax(1) == 1).any()
    if kind == "tied":
        head = linear_discriminant(found.state_dict())
        assert not ((far @ head["weight"].T + head["bias"]).argmax(1) == 1).any()


def test_one_example_a_class_has_a_covariance_that_can_be_inverted() -> None:
    for kind in KINDS:
        found = network(Gaussian(covariance=kind), Data(torch.eye(3), torch.arange(3)))  # type: ignore[arg-type]
        assert bool(found.log_joint(torch.eye(3)).isfinite().all())


def test_nothing_cannot_be_estimated() -> None:
    nothing = Gaussian().measure(draw(0), TASK)
    with pytest.raises(GenfedError, match="no client has an example"):
        Gaussian().estimate(TASK, nothing)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 50), count=st.integers(1, 30))
def test_what_a_client_measures_passes_the_check(kind: str, seed: int, count: int) -> None:
    how = Gaussian(covariance=kind)  # type: ignore[arg-type]
    how.check(how.measure(draw(count, seed), TASK), TASK, count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s | {"counts": s["counts"] + 1}, "counts do not add up"),
        (lambda s: s | {"counts": torch.tensor([-1, 1, 30])}, "counts do not add up"),
        (lambda s: s | {"sums": s["sums"] * 40}, "not those of 30 examples"),
        (lambda s: s | {"products": s["products"] * 10**6}, "not those of 30 examples"),
        (lambda s: s | {"products": s["products"] * 0}, "not those of 30 examples"),
        (lambda s: {"counts": s["counts"], "sums": s["sums"]}, "'products' too many or too few"),
        (lambda s: s | {"sums": s["sums"].float()}, r"sums are torch.float32 \(3, 3\)"),
        (lambda s: s | {"sums": s["sums"][:2]}, r"sums are torch.int64 \(2, 3\)"),
    ],
)
def test_impossible_statistics_are_refused(kind: str, change: object, reason: str) -> None:
    how = Gaussian(covariance=kind)  # type: ignore[arg-type]
    statistics = how.measure(draw(30), TASK)
    with pytest.raises(GenfedError, match=reason):
        how.check(change(statistics), TASK, 30)  # type: ignore[operator]


def test_products_beyond_the_squares_are_refused() -> None:
    statistics = Gaussian().measure(draw(30), TASK)
    statistics["products"][0, 1] = 30 * (8 * STEPS) ** 2  # Σ x₀ x₁
    with pytest.raises(GenfedError, match="not those of 30 examples"):
        Gaussian().check(statistics, TASK, 30)


def test_products_that_each_pair_allows_and_no_examples_have_are_refused() -> None:
    """Each feature would be against both others, which is possible for any two of the three alone."""
    most = 30 * (8 * STEPS) ** 2
    products = torch.tensor([[most, -most, -most, most, -most, most]])
    statistics = Gaussian().measure(draw(30), TASK) | {"products": products}
    with pytest.raises(GenfedError, match="not those of 30 examples"):
        Gaussian().check(statistics, TASK, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_classes_that_only_their_total_allows_are_refused(kind: str) -> None:
    """A client could otherwise move the mean of any class as far as it likes."""
    how = Gaussian(covariance=kind)  # type: ignore[arg-type]
    statistics = how.measure(draw(30), TASK)
    moved = statistics["sums"].clone()
    moved[0] += 20 * STEPS * 8
    moved[1] -= 20 * STEPS * 8
    with pytest.raises(GenfedError, match="not those of 30 examples"):
        how.check(statistics | {"sums": moved}, TASK, 30)
    absent = how.measure(Data(draw(30).x, torch.ones(30, dtype=torch.int64)), TASK)
    absent["sums"][0] += 1
    with pytest.raises(GenfedError, match="not those of 30 examples"):
        how.check(absent, TASK, 30)


def test_sums_of_no_examples_end_in_one_line() -> None:
    """Under masks nobody checks a single client's."""
    statistics = Gaussian().measure(draw(30), TASK)
    statistics["products"] -= 10**6
    with pytest.raises(GenfedError, match="the sums of the clients are those of no examples"):
        Gaussian().estimate(TASK, statistics)


def test_sums_travel_in_32_bits_where_they_always_fit() -> None:
    statistics = Gaussian().measure(Data(torch.full((8191, 3), 8.0), torch.zeros(8191, dtype=torch.int64)), TASK)
    small = narrow(statistics, 8191 * Gaussian.largest)
    assert small["products"].dtype == torch.int32
    assert all(torch.equal(small[name].long(), statistics[name]) for name in statistics)
    assert narrow(statistics, 8192 * Gaussian.largest)["products"].dtype == torch.int64


def test_an_upper_triangle_unfolds_to_a_symmetric_matrix() -> None:
    matrix = unfold_triangle(torch.arange(6.0)[None], 3)[0]
    assert matrix.tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]


def few(count: int, width: int = 12) -> tuple[Data, Task]:
    rng = torch.Generator().manual_seed(count)
    y = torch.arange(count) % 3
    x = torch.randn(count, width, generator=rng) * torch.linspace(0.3, 2.0, width) + y[:, None] * 0.5
    return Data(x, y), Task("features", (width,), TASK.classes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shrinkage_chosen_by_held_out_likelihood_is_one_of_those_that_can_be_set(kind: Covariance) -> None:
    """It decides the weight and nothing else; few examples need a larger one than many."""
    chosen = []
    for count in (18, 4000):
        data, task = few(count)
        held_out = Gaussian(covariance=kind, shrinkage="held_out")
        found = held_out.estimate(task, held_out.measure(data, task))
        for weight in CANDIDATES:
            set_to = estimated(Gaussian(covariance=kind, shrinkage=weight), data, task)
            if all(torch.equal(found[name], value) for name, value in set_to.items()):
                chosen.append(weight)
    few_examples, many = chosen
    assert few_examples > many


def estimated(how: Gaussian, data: Data, task: Task) -> Weights:
    return how.estimate(task, how.measure(data, task))


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_of_a_half_is_that_of_scipy(kind: Covariance) -> None:
    """That of the examples around their own class means, without the constant of the normal density."""
    data, task = few(240, width=3)
    x, y = (data.x.double() * STEPS).round() / STEPS, data.y
    how = Gaussian(covariance=kind, tying=0.0)
    fitted = estimated(how, data[:120], task)["factor"].double()
    total = 0.0
    for label in range(3):
        rows = x[120:][y[120:] == label]
        factor = fitted[label if len(fitted) > 1 else 0]
        covariance = torch.diag(factor.square()) if factor.ndim == 1 else factor @ factor.T
        density = scipy.stats.multivariate_normal(rows.mean(0), covariance)
        total += density.logpdf(rows).sum() + len(rows) * 3 / 2 * math.log(2 * math.pi)
    one, other = how.measure(data[:120], task), how.measure(data[120:], task)
    assert how._judge(one, other, 3, 1e-3) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_the_same_for_any_split_and_both_are_checked(kind: Covariance) -> None:
    how, (data, task) = Gaussian(covariance=kind, shrinkage="held_out"), few(60, width=3)
    whole = how.measure(data, task)
    parts = merge(how.measure(data[:17], task), how.measure(data[17:], task))
    assert whole.keys() == how.shapes(task).keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    half = int(whole["half_counts"].sum())
    assert 10 < half < 50
    how.check(whole, task, 60)
    too_many = whole | {"half_counts": whole["counts"] + 1}
    with pytest.raises(GenfedError, match="its statistics are not those of 60 examples"):
        how.check(too_many, task, 60)
    impossible = whole | {"half_products": whole["half_products"] * 0}
    with pytest.raises(GenfedError, match="its statistics are not those of 60 examples"):
        how.check(impossible, task, 60)


def test_without_two_examples_in_each_half_covariances_are_round() -> None:
    how, (data, task) = Gaussian(shrinkage="held_out"), few(2, width=3)
    factor = estimated(how, data, task)["factor"][0]
    assert torch.equal(factor, torch.diag(factor.diagonal()))


@pytest.mark.parametrize("shrinkage", [1e-3, 1e-5, 0.0])
def test_the_linear_head_keeps_its_digits_where_the_covariance_is_nearly_singular(shrinkage: float) -> None:
    """Features that hardly vary within classes, and have a large common part: logits are small differences."""
    rng = torch.Generator().manual_seed(4)
    y = torch.arange(600) % 3
    x = 0.3 * torch.randn(600, 40, generator=rng) @ torch.randn(40, 40, generator=rng) / 6 + torch.eye(40)[y] / 2 - 1
    x[:, 20:] = -1.0  # constant pixels
    task, how = Task("features", (40,), ("a", "b", "c")), Gaussian(shrinkage=shrinkage)
    found = how.estimate(task, how.measure(Data(x, y), task))
    head = LinearDiscriminant(40, 3)
    head.load_state_dict(linear_discriminant(found))
    weight = torch.cholesky_solve(found["mean"].double().T, found["factor"][0].double()).T
    exact = x.double() @ weight.T - 0.5 * (weight * found["mean"].double()).sum(1) + found["prior"].double().log()
    torch.testing.assert_close(head(x).double().softmax(1).detach(), exact.softmax(1), atol=2e-3, rtol=0)
