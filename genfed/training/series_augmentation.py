"""Augmentations of series. Um, Pfister, Pichler, Endo, Lang, Hirche, Fietzek, Kulić, Data Augmentation of Wearable
Sensor Data for Parkinson's Disease Monitoring using Convolutional Neural Networks, ICMI 2017, arXiv 1706.00527.

Windows are [n, C, T] with mean 0 and deviation 1 in each channel. Draws are made on the CPU.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

NOISE = 0.05
"""Standard deviation of the noise of `jitter`."""
FACTOR = 0.1
"""Standard deviation of the factors of `scale` around 1."""
ANGLE = 30.0
"""Largest angle of `rotate`, in degrees."""
AXES = 3
"""Channels that are turned together: x, y and z of one sensor."""


def jitter(x: Tensor, rng: torch.Generator) -> Tensor:
    """Adds noise to every number."""
    return x + NOISE * torch.randn(x.shape, generator=rng).to(x.device)


def scale(x: Tensor, rng: torch.Generator) -> Tensor:
    """Multiplies each channel of a window by a factor."""
    return x * (1 + FACTOR * torch.randn(*x.shape[:2], 1, generator=rng)).to(x.device)


def rotate(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turns the sensors of a window together, about one random axis: channels 0 to 2 are x, y and z of the first
    sensor, 3 to 5 of the second, and so on.
    """
    # differs from the paper: angles are up to 30° rather than any; there a sensor may be worn upside down.
    axis = torch.randn(len(x), 3, generator=rng)
    angle = math.radians(ANGLE) * (2 * torch.rand(len(x), generator=rng) - 1)
    turn = rotations(axis / axis.norm(dim=1, keepdim=True), angle).to(x.device)
    sensors = x.view(len(x), -1, AXES, x.shape[2])
    return torch.einsum("nij,nsjt->nsit", turn, sensors).flatten(1, 2)


def rotations(axis: Tensor, angle: Tensor) -> Tensor:
    """Returns the rotation matrices [n, 3, 3] about axes [n, 3] of length 1 by angles [n] in radians (Rodrigues)."""
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3) + sine * cross + (1 - cosine) * cross @ cross


SERIES: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "jitter": jitter,
    "scale": scale,
    "rotate": rotate,
}
