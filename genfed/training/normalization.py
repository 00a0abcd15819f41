"""Layers that bring the channels of maps to one scale: by the batch, or by each example itself."""

from collections.abc import Callable
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many of 8, 4, 2 groups as leave four channels each, so that 1×1 maps are not all alike."""
    groups = next((g for g in (8, 4, 2) if channels % g == 0 and channels >= 4 * g), 1)
    return nn.GroupNorm(groups, channels)


NORMS: dict[Norm, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}
