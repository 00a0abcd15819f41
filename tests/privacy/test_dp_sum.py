"""Privacy of sums: no example changes the released numbers by more than a norm of 1, the noise is what is accounted
for, and everything without a bound is refused.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genfed import Data, GenfedError, Task
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.privacy import SumBounds
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.encoders.encoder import Encoder
from genfed.experiment.auditing import _describe_guarantee
from genfed.experiment.checkpoint import read_checkpoint
from genfed.experiment.compatibility import check_private_encoders
from genfed.experiment.run_folder import RunFolder
from genfed.generators.gaussian import Gaussian
from genfed.generators.statistics_generator import STEPS, bound_rows, merge
from genfed.methods.bases.feature_statistics import StatisticsState
from genfed.privacy.accounting import WITHIN, account, epsilon, gaussian_epsilon, noise_for
from genfed.privacy.client_level import read_releases
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.settings import DPSum
from genfed.report.page import build_page
from genfed.report.privacy_guarantees import describe_guarantees
from tests.conftest import start, tiny

KINDS = ("tied", "full", "diagonal")
NOISY: dict[str, Any] = {"kind": "dp_sum", "noise_multiplier": 2.0, "delta": 1e-5}
OFF: dict[str, Any] = {"kind": "dp_sum", "noise_multiplier": 0, "delta": 1e-5}
FEW = {"clients": 4, "max_examples": 120, "architectures": ["linear"]}
SMALL = {"fedcgs": {"encoder": {"kind": "random_conv", "filters": 2, "cells": 2}}}


def private(how: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return tiny("fedcgs", **({"federation": FEW, "method": SMALL, "privacy": how} | changes))


def state_of(config: dict[str, Any], out: Path) -> StatisticsState:
    start(config, out)
    at = read_checkpoint(read_config(config).method["fedcgs"], out / "trials" / "fedcgs" / "seed-0")
    assert at is not None
    assert isinstance(at.state, StatisticsState)
    return at.state


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def in_units(statistics: Weights, how: Gaussian, bounds: SumBounds) -> Tensor:
    """Returns all numbers as one vector, each divided by its scale."""
    scales = how.noise_scales(statistics, bounds)
    return torch.cat([(statistics[name] / scales[name]).flatten() for name in sorted(statistics)])


rows = st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5)
shares = st.floats(0.01, 0.49)


@pytest.mark.parametrize("kind", KINDS)
@given(
    others=st.lists(rows, max_size=6),
    row=rows,
    label=st.integers(0, 2),
    norm=st.none() | st.floats(0.2, 100),
    count=shares,
    sums=shares,
)
def test_an_example_changes_what_is_released_by_at_most_1(
    kind: str, others: list[list[float]], row: list[float], label: int, norm: float | None, count: float, sums: float
) -> None:
    how, bounds = Gaussian(covariance=kind), SumBounds(norm, count, sums)  # type: ignore[arg-type]
    task, clip = Task("features", (5,), ("a", "b", "c")), bounds.norm(5)

    def measure(x: list[list[float]], y: list[int]) -> Weights:
        features = torch.tensor(x).view(-1, 5)
        return how.measure(Data(bound_rows(features, clip), torch.tensor(y, dtype=torch.int64)), task)

    labels = [i % 3 for i in range(len(others))]
    without, with_it = measure(others, labels), measure([*others, row], [*labels, label])
    change = in_units(with_it, how, bounds) - in_units(without, how, bounds)
    assert float(change.norm()) <= 1 + 1e-9
    assert float((change - in_units(measure([row], [label]), how, bounds)).abs().max()) < 1e-9


def test_the_bound_is_reached() -> None:
    bounds, task = SumBounds(4.0, 0.2, 0.3), Task("features", (16,), ("a", "b"))
    x = bound_rows(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)) * 100, 4.0)
    one = in_units(Gaussian().measure(Data(x, torch.tensor([1])), task), Gaussian(), bounds)
    assert 0.97 < float(one.norm()) <= 1


def test_rows_within_the_norm_stay_as_they_are() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bound_rows(x, 100.0).float(), x)
    bounded = (bound_rows(x, 1.5) * STEPS).round() / STEPS
    assert float(bounded.norm(dim=1).max()) <= 1.5
    with pytest.raises(GenfedError, match=r"clip_norm = 0\.02: 7 features in steps of 1/64 need a larger one"):
        bound_rows(x, 0.02)


def test_epsilon_is_that_of_an_independent_accountant() -> None:
    for noise, steps, delta in ((3.7304, 1, 1e-5), (0.6, 1, 1e-5), (2.0, 4, 1e-3), (8.0, 1, 1e-6)):
        exact = gaussian_epsilon([(noise, 1.0, steps)], delta)
        mu = math.sqrt(steps) / noise
        # Numeric integral of what is above e^ε: δ(ε) = ∫ max(0, p − e^ε q).
        z = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
        p, q = (torch.exp(-((z - shift) ** 2) / 2) / math.sqrt(2 * math.pi) for shift in (mu, 0.0))
        failing = float((p - math.exp(exact) * q).clamp_min(0).sum() * (z[1] - z[0]))
        assert failing == pytest.approx(delta, rel=2e-3)
        prv = epsilon([(noise, 1.0, steps)], delta, "prv")  # it adds an error of 0.01
        assert exact <= prv + 1e-3
        assert prv == pytest.approx(exact, abs=0.03)
        assert exact <= epsilon([(noise, 1.0, steps)], delta, "rdp")
    assert gaussian_epsilon([(3.7304, 1.0, 1)], 1e-5) == pytest.approx(1, abs=1e-3)  # Balle and Wang's own code


def test_the_noise_for_a_budget_is_the_smallest_one() -> None:
    for target in (0.3, 1.0, 3.0, 8.0):
        noise = noise_for([(1.0, 1)], DPSum(epsilon=target, delta=1e-5))
        assert gaussian_epsilon([(noise, 1.0, 1)], 1e-5) <= target
        assert gaussian_epsilon([(noise / WITHIN**1.01, 1.0, 1)], 1e-5) > target


def test_sampled_batches_have_no_exact_formula() -> None:
    cost = account([(1.0, 0.1, 10)], 1e-5, "exact")
    assert cost.accountant == "prv"
    assert "no exact formula" in cost.note


@pytest.mark.parametrize("secure", [None, {"minimum_group": 4}])
def test_without_noise_and_clipping_all_bits_are_those_of_the_plain_run(secure: Any, tmp_path: Path) -> None:
    plain = state_of(private(OFF) | {"privacy": None}, tmp_path / "plain")
    off = state_of(private(OFF | {"clip_norm": 1e4}, secure_aggregation=secure), tmp_path / "off")
    assert same(plain.statistics, off.statistics)
    assert same(plain.generator, off.generator)
    assert same(plain.head, off.head)


@pytest.mark.parametrize("secure", [None, {"minimum_group": 4}])
def test_the_noise_is_what_is_accounted_for(secure: Any, tmp_path: Path) -> None:
    exact = state_of(private(OFF, secure_aggregation=secure), tmp_path / "off").statistics
    noisy = state_of(private(NOISY, secure_aggregation=secure), tmp_path / "noisy").statistics
    scales = Gaussian().noise_scales(exact, SumBounds())
    drawn = torch.cat([((noisy[name] - exact[name]) / scales[name]).flatten() for name in exact])
    assert len(drawn) == 10 + 80 + 36
    # χ² with 126 degrees of freedom: outside of this once in 10⁶ runs. Four clients with the noise of four add up.
    assert 2.0 * 0.69 < float(drawn.square().mean().sqrt()) < 2.0 * 1.34
    again = state_of(private(NOISY, secure_aggregation=secure), tmp_path / "again").statistics
    assert not same(noisy, again)


def test_a_release_is_charged_and_reported(tmp_path: Path) -> None:
    report = start(private({"kind": "dp_sum", "epsilon": 1.0, "delta": 1e-5}), tmp_path / "run")
    releases = read_releases(RunFolder(tmp_path / "run").trial("fedcgs", 0)).releases
    assert [(r.step, r.phase, r.clients) for r in releases] == [(0, "statistics", (0, 1, 2, 3))]
    found = report.of("fedcgs")[0].protection
    assert found is not None
    assert (found.level, found.steps, found.accountant, found.target) == ("example", 1, "exact", 1.0)
    assert found.epsilon is not None
    assert 0.97 < found.epsilon <= 1
    (line,) = describe_guarantees(report)
    assert "every single training example of all clients" in line
    assert "The server itself sees each upload, and must be trusted" in line
    assert "exact formula of the Gaussian mechanism" in line
    assert "what an example adds clipped to a norm of 1, up to 1 releases" in line
    assert f"ε = {found.epsilon:.2f} at δ = 1e-05" in build_page(report, {})


def test_under_masks_the_server_need_not_be_trusted(tmp_path: Path) -> None:
    report = start(private(NOISY, secure_aggregation={"minimum_group": 3}), tmp_path / "run")
    (line,) = describe_guarantees(report)
    assert "what the server sees, if enough clients are honest: noisy sums" in line
    assert len(read_releases(RunFolder(tmp_path / "run").trial("fedcgs", 0)).releases) == 1


def test_a_run_without_noise_says_so(tmp_path: Path) -> None:
    report = start(private(OFF), tmp_path / "run")
    (line,) = describe_guarantees(report)
    assert "what an example adds was clipped to a norm of 1, but no noise was added: ε = ∞" in line


@pytest.mark.usefixtures("in_pool")
def test_reproducible_noise_is_the_same_in_workers(tmp_path: Path) -> None:
    fixed = NOISY | {"reproducible_noise": True}
    one = state_of(private(fixed), tmp_path / "one")
    two = state_of(private(fixed, compute={"workers": 2}), tmp_path / "two")
    assert same(one.statistics, two.statistics)
    masked = private(fixed, secure_aggregation={"minimum_group": 3})
    assert same(state_of(masked, tmp_path / "three").statistics, state_of(masked, tmp_path / "four").statistics)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            tiny("fedavg", privacy=NOISY),
            "fedavg cannot be run under privacy.kind = .dp_sum.: what clients upload in ph",
        ),
        (private({"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-5}), 'set privacy.kind = "dp_sum"'),
        (private({"kind": "dp_fedavg", "noise_multiplier": 1.0, "delta": 1e-5}), "the server adds up statistics"),
        (private(NOISY | {"epsilon": 0.5}), r"privacy.epsilon = 0.5: with noise_multiplier = 2"),
        (private(NOISY | {"count_share": 0.6, "sum_share": 0.5}), r"count_share \+ privacy.sum_share = 1.1: below 1"),
        (private(NOISY, aggregation={"kind": "median"}), "aggregation"),
        (
            private(NOISY, method={"fedcgs": {"generator": {"kind": "gaussian", "shrinkage": "held_out"}}}),
            "with bounded parts; fedcgs uploads one, unless its shrinkage is held_out",
        ),
    ],
)
def test_refuses(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=reason):
        start(config, tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_statistics_give_gaussians(kind: str) -> None:
    """Also where noise is far larger than what is measured, and where classes are missing."""
    how, task = Gaussian(covariance=kind), Task("features", (6,), ("a", "b", "c"))  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    data = Data(torch.randn(40, 6, generator=rng), torch.arange(40) % 2)
    exact = how.measure(data, task)
    for multiplier in (0.01, 1.0, 100.0):
        deviations = {name: each * multiplier for name, each in how.noise_scales(exact, SumBounds()).items()}
        noisy = {
            name: exact[name] + (torch.randn(each.shape, generator=rng) * each).round().long()
            for name, each in deviations.items()
        }
        network = how.new(task, rng)
        network.load_state_dict(how.estimate_noisy(task, noisy, deviations))
        assert bool(network.log_joint(data.x).isfinite().all())
        assert bool(network.sample(torch.tensor([0, 1, 2]), rng).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_with_hardly_any_noise_is_the_exact_one(kind: str) -> None:
    how, task = Gaussian(covariance=kind), Task("features", (6,), ("a", "b"))  # type: ignore[arg-type]
    data = Data(torch.randn(400, 6, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 2)
    exact = how.measure(data, task)
    assert same(merge(exact, exact), how.measure(Data(data.x.repeat(2, 1), data.y.repeat(2)), task))
    deviations = {name: each * 1e-9 for name, each in how.noise_scales(exact, SumBounds()).items()}
    plain, noisy = how.estimate(task, exact), how.estimate_noisy(task, exact, deviations)
    for name, value in plain.items():
        torch.testing.assert_close(noisy[name], value, rtol=1e-5, atol=1e-6)


@settings
class Centered(Encoder):
    """Features of which the mean of the batch is subtracted: an easy mistake."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        return CenteredNetwork()


