"""Our generators beside plain PyTorch twins of the published arithmetic: CPU time per training step and per 64 samples.

    python benchmarks/generator_twin.py [--pairs 15] [--precision bfloat16] [cvae dcgan cvae-f dcgan-f]

The twins have 4×4 kernels throughout, a plane per label, sums for the CVAE's losses and an unfused Adam, as the code
published with GeFL (Kang, Cha, Kang; arXiv 2412.18460); the DCGAN's discriminator step goes back into its generator,
and the generator's step computes the discriminator's gradients. Steps of the two alternate in one process and one
thread, so what else the machine does falls on both; CPU time is compared, pair by pair.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import cpu_seconds
from genfed.core.task import Task
from genfed.generators.cvae import CVAE
from genfed.generators.dcgan import DCGAN
from genfed.generators.generator import Generator
from genfed.training.fit import train_step

BATCH, CLASSES = 64, 10
IMAGES = Task("image", (1, 32, 32), tuple("0123456789"))
FEATURES = Task("features", (3, 16, 16), tuple("0123456789"))


class Twin(Protocol):
    """The published arithmetic of one generator."""

    def learner(self) -> Callable[[Tensor, Tensor], None]:
        """A new optimizer, and what takes one step with it on a batch."""

    def draw(self, y: Tensor) -> Tensor:
        """One sample per label, without gradients."""


class CVAETwin(nn.Module):
    """Halves 32×32 images five times, features of 16×16 four times."""

    def __init__(self, task: Task, width: int = 64, latent: int = 16) -> None:
        super().__init__()
        channels, self.side, _ = task.shape
        self.latent, positive = latent, task.kind == "features"
        w = [width * 2**i for i in range(self.side.bit_length() - 1)]
        self.plane = nn.Linear(CLASSES, self.side**2)
        down: list[nn.Module] = []
        for a, b in zip([channels + 1, *w[:-1]], w, strict=True):
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(w[-1], latent), nn.Linear(w[-1], latent)
        self.start = nn.Linear(latent + CLASSES, w[-1])
        up: list[nn.Module] = []
        for a, b in zip(w[:0:-1], w[-2::-1], strict=True):
            up += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        last = nn.ReLU() if positive else nn.Tanh()
        self.decoder = nn.Sequential(*up, nn.ConvTranspose2d(w[0], channels, 4, 2, 1), last)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        onehot = F.one_hot(y, CLASSES).float()
        x: Tensor = self.decoder(self.start(torch.cat([z, onehot], 1))[..., None, None])
        return x

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared error and KL, summed over the batch."""
        plane = self.plane(F.one_hot(y, CLASSES).float()).view(-1, 1, self.side, self.side)
        h = self.encoder(torch.cat([x, plane], 1))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        return F.mse_loss(self.decode(z, y), x, reduction="sum") + kl

    def learner(self) -> Callable[[Tensor, Tensor], None]:
        adam = torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-3, foreach=False, fused=False)

        def learn(x: Tensor, y: Tensor) -> None:
            adam.zero_grad()
            self.loss(x, y).backward()  # type: ignore[no-untyped-call]
            adam.step()

        return learn

    @torch.no_grad()
    def draw(self, y: Tensor) -> Tensor:
        return self.eval().decode(torch.randn(len(y), self.latent), y)


