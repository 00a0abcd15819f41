"""Spectra and autocorrelations of series, by hand."""

import math

import pytest
import torch
from torch import Tensor

from genfed.core.task import Data
from genfed.metrics.series_metrics import (
    FLOOR,
    autocorrelation,
    autocorrelation_distance,
    band_powers,
    spectrum_distance,
)


def wave(oscillations: float, steps: int = 16, size: float = 1.0) -> Tensor:
    return size * torch.sin(2 * math.pi * oscillations * torch.arange(steps).double() / steps).view(1, 1, -1)


def of_class(x: Tensor, label: int = 0) -> Data:
    return Data(x, torch.full((len(x),), label))


@pytest.mark.parametrize(("oscillations", "band"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2)])
def test_a_wave_has_its_power_in_its_octave(oscillations: int, band: int) -> None:
    found = band_powers(wave(oscillations))[0, 0]
    assert found.tolist() == pytest.approx([0.5 if place == band else 0 for place in range(4)], abs=1e-6)


@pytest.mark.parametrize("steps", [8, 15, 16])
def test_bands_add_up_to_the_variance(steps: int) -> None:
    x = torch.randn(5, 3, steps, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(band_powers(x).sum(2), x.double().var(2, correction=0))


def test_distance_of_spectra_by_hand() -> None:
    # 16 steps have 4 octaves; twice the size is four times the power, in one of them
    one, double = of_class(wave(2)), of_class(wave(2, size=2))
    own = 10 * math.log10((2 + FLOOR) / (0.5 + FLOOR))
    assert spectrum_distance(one, double) == pytest.approx(own / 4, rel=1e-6)
    assert spectrum_distance(one, one) == 0
    silent = of_class(torch.zeros(1, 1, 16))
    assert spectrum_distance(one, silent) == pytest.approx(10 * math.log10((0.5 + FLOOR) / FLOOR) / 4, rel=1e-6)


def test_autocorrelation_by_hand() -> None:
    # 1, −1, 1, −1: products at lag 1 are −1, −1, −1 of a variance of 4; at lag 2 they are 1, 1
    assert autocorrelation(torch.tensor([[[1.0, -1, 1, -1]]]))[0].tolist() == pytest.approx([-0.75, 0.5])
    shifted = autocorrelation(torch.tensor([[[6.0, 4, 6, 4]]]))
    assert shifted[0].tolist() == pytest.approx([-0.75, 0.5]), "a window's mean does not count"
    assert autocorrelation(torch.ones(2, 1, 4))[0].tolist() == [0, 0]


def test_distance_of_autocorrelations_by_hand() -> None:
    x = of_class(torch.tensor([[[1.0, -1, 1, -1]]]))
    flat = of_class(torch.ones(1, 1, 4))
    assert autocorrelation_distance(x, flat) == pytest.approx((0.75 + 0.5) / 2)


def test_only_classes_of_both_sets_count() -> None:
    one, two = wave(1), wave(4)
    mixed = Data(torch.cat([one, two]), torch.tensor([0, 1]))
    assert spectrum_distance(mixed, of_class(one)) == 0
    assert spectrum_distance(mixed, of_class(one, 1)) > 1
    assert math.isnan(autocorrelation_distance(of_class(one, 0), of_class(one, 1)))
