"""Optimizers of the server, by hand."""

import math

import pytest
import torch
from pydantic import ValidationError

from genfed.training.server_optimizer import ServerMoments, ServerOptimizer

BEFORE = {"weight": torch.tensor([1.0, -2.0]), "running_mean": torch.tensor([4.0]), "count": torch.tensor(3)}
MEAN = {"weight": torch.tensor([0.5, -1.0]), "running_mean": torch.tensor([5.0]), "count": torch.tensor(7)}
CHANGE = (-0.5, 1.0)
TRAINED = {"weight"}


def test_the_default_is_the_mean_of_fedavg_to_the_bit() -> None:
    after, moments = ServerOptimizer().step(BEFORE, MEAN, ServerMoments(), TRAINED)
    assert after is MEAN
    assert moments == ServerMoments()


def test_sgd_without_momentum_goes_a_share_of_the_way() -> None:
    for rate in (0.5, 1.0 + 1e-12, 2.0):  # with the second, which is not the default, the formula gives the mean too
        after, _ = ServerOptimizer(learning_rate=rate).step(BEFORE, MEAN, ServerMoments(), TRAINED)
        assert after["weight"].tolist() == pytest.approx([1 + rate * CHANGE[0], -2 + rate * CHANGE[1]])


def test_fedavgm_adds_up_decayed_changes() -> None:
    how = ServerOptimizer(learning_rate=0.5, momentum=0.9)
    after, moments = how.step(BEFORE, MEAN, ServerMoments(), TRAINED)
    assert after["weight"].tolist() == pytest.approx([1 - 0.25, -2 + 0.5])
    again, _ = how.step(after, {"weight": after["weight"] + 1}, moments, TRAINED)
    assert again["weight"].tolist() == pytest.approx([0.75 + 0.5 * (0.9 * -0.5 + 1), -1.5 + 0.5 * (0.9 * 1 + 1)])


def test_fedadam_as_in_the_paper() -> None:
    """m = β₁m + (1 − β₁)Δ, v = β₂v + (1 − β₂)Δ² from v₋₁ = τ², w = w + η·m/(√v + τ)."""
    how = ServerOptimizer(kind="adam", learning_rate=0.1, first_decay=0.8, second_decay=0.75, adaptivity=0.01)
    after, moments = how.step(BEFORE, MEAN, ServerMoments(), TRAINED)
    m = [0.2 * d for d in CHANGE]
    v = [0.75 * 0.0001 + 0.25 * d * d for d in CHANGE]
    first = [w + 0.1 * a / (math.sqrt(b) + 0.01) for w, a, b in zip((1, -2), m, v, strict=True)]
    assert after["weight"].tolist() == pytest.approx(first)
    again, _ = how.step(after, {"weight": after["weight"] + 0.5}, moments, TRAINED)
    m = [0.8 * a + 0.2 * 0.5 for a in m]
    v = [0.75 * b + 0.25 * 0.25 for b in v]
    second = [w + 0.1 * a / (math.sqrt(b) + 0.01) for w, a, b in zip(first, m, v, strict=True)]
    assert again["weight"].tolist() == pytest.approx(second)


def test_the_default_rates() -> None:
    by_default, _ = ServerOptimizer(kind="adam").step(BEFORE, MEAN, ServerMoments(), TRAINED)
    given, _ = ServerOptimizer(kind="adam", learning_rate=0.001).step(BEFORE, MEAN, ServerMoments(), TRAINED)
    assert torch.equal(by_default["weight"], given["weight"])
    assert ServerOptimizer(learning_rate=1.0).is_mean
    assert not ServerOptimizer(kind="adam", learning_rate=1.0).is_mean


@pytest.mark.parametrize("how", [ServerOptimizer(momentum=0.5), ServerOptimizer(kind="adam")])
def test_what_is_not_trained_becomes_the_mean(how: ServerOptimizer) -> None:
    after, moments = how.step(BEFORE, MEAN, ServerMoments(), TRAINED)
    assert after.keys() == MEAN.keys()
    assert (after["running_mean"].item(), after["count"].item()) == (5.0, 7)
    assert moments.first.keys() == TRAINED


def test_what_was_given_stays_as_it_is() -> None:
    before = {name: value.clone() for name, value in BEFORE.items()}
    _, moments = ServerOptimizer(kind="adam").step(before, MEAN, ServerMoments(), TRAINED)
    kept = moments.first["weight"].clone()
    ServerOptimizer(kind="adam").step(before, MEAN, moments, TRAINED)
    assert all(torch.equal(before[name], BEFORE[name]) for name in BEFORE)
    assert torch.equal(moments.first["weight"], kept)


@pytest.mark.parametrize(
    "wrong", [{"kind": "sgdm"}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"first_decay": 1.0}, {"adaptivity": 0.0}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerOptimizer(**wrong)  # type: ignore[arg-type]