class DCGANTwin(nn.Module):
    """Doubles 4×4 maps three times to 32×32 images, twice to features of 16×16."""

    def __init__(self, task: Task, width: int = 128, latent: int = 100) -> None:
        super().__init__()
        channels, self.side, _ = task.shape
        self.latent, positive = latent, task.kind == "features"
        w = [width * 2**i for i in range(self.side.bit_length() - 3)]  # 128, 256, 512
        self.noise = nn.ConvTranspose2d(latent, w[-1] // 2, 4, 1, 0)
        self.label = nn.ConvTranspose2d(CLASSES, w[-1] // 2, 4, 1, 0)
        up: list[nn.Module] = [nn.BatchNorm2d(w[-1]), nn.ReLU()]
        for a, b in zip(w[:0:-1], w[-2::-1], strict=True):
            up += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        last = nn.ReLU() if positive else nn.Tanh()
        self.up = nn.Sequential(*up, nn.ConvTranspose2d(w[0], channels, 4, 2, 1), last)
        self.see_image = nn.Conv2d(channels, width // 2, 4, 2, 1)
        self.see_label = nn.Conv2d(CLASSES, width // 2, 4, 2, 1)
        down: list[nn.Module] = [nn.LeakyReLU(0.2)]
        for a, b in itertools.pairwise(w):
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        self.down = nn.Sequential(*down, nn.Conv2d(w[-1], 1, 4, 1, 0), nn.Sigmoid())

    def make(self, y: Tensor) -> Tensor:
        z, onehot = torch.randn(len(y), self.latent, 1, 1), F.one_hot(y, CLASSES).float()[..., None, None]
        x: Tensor = self.up(torch.cat([self.noise(z), self.label(onehot)], 1))
        return x

    def judge(self, x: Tensor, y: Tensor) -> Tensor:
        planes = F.one_hot(y, CLASSES).float()[..., None, None].expand(-1, -1, self.side, self.side)
        score: Tensor = self.down(torch.cat([self.see_image(x), self.see_label(planes)], 1)).flatten()
        return score

    def learner(self) -> Callable[[Tensor, Tensor], None]:
        making = [*self.noise.parameters(), *self.label.parameters(), *self.up.parameters()]
        judging = [*self.see_image.parameters(), *self.see_label.parameters(), *self.down.parameters()]
        adams = [
            torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999), foreach=False, fused=False) for p in (judging, making)
        ]

        def learn(x: Tensor, y: Tensor) -> None:
            ones, zeros = torch.ones(len(y)), torch.zeros(len(y))
            labels = torch.randint(CLASSES, (len(y),))
            adams[0].zero_grad()
            real, made = self.judge(x, y), self.judge(self.make(labels), labels)
            (F.binary_cross_entropy(real, ones) + F.binary_cross_entropy(made, zeros)).backward()  # type: ignore[no-untyped-call]
            adams[0].step()
            adams[1].zero_grad()
            labels = torch.randint(CLASSES, (len(y),))
            F.binary_cross_entropy(self.judge(self.make(labels), labels), ones).backward()  # type: ignore[no-untyped-call]
            adams[1].step()

        return learn

    @torch.no_grad()
    def draw(self, y: Tensor) -> Tensor:
        return self.eval().make(y)


PAIRS: dict[str, tuple[Task, Generator, Callable[[Task], Twin]]] = {
    "cvae": (IMAGES, CVAE(), CVAETwin),
    "dcgan": (IMAGES, DCGAN(), DCGANTwin),
    "cvae-f": (FEATURES, CVAE(), CVAETwin),
    "dcgan-f": (FEATURES, DCGAN(), DCGANTwin),
}
"""What is made, ours, and its twin, by the names of the paper's tables."""


def alternate(name: str, twin: Callable[[], object], ours: Callable[[], object], pairs: int) -> None:
    """Runs the two in turn and prints medians and the spread of the paired ratios; three pairs warm up."""
    times = [(cpu_seconds(twin), cpu_seconds(ours)) for _ in range(pairs + 3)][3:]
    ratios = sorted(a / b for a, b in times)
    theirs, mine = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    middle = statistics.median(ratios)
    print(f"{name:16} twin {theirs:6.1f} ms  ours {mine:6.1f} ms  {middle:.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})")


def main() -> None:
    """Measures those that are named."""
    parser = argparse.ArgumentParser(description="Our generators beside the published arithmetic")
    parser.add_argument("names", nargs="*", choices=[*PAIRS, []], default=list(PAIRS))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        task, generator, make_twin = PAIRS[name]
        rng = torch.Generator().manual_seed(0)
        x, y = torch.rand(BATCH, *task.shape, generator=rng), torch.randint(CLASSES, (BATCH,), generator=rng)
        twin, ours = make_twin(task), generator.new(task, rng)
        learn, objectives = twin.learner(), ours.objectives()

        def train(x: Tensor = x, y: Tensor = y, objectives: object = objectives, rng: torch.Generator = rng) -> None:
            for objective in objectives:  # type: ignore[attr-defined]
                train_step(objective, x, y, rng, options.precision)

        alternate(f"{name} training", lambda: learn(x, y), train, options.pairs)  # noqa: B023
        alternate(f"{name} sampling", lambda: twin.draw(y), lambda: ours.sample(y, rng), options.pairs)  # noqa: B023


if __name__ == "__main__":
    main()
