"""The scale of the channels of series: training windows have mean 0 and standard deviation 1 in each."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.preprocessing.arrays import Array

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class ChannelMoments:
    """Sums over the numbers of each channel. Those of several sites can be added up, so that a federation could agree
    on one scale.
    """

    count: int
    """Numbers in each channel."""
    sums: NDArray[np.float64]
    """Their sums [C]."""
    squares: NDArray[np.float64]
    """The sums of their squares [C]."""

    def __add__(self, other: "ChannelMoments") -> "ChannelMoments":
        return ChannelMoments(self.count + other.count, self.sums + other.sums, self.squares + other.squares)


def measure_channels(x: Array) -> ChannelMoments:
    """Returns the moments of windows x [n, C, T]."""
    numbers = x.astype(np.float64)
    with np.errstate(over="ignore"):  # refused where a scale is fitted
        return ChannelMoments(len(x) * x.shape[2], numbers.sum((0, 2)), np.square(numbers).sum((0, 2)))


@dataclass(frozen=True)
class ChannelScale:
    """How windows become x: (value − mean) / deviation, by channel.

    >>> import numpy as np
    >>> scale = ChannelScale((10.0, 0.0), (2.0, 1.0))
    >>> x = scale.encode(np.array([[[10.0, 14.0], [0.0, 1.0]]]), "a.npz: x")
    >>> x.tolist(), scale.decode(x)[0, 0].tolist()
    ([[[0.0, 2.0], [0.0, 1.0]]], [10.0, 14.0])
    """

    means: tuple[float, ...]
    deviations: tuple[Positive, ...]
    """Standard deviations."""
    kind: Literal["series"] = "series"

    def encode(self, x: Array, where: str) -> Tensor:
        """Returns windows x [n, C, T] as they are used, float32; `where` names them in messages.

        Raises:
            GenfedError: they have another number of channels, or one of their numbers is far too large.
        """
        if x.shape[1] != len(self.means):
            raise GenfedError(f"{where}: windows of {x.shape[1]} channels; {len(self.means)} are allowed")
        scaled = (x.astype(np.float64) - np.array(self.means)[:, None]) / np.array(self.deviations)[:, None]
        with np.errstate(over="ignore"):
            found = torch.from_numpy(scaled.astype(np.float32))
        if not bool(found.isfinite().all()):
            raise GenfedError(f"{where}: numbers that are too large to be scaled")
        return found

    def decode(self, x: Tensor) -> Tensor:
        """Returns windows [n, C, T] in the units of the data."""
        means, deviations = (torch.tensor(each)[:, None] for each in (self.means, self.deviations))
        return x.float().cpu() * deviations + means


def fit_channel_scale(moments: ChannelMoments, where: str) -> ChannelScale:
    """Returns the scale of windows with these moments. A channel with one value has deviation 1.

    Raises:
        GenfedError: a number is too large for its square to be computed; `where` begins the message.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        means = moments.sums / moments.count
        variances = np.clip(moments.squares / moments.count - means**2, 0, None)
    if not np.isfinite(variances).all():
        raise GenfedError(f"{where}: channel {int(np.flatnonzero(~np.isfinite(variances))[0])} is too large to scale")
    # what is below the rounding of the squares is no variation
    varies = variances > 1e-12 * np.maximum(means**2, 1e-30)
    return ChannelScale(tuple(means.tolist()), tuple(np.where(varies, np.sqrt(variances), 1.0).tolist()))
