"""Standardization of features by their channels' mean and standard deviation, learned in training."""

import torch
from torch import Tensor, nn


class ChannelScaler(nn.Module):
    """Scaling of features [n, C, H, W] to mean 0 and variance 1 per channel."""

    moments: Tensor
    batches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # E x and E x²: their mean over clients is that of all examples, while a mean of variances would ignore the
        # differences between clients.
        self.register_buffer("moments", torch.stack([torch.zeros(channels), torch.ones(channels)]))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scales x by the statistics of all batches so far, which in training mode include this one."""
        if self.training:
            new = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
            self.batches += 1
            self.moments += (new - self.moments) / self.batches  # the mean over batches; the first replaces 0 and 1
        mean, deviation = self._compute_statistics()
        return (x - mean) / deviation

    def unscale(self, x: Tensor) -> Tensor:
        """Scales x from mean 0 and variance 1 back to the features' mean and variance."""
        mean, deviation = self._compute_statistics()
        return mean + deviation * x

    def _compute_statistics(self) -> tuple[Tensor, Tensor]:
        mean, square = self.moments[..., None, None]
        return mean, (square - mean.square()).clamp_min(1e-6).sqrt()  # a channel may be dead