class CenteredNetwork(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x - x.mean(0) if len(x) > 2 else x


@settings
class Counting(Encoder):
    """Features that depend on whether bright examples were seen before."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        return CountingNetwork()


class CountingNetwork(nn.Module):
    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(1) + self.seen
        self.seen += int((x > 1).any())
        return features


@pytest.mark.parametrize(
    ("kind", "says"), [("Centered", "depend on the others of the batch"), ("Counting", "that it has seen before")]
)
def test_an_encoder_that_mixes_examples_is_refused_before_training(kind: str, says: str, tmp_path: Path) -> None:
    name = f"tests.privacy.test_dp_sum:{kind}"
    with pytest.raises(GenfedError, match=rf"method.fedcgs.encoder.kind = '{name}' cannot be used under .*{says}"):
        start(private(NOISY, method={"fedcgs": {"encoder": {"kind": name}}}), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_headers_under_dp_sgd_learn_from_no_such_features() -> None:
    settings = {"encoder": {"kind": "tests.privacy.test_dp_sum:Centered"}, "whitening": "none"}
    noise = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-3}
    config = read_config(tiny("gefl_f", method={"gefl_f": settings}, privacy=noise))
    task = Task("image", (1, 8, 8), ("a", "b"))
    with pytest.raises(GenfedError, match="depend on the others of the batch"):
        check_private_encoders(config, task, (), Architectures().new)


@pytest.mark.parametrize(("distributed", "says"), [(False, "can read every upload"), (True, "also against the server")])
def test_what_protects_is_named_as_what_it_is(distributed: bool, says: str) -> None:
    found = PrivacyGuarantee(1.0, None, 1e-5, "exact", (3.7, 3.7), 1.0, 1, distributed=distributed, clipped="features")
    words = _describe_guarantee(found)
    assert says in words
    assert "every example" in words
    assert "client:" not in words
    assert "DP-SGD" not in words
