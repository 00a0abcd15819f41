"""Fidelity of generated series: how far their spectra and autocorrelations are from those of real ones, class by class.

Windows are [n, C, T], on the scale where each channel has deviation 1. A window's mean does not count. Everything is
computed in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genfed.core.task import Data

FLOOR = 1e-6
"""Power that is added to that of each band, so that silence has a logarithm: −60 dB of a channel's variance."""


def spectrum_distance(real: Data, generated: Data) -> float:
    """Returns the mean over classes, channels and octave bands of the absolute difference of the band's mean power, in
    decibels. Classes that either set lacks do not count; NaN: there is no other.
    """
    return _mean_over_classes(real, generated, lambda x: 10 * (band_powers(x).mean(0) + FLOOR).log10())


def autocorrelation_distance(real: Data, generated: Data) -> float:
    """Returns the mean over classes, channels and lags of the absolute difference of the autocorrelation, of 1 to T/2
    steps. Classes that either set lacks do not count; NaN: there is no other.
    """
    return _mean_over_classes(real, generated, autocorrelation)


def band_powers(x: Tensor) -> Tensor:
    """Returns the power of windows x [n, C, T] in octave bands [n, C, bands]: of 1, 2–3, 4–7, … oscillations in a
    window. The bands add up to a window's variance.

    >>> import torch
    >>> wave = torch.sin(torch.arange(8) * 2 * torch.pi / 4)  # two oscillations in eight steps, of variance 1/2
    >>> band_powers(wave.view(1, 1, 8))[0, 0].round(decimals=4).tolist()
    [0.0, 0.5, 0.0]
    """
    steps = x.shape[2]
    power = torch.fft.rfft(x.double(), dim=2).abs().square() / steps**2
    power[..., 1 : (steps + 1) // 2] *= 2  # both signs of a frequency; the highest has one if T is even
    octave = torch.arange(1, power.shape[2]).double().log2().floor().long()
    bands: Tensor = power.new_zeros(*x.shape[:2], int(octave[-1]) + 1 if len(octave) else 0)
    bands.index_add_(2, octave, power[..., 1:])
    return bands


def autocorrelation(x: Tensor) -> Tensor:
    """Returns the autocorrelation of windows x [n, C, T], averaged over them, for lags of 1 to T/2 steps: [C, lags].
    Channels that do not vary have 0.
    """
    steps = x.shape[2]
    centred = x.double() - x.double().mean(2, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=2).abs().square()
    covariance = torch.fft.irfft(spectrum, n=2 * steps, dim=2).mean(0)[:, : steps // 2 + 1] / steps
    varies = covariance[:, :1] > FLOOR
    return torch.where(varies, covariance[:, 1:] / covariance[:, :1].clamp_min(FLOOR), 0.0)


def _mean_over_classes(real: Data, generated: Data, describe: Callable[[Tensor], Tensor]) -> float:
    """Returns the mean absolute difference of what `describe` gives for the windows of one class of either set."""
    both = sorted(set(real.y.tolist()) & set(generated.y.tolist()))
    each = [(describe(real.x[real.y == c]) - describe(generated.x[generated.y == c])).abs().mean() for c in both]
    return float(torch.stack(each).mean()) if each else float("nan")
