"""The scale of features, which may be any: their channels' mean and standard deviation, learned in training."""

import torch
from torch import Tensor, nn


class ChannelScaler(nn.Module):
    """Features [n, C, H, W] to mean 0 and variance 1 per channel, and back."""

    moments: Tensor
    batches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # E x and E x², which clients may average: that gives those of all examples, where a mean of variances would
        # lack how clients differ.
        self.register_buffer("moments", torch.stack([torch.zeros(channels), torch.ones(channels)]))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled by the batches seen so far; in training mode this one is the last of them."""
        if self.training:
            new = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
            self.batches += 1
            self.moments += (new - self.moments) / self.batches  # the mean over batches; the first replaces 0 and 1
        mean, deviation = self._statistics()
        return (x - mean) / deviation

    def back(self, x: Tensor) -> Tensor:
        """From mean 0 and variance 1 to the features' own."""
        mean, deviation = self._statistics()
        return mean + deviation * x

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, square = self.moments[..., None, None]
        return mean, (square - mean.square()).clamp_min(1e-6).sqrt()  # a channel may be dead
