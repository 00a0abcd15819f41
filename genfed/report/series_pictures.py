"""Small line plots of windows of series, as images."""

import torch
import torch.nn.functional as F
from torch import Tensor

HEIGHT, WIDTH = 48, 64
"""Pixels of a plot; windows of fewer steps have fewer columns."""
RANGE = 4.0
"""Deviations from the mean at the upper and lower edge."""
_COLORS = ((59, 130, 214), (224, 123, 26), (42, 157, 110), (155, 107, 211), (214, 69, 80), (42, 159, 176))
"""Colours of the channels, in turn."""


def draw_windows(x: Tensor) -> Tensor:
    """Returns line plots of windows [n, C, T], each channel scaled to mean 0 and deviation 1, a line per channel: uint8
    [n, 3, 48, width].
    """
    lines = F.interpolate(x.float().cpu(), min(x.shape[2], WIDTH), mode="linear", align_corners=True)
    rows = ((RANGE - lines) / (2 * RANGE) * (HEIGHT - 1)).round().clamp(0, HEIGHT - 1)
    before = torch.cat([rows[..., :1], rows[..., :-1]], 2)  # a column reaches from the row of the one before it
    height = torch.arange(HEIGHT)[:, None]
    first, last = (each[:, :, None] for each in (torch.minimum(rows, before), torch.maximum(rows, before)))
    inked = (height >= first) & (height <= last)  # [n, C, H, W]
    picture = torch.full((len(x), 3, HEIGHT, lines.shape[2]), 255, dtype=torch.uint8)
    for channel in range(x.shape[1]):
        color = torch.tensor(_COLORS[channel % len(_COLORS)], dtype=torch.uint8)[:, None, None]
        picture = torch.where(inked[:, channel, None], color, picture)
    return picture
