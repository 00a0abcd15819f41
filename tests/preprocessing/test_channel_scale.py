"""The scale of channels, by hand, and from sums of several places."""

import numpy as np
import pytest
import torch

from genfed.core.errors import GenfedError
from genfed.preprocessing.channel_scale import ChannelScale, fit_channel_scale, measure_channels

X = np.array([[[1.0, 3.0], [5.0, 5.0]], [[5.0, 7.0], [5.0, 5.0]]])  # two windows of two channels and two steps


def test_by_hand() -> None:
    scale = fit_channel_scale(measure_channels(X), "here")
    # channel 0 is 1, 3, 5, 7: mean 4, variance 5; channel 1 has one value
    assert scale.means == (4.0, 5.0)
    assert scale.deviations == pytest.approx((5**0.5, 1.0))
    x = scale.encode(X, "here")
    torch.testing.assert_close(x[0], torch.tensor([[-3 / 5**0.5, -1 / 5**0.5], [0.0, 0.0]]))
    torch.testing.assert_close(scale.decode(x), torch.from_numpy(X).float())


def test_sums_of_two_places_are_those_of_all() -> None:
    both = measure_channels(X[:1]) + measure_channels(X[1:])
    assert fit_channel_scale(both, "here") == fit_channel_scale(measure_channels(X), "here")


def test_a_channel_with_one_large_value_is_not_taken_to_vary() -> None:
    x = np.full((3, 1, 7), 12345.678)
    assert fit_channel_scale(measure_channels(x), "here").deviations == (1.0,)


def test_numbers_that_are_too_large_are_refused() -> None:
    with pytest.raises(GenfedError, match="here: channel 0 is too large to scale"):
        fit_channel_scale(measure_channels(np.full((1, 1, 2), 1e200)), "here")
    with pytest.raises(GenfedError, match="b: numbers that are too large to be scaled"):
        ChannelScale((0.0,), (1e-30,)).encode(np.full((1, 1, 2), 1e20), "b")
