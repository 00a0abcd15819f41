"""The conditional DCGAN of GeFL.

Kang, Cha, Kang: "GeFL: Model-Agnostic Federated Learning with Generative Models", arXiv 2412.18460; after Radford,
Metz, Chintala (arXiv 1511.06434) and Mirza, Osindero ("Conditional Generative Adversarial Nets", arXiv 1411.1784).
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.generator import Generator, GeneratorNetwork, check_maps
from genfed.generators.strided_conv import StridedConv4, TransposedConv4
from genfed.training.fit import Objective
from genfed.training.normalization import NORMS, Norm


class Bias(nn.Module):
    """A bias per channel of maps [n, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias

    def example_gradients(self, x: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        """Returns each example's gradient, for DP-SGD."""
        return {self.bias: gradient.sum((2, 3), keepdim=True)}


@settings
class DCGAN(Generator):
    """A conditional GAN for images from 8×8 to 64×64, samples in [−1, 1], or for feature maps."""

    width: int = Field(default=128, ge=2)
    """Channels of the generator before its last layer (d); each halving of the map doubles them."""
    discriminator_width: int = Field(default=128, ge=2)
    """Channels of the discriminator after its first layer; the paper has 128 for grey images, 256 and 64 for
    CIFAR10."""
    latent_dim: int = Field(default=100, ge=1)
    """Dimension of the noise."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Learning rate of both Adam optimizers (betas 0.5 and 0.999)."""
    norm: Norm = "batch"
    """Normalization: "batch", as in the paper, or "group", where no example's maps depend on other examples, as
    differential privacy requires."""
    keep_discriminator: bool = False
    """True: the discriminator stays with the client, so uploads are smaller. False: it is averaged too, as in the
    paper."""

    def new(self, task: Task, rng: torch.Generator) -> "DCGANNetwork":
        """Returns a network with weights initialized from `rng`.

        Raises:
            GenfedError: the task is a table, or its images are not of 8×8 to 64×64.
        """
        check_maps("dcgan", task, 8 if task.kind == "image" else 1)
        with seeded(rng):
            return DCGANNetwork(task, self)


class DCGANNetwork(GeneratorNetwork):
    """The GAN's generator and discriminator. 4×4 maps are doubled, at least once, until the image fits: three times
    for 32×32.
    """

    def __init__(self, task: Task, config: DCGAN) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, task.shape, len(task.classes)
        self.positive = task.kind == "features"  # features are the output of a ReLU
        channels, norm = task.shape[0], NORMS[config.norm]
        inplace = config.norm == "batch"  # Opacus's hooks allow no change in place
        doublings = max(1, math.ceil(math.log2(max(task.shape[1:]) / 4)))
        self.side = 4 * 2**doublings
        widths = [config.width * 2**i for i in reversed(range(doublings))]
        sides = [(8 * 2**i, 8 * 2**i) for i in range(doublings)]
        half = widths[0] // 2
        self.noise_to_map = nn.Linear(config.latent_dim, 16 * half, bias=False)
        self.label_to_map = nn.Linear(self.classes, 16 * (widths[0] - half), bias=False)
        up: list[nn.Module] = [nn.Unflatten(1, (widths[0], 4, 4)), norm(widths[0]), nn.ReLU(inplace)]
        for (outer, inner), wide in zip(itertools.pairwise(widths), sides, strict=False):
            up += [TransposedConv4(inner, outer, wide), norm(inner), nn.ReLU(inplace)]
        self.generator = nn.Sequential(*up, TransposedConv4(channels, widths[-1], sides[-1]), Bias(channels))
        d = config.discriminator_width
        self.see_image = nn.Sequential(StridedConv4(channels, d // 2, sides[-1]), Bias(d // 2))
        self.see_label = nn.Sequential(StridedConv4(self.classes, d - d // 2, sides[-1]), Bias(d - d // 2))
        down: list[nn.Module] = [nn.LeakyReLU(0.2, inplace)]
        for i, wide in enumerate(reversed(sides[:-1])):
            outer = d * 2 ** (i + 1)
            down += [StridedConv4(d * 2**i, outer, wide), norm(outer), nn.LeakyReLU(0.2, inplace)]
        if doublings == 1:  # else image and label would only be added, and the label would have no effect
            down += [nn.Conv2d(d, d, 3, 1, 1, bias=False), norm(d), nn.LeakyReLU(0.2, inplace)]
        self.discriminator = nn.Sequential(*down, nn.Flatten(), nn.Linear(16 * d * 2 ** (doublings - 1), 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | StridedConv4):
                nn.init.normal_(module.weight, 0, 0.02)

    def generate(self, z: Tensor, y: Tensor) -> Tensor:
        """Generates images [n, C, H, W] from noise [n, latent] and labels [n]."""
        label = F.one_hot(y, self.classes).float()
        x: Tensor = self.generator(torch.cat([self.noise_to_map(z), self.label_to_map(label)], 1))
        x = x[..., : self.shape[1], : self.shape[2]].float()
        return torch.relu(x) if self.positive else torch.tanh(x)

    def discriminate(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the logit [n] of the probability that images [n, C, H, W] of the labels [n] are real."""
        x = F.pad(x, (0, self.side - self.shape[2], 0, self.side - self.shape[1]))
        planes = torch.eye(self.classes, device=x.device)[..., None, None].expand(-1, -1, self.side, self.side)
        # A label is a plane of ones. Its maps are computed once per class, or under DP-SGD per example, so that each
        # example has its own gradient.
        labels = self.see_label(planes)[y] if self.config.norm == "batch" else self.see_label(planes[y])
        logits: Tensor = self.discriminator(torch.cat([self.see_image(x), labels], 1))
        return logits.flatten()

    def objectives(self) -> Sequence[Objective]:
        of_discriminator = [p for n, p in self.named_parameters() if not self._is_generator_weight(n)]
        of_generator = [p for n, p in self.named_parameters() if self._is_generator_weight(n)]

        def draw_fakes(y: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            z = torch.randn(len(y), self.config.latent_dim, generator=rng).to(y.device)
            labels = torch.randint(self.classes, (len(y),), generator=rng).to(y.device)
            return self.generate(z, labels), labels

        def discriminator_loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            with torch.no_grad():  # the discriminator's step needs no gradients of the generator
                fake, labels = draw_fakes(y, rng)
            return F.softplus(-self.discriminate(x, y)) + F.softplus(
                self.discriminate(fake, labels)
            )  # BCE of logits, 1 and 0

        def generator_loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            for p in of_discriminator:
                p.requires_grad_(False)  # and the generator's step none of the discriminator
            try:
                fake, labels = draw_fakes(y, rng)
                return F.softplus(-self.discriminate(fake, labels))
            finally:
                for p in of_discriminator:
                    p.requires_grad_(True)

        def new_adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True)

        discriminator = nn.ModuleList([self.see_image, self.see_label, self.discriminator])
        return [
            Objective(discriminator_loss, new_adam(of_discriminator), network=discriminator),
            Objective(generator_loss, new_adam(of_generator), sees_data=False),
        ]

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        return self.sample_from_noise(self.generate, self.config.latent_dim, y, rng)

    def is_uploaded(self, name: str) -> bool:
        return self._is_generator_weight(name) or not self.config.keep_discriminator

    def _is_generator_weight(self, name: str) -> bool:
        return name.startswith(("noise_to_map.", "label_to_map.", "generator."))
