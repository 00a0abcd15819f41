"""The conditional variational autoencoder of GeFL.

Kang, Cha, Kang: "GeFL: Model-Agnostic Federated Learning with Generative Models", arXiv 2412.18460; after Kingma and
Welling (arXiv 1312.6114) and Sohn, Lee, Yan ("Learning Structured Output Representation using Deep Conditional
Generative Models", NeurIPS 2015).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.generator import Generator, GeneratorNetwork, check_maps
from genfed.generators.strided_conv import StridedConv4, TransposedConv4
from genfed.privacy.per_example_gradients import per_example_parameter
from genfed.training.fit import Objective
from genfed.training.normalization import NORMS, Norm

PUBLISHED_BATCH = 64


@settings
class CVAE(Generator):
    """A conditional variational autoencoder for images from 8×8 to 64×64, samples in [−1, 1], or for feature maps."""

    width: int = Field(default=64, ge=1)
    """Channels after the first halving; each further halving doubles them, up to 16 times this width."""
    size: int | None = Field(default=None, ge=8, le=64)
    """Shorter side, in pixels, of the images that the network works on: images are shrunk to it before they are
    encoded, and what is decoded is enlarged to their size (both bilinear). The loss weighs the error as if the images
    had as few pixels. A small size saves time and bytes where images have no finer detail. None: the images' own size,
    as in the paper."""
    latent_dim: int = Field(default=16, ge=1)
    """Dimension of an image's code; the paper has 16 for MNIST and 50 for CIFAR10."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of Adam."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Weight decay on the scale of the paper, whose losses are sums over a batch of 64; 0: none."""
    norm: Norm = "batch"
    """Normalization: "batch", as in the paper, or "group", where no image's code depends on other images, as
    differential privacy requires."""
    keep_encoder: bool = False
    """True: the layers that encode images (encoder, label planes, code layer) stay with the client, so uploads are
    smaller. False: they are averaged too, as in the paper."""

    def new(self, task: Task, rng: torch.Generator) -> "CVAENetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the task is a table, its images are not of 8×8 to 64×64, or they are smaller than `size`.
        """
        check_maps("cvae", task, 8 if task.kind == "image" else 1)
        if self.size is not None and self.size > min(task.shape[1:]):
            _, height, width = task.shape
            allowed = f"allowed is at most their shorter side, {min(height, width)}"
            raise GenfedError(f"generator cvae: size = {self.size}, but the images have {height}×{width}; {allowed}")
        with seeded(rng):
            return CVAENetwork(task, self)


class CVAENetwork(GeneratorNetwork):
    """The CVAE's encoder and decoder. Maps are halved, at least once, until the shorter side is 1: five times from
    32×32, as in the paper.
    """

    def __init__(self, task: Task, config: CVAE) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, task.shape, len(task.classes)
        self.positive = task.kind == "features"  # features are the output of a ReLU
        channels, *whole = task.shape
        sides = [side if config.size is None else round(side * config.size / min(whole)) for side in whole]
        self.inner = (sides[0], sides[1])
        halvings = max(1, math.ceil(math.log2(min(sides))))
        height, width = (-(-side // 2**halvings) * 2**halvings for side in sides)
        widths = [config.width * min(2**i, 16) for i in range(halvings)]
        self.deepest = (widths[-1], height >> halvings, width >> halvings)
        self.padding = (0, width - sides[1], 0, height - sides[0])

        self.planes = nn.Parameter(torch.empty(self.classes, 1, height, width))
        nn.init.uniform_(self.planes, -(self.classes**-0.5), self.classes**-0.5)
        norm, inplace = NORMS[config.norm], config.norm == "batch"  # Opacus's hooks allow no change in place
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level, outer in enumerate(widths):
            wide = (height >> level, width >> level)
            below = widths[level - 1] if level else channels + 1
            # No biases: the norm that follows would subtract them.
            down += [StridedConv4(below, outer, wide), norm(outer), nn.ReLU(inplace)]
            if level:
                up = [TransposedConv4(below, outer, wide), norm(below), nn.ReLU(inplace), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.code = nn.Linear(math.prod(self.deepest), 2 * config.latent_dim)
        self.start = nn.Linear(config.latent_dim + self.classes, math.prod(self.deepest))
        self.decoder = nn.Sequential(
            nn.Unflatten(1, self.deepest), *up, TransposedConv4(channels, widths[0], (height, width))
        )
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes images [n, C, H, W] and labels [n]: mean and log-variance of the code, each [n, latent]."""
        seen = torch.cat([F.pad(_resize(x, self.inner), self.padding), self._select_planes(y)], 1)
        mean, log_variance = self.code(self.encoder(seen)).float().chunk(2, 1)
        return mean, log_variance

    def _select_planes(self, y: Tensor) -> Tensor:
        planes = per_example_parameter(self.planes, len(y))
        return planes[y] if planes.dim() == 4 else planes[torch.arange(len(y), device=y.device), y]

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Decodes codes [n, latent] and labels [n] to images [n, C, H, W] in [−1, 1] (features: at least 0)."""
        x = self.decoder(self.start(torch.cat([z, F.one_hot(y, self.classes)], 1)))
        x = x[..., : self.inner[0], : self.inner[1]].float() + per_example_parameter(self.bias, len(y))
        return _resize(torch.relu(x) if self.positive else torch.tanh(x), self.shape[1:])

    def loss(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the squared error summed over the image, by as many pixels as the network works on, + KL(code ‖
        N(0, 1)), per example [n].
        """
        mean, log_variance = self.encode(x, y)
        noise = torch.randn(mean.shape, generator=rng).to(x.device)
        z = mean + noise * torch.exp(log_variance / 2)
        error = (self.decode(z, y) - x).square().flatten(1).sum(1)
        error = error * (math.prod(self.inner) / math.prod(self.shape[1:]))
        return error + (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2

    def objectives(self) -> Sequence[Objective]:
        # differs from the paper: its loss is the batch's sum, ours the mean. This changes nothing for Adam except the
        # decay that is added to the gradient, so the decay is divided by the batch size too.
        decay = self.config.weight_decay / PUBLISHED_BATCH
        adam = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, weight_decay=decay, fused=True)
        return [Objective(self.loss, adam, network=self)]

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        return self.sample_from_noise(self.decode, self.config.latent_dim, y, rng)

    def is_uploaded(self, name: str) -> bool:
        return self.is_decoder_weight(name) or not self.config.keep_encoder

    def is_decoder_weight(self, name: str) -> bool:
        """Returns whether `decode` uses the state-dict entry `name`."""
        return name.startswith(("start.", "decoder.")) or name == "bias"


def _resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Returns maps [n, C, H, W] of another height and width, bilinear; as they are, if they have these sides."""
    return x if list(x.shape[2:]) == list(sides) else F.interpolate(x, list(sides), mode="bilinear", antialias=True)
