"""A conditional variational autoencoder of series: convolutions along time, after Kingma and Welling (arXiv 1312.6114)
and Sohn, Lee, Yan ("Learning Structured Output Representation using Deep Conditional Generative Models", NeurIPS 2015),
with learnt deviations of what is decoded, after Rybkin, Daniilidis, Levine ("Simple and Effective VAE Training with
Calibrated Decoders", ICML 2021, arXiv 2006.13202).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.generator import Generator, GeneratorNetwork
from genfed.generators.series_shape import check_windows
from genfed.privacy.per_example_gradients import per_example_parameter
from genfed.training.fit import Objective
from genfed.training.normalization import group_norm


@settings
class SeriesVAE(Generator):
    """A conditional variational autoencoder for series of eight steps or more. A sample is what is decoded, plus noise
    with the learnt deviation of its class and channel.
    """

    width: int = Field(default=32, ge=4, multiple_of=4)
    """Channels after the first halving of the length; each further halving doubles them."""
    halvings: int = Field(default=3, ge=1, le=6)
    """Number of times that the length is halved; fewer for short windows."""
    latent_dim: int = Field(default=32, ge=1)
    """Dimension of a window's code."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of Adam."""

    def new(self, task: Task, rng: torch.Generator) -> "SeriesVAENetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the examples are no series of eight steps or more.
        """
        check_windows("series_vae", task)
        with seeded(rng):
            return SeriesVAENetwork(task, self)


class SeriesVAENetwork(GeneratorNetwork):
    """The encoder, the decoder, and the decoder's deviations. GroupNorm uses no statistics of other examples."""

    def __init__(self, task: Task, config: SeriesVAE) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, task.shape, len(task.classes)
        channels, steps = task.shape
        halvings = min(config.halvings, int(math.log2(steps)) - 1)
        whole = math.ceil(steps / 2**halvings) * 2**halvings
        self.padding = (0, whole - steps)
        widths = [config.width * 2**i for i in range(halvings)]
        deepest = (widths[-1], whole >> halvings)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level, outer in enumerate(widths):
            inner = widths[level - 1] if level else channels + self.classes
            down += [nn.Conv1d(inner, outer, 4, 2, 1), group_norm(outer), nn.ReLU()]
            if level:
                up = [nn.ConvTranspose1d(outer, inner, 4, 2, 1), group_norm(inner), nn.ReLU(), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(deepest), 2 * config.latent_dim))
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_dim + self.classes, math.prod(deepest)),
            nn.ReLU(),
            nn.Unflatten(1, deepest),
            *up,
            nn.ConvTranspose1d(widths[0], channels, 4, 2, 1),
        )
        self.log_deviation = nn.Parameter(torch.zeros(self.classes, channels, 1))

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes windows [n, C, T] and labels [n]: mean and log-variance of the code, each [n, latent]."""
        planes = F.one_hot(y, self.classes)[:, :, None].expand(-1, -1, x.shape[2]).to(x)
        mean, log_variance = self.encoder(F.pad(torch.cat([x, planes], 1), self.padding)).float().chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Decodes codes [n, latent] and labels [n] to the means of windows [n, C, T]."""
        means: Tensor = self.decoder(torch.cat([z, F.one_hot(y, self.classes)], 1))
        return means[..., : self.shape[1]].float()

    def _log_deviations(self, y: Tensor) -> Tensor:
        """Returns the logarithms of the deviations [n, C, 1] of windows with labels [n]."""
        each = per_example_parameter(self.log_deviation, len(y))
        return each[y] if each.dim() == 3 else each[torch.arange(len(y), device=y.device), y]

    def loss(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns −log p(x | code, y) + KL(code ‖ N(0, 1)) per example [n], up to a constant."""
        mean, log_variance = self.encode(x, y)
        z = mean + torch.randn(mean.shape, generator=rng).to(x.device) * torch.exp(log_variance / 2)
        log_deviation = self._log_deviations(y)
        error = ((x - self.decode(z, y)) * torch.exp(-log_deviation)).square() / 2 + log_deviation
        return error.flatten(1).sum(1) + (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2

    def objectives(self) -> Sequence[Objective]:
        adam = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        return [Objective(self.loss, adam, network=self)]

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        latent = self.config.latent_dim
        return self.sample_from_noise(self._draw, latent + math.prod(self.shape), y, rng)

    def _draw(self, noise: Tensor, y: Tensor) -> Tensor:
        z, rest = noise.tensor_split([self.config.latent_dim], 1)
        return self.decode(z, y) + self._log_deviations(y).exp() * rest.view(-1, *self.shape)
