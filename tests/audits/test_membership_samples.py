"""Copies are found, fresh draws and noise are not, and the density ratio is van Breugel's."""

import dataclasses
import math

import pytest
import torch

from genfed.audits.audit import NotPossible
from genfed.audits.membership_metrics import AUC
from genfed.audits.membership_samples import Density, MembershipSamples, log_density, nearest_sample
from genfed.core.rng import stream
from genfed.core.task import Data
from genfed.training.pixels import normalize_pixels
from tests.audits.cases import case, drawn, samples_of

CLOSEST, RATIO = 0, 1


def audited(made: Data, **settings: float) -> tuple[str, str]:
    toy = case(samples=samples_of(normalize_pixels(made.x), made.y))
    found = MembershipSamples(**settings).examine(toy.as_seen(("samples",)))  # type: ignore[arg-type]
    assert found.sizes["members"] == found.sizes["non-members"] == 120  # of 240: the others are for a control
    assert (found.sizes["reference"], found.sizes["samples"]) == (240, len(made))
    one, two = (reading.verdict for reading in found.readings)
    return one, two


def test_copies_are_found() -> None:
    assert audited(drawn(240, "train")) == ("leak", "leak")


def test_some_copies_are_found_by_distance() -> None:
    mixed = Data(torch.cat([drawn(240, "train").x[:60], drawn(180, "more").x]), torch.zeros(240, dtype=torch.int64))
    assert audited(mixed)[CLOSEST] == "leak"


def test_fresh_draws_and_noise_are_not() -> None:
    assert audited(drawn(240, "more")) == ("no leak found", "no leak found")
    noise = Data(torch.randint(256, (240, 1, 8, 8), generator=stream(1), dtype=torch.uint8), torch.zeros(240).long())
    assert audited(noise) == ("no leak found", "no leak found")


def test_an_attack_that_misses_what_was_planted_says_so() -> None:
    assert audited(drawn(240, "more"), noise=5.0) == ("underpowered", "underpowered")


def test_what_it_cannot_do() -> None:
    few = case(held_out=6, samples=samples_of(torch.zeros(20, 1, 8, 8), torch.zeros(20).long()))
    with pytest.raises(NotPossible, match="there are 3 pairs of a training and a held-out example of one class"):
        MembershipSamples().examine(few)
    with pytest.raises(NotPossible, match="there are 3 synthetic examples"):
        MembershipSamples().examine(case(samples=samples_of(torch.zeros(3, 1, 8, 8), torch.zeros(3).long())))
    burst = torch.full((20, 1, 8, 8), math.nan)
    with pytest.raises(NotPossible, match="not finite"):
        MembershipSamples().examine(case(samples=samples_of(burst, torch.zeros(20).long())))


def test_members_of_another_kind_than_held_out_examples_are_not_told_by_that() -> None:
    """As MNIST's parts are of different writers: samples that know no member are nearer to members all the same."""

    def darker(data: Data) -> Data:
        return Data((data.x.float() * 0.9).byte(), data.y)

    made = darker(drawn(240, "more"))
    toy = dataclasses.replace(
        case(samples=samples_of(normalize_pixels(made.x), made.y)), train=darker(drawn(240, "train"))
    )
    readings = MembershipSamples().examine(toy.as_seen(("samples",))).readings
    assert all(reading.run[AUC].low > 0.5 for reading in readings)
    assert [reading.verdict for reading in readings] == ["false positive", "false positive"]


def test_features_are_compared_with_features() -> None:
    """An extractor that keeps the mean of an image alone: copies of means are found, and images are never compared."""

    def means(data: Data) -> Data:
        return Data(normalize_pixels(data.x).flatten(1).mean(1, keepdim=True), data.y)

    def found(made: Data) -> list[str]:
        toy = case(samples=samples_of(means(made).x, made.y), features=means)
        return [r.verdict for r in MembershipSamples(noise=0.0).examine(toy.as_seen(("samples",))).readings]

    assert found(drawn(240, "train"))[CLOSEST] == "leak"
    assert found(drawn(240, "more"))[CLOSEST] == "no leak found"


def test_an_audit_sees_no_more_than_it_says() -> None:
    seen = case(state="the server's").as_seen(("samples",))
    with pytest.raises(AssertionError, match="threat model does not have 'state'"):
        _ = seen.state.generator
    with pytest.raises(AssertionError, match="'classifier'"):
        seen.classifier(seen.holdings[0].client)


def test_densities_by_hand() -> None:
    points, x = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5]])
    h = 2 ** (-1 / 5)
    by_hand = sum(math.exp(-((0.5 - p) ** 2) / (2 * h * h)) for p in (0, 2)) / (2 * h * math.sqrt(2 * math.pi))
    assert float(log_density(x, points)) == pytest.approx(math.log(by_hand), abs=1e-6)
    assert nearest_sample(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0], [9.0, 9.0]])).tolist() == [-5.0]

    reference = torch.randn(500, 3, generator=stream(0)) * torch.tensor([5.0, 2.0, 1e-9])
    density = Density(reference, 3)
    assert density._axes.shape == (3, 2)  # what does not vary tells nothing
    assert torch.equal(density.ratio(reference, reference), torch.zeros(500).double())


def test_rates_are_reported_for_every_control() -> None:
    made = drawn(240, "more")
    reading = MembershipSamples().examine(case(samples=samples_of(normalize_pixels(made.x), made.y))).readings[0]
    assert list(reading.run) == list(reading.control) == list(reading.null)
    assert reading.control[AUC].value == pytest.approx(0.3 + 0.7 * 0.5, abs=0.08)  # three in ten are told for sure
