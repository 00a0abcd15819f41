"""Networks that keep single precision where a run asks for less."""

import torch
from torch import Tensor, nn


class FullPrecision(nn.Sequential):
    """Networks one after the other, outside any autocast to bfloat16: a head in closed form was computed for features
    in single precision, and no training would adapt it to others.

    >>> layer = FullPrecision(nn.Linear(2, 1))
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     layer(torch.zeros(1, 2)).dtype
    torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the last network for x [n, …]."""
        with torch.autocast(x.device.type, enabled=False):
            for network in self:
                x = network(x)
        return x
