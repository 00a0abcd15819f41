"""Normalization layers for maps: over the batch, or within each example."""

from collections.abc import Callable
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns GroupNorm with 8, 4, 2 or 1 groups: the most with at least four channels each, since otherwise 1×1 maps
    would become constant.
    """
    groups = next((g for g in (8, 4, 2) if channels % g == 0 and channels >= 4 * g), 1)
    return nn.GroupNorm(groups, channels)


NORMS: dict[Norm, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}
