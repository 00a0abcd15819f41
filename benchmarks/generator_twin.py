"""Our CVAE beside a plain PyTorch twin of the published arithmetic: CPU time per training step and per 64 images.

    python benchmarks/generator_twin.py [--pairs 15] [--precision bfloat16]

The twin has 4×4 kernels throughout (22.4M parameters), a plane for the label, sums for losses and an unfused Adam, as
the code published with GeFL (Kang, Cha, Kang; arXiv 2412.18460). Steps of the two alternate in one process and one
thread, so what else the machine does falls on both; CPU time is compared, pair by pair.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.method import Task
from genfed.generators.cvae import CVAE
from genfed.learn.fit import step

BATCH = 64


class Twin(nn.Module):
    """CVAE32 with 4×4 stride-2 kernels."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 64, latent: int = 16) -> None:
        super().__init__()
        w = [width * 2**i for i in range(5)]
        self.classes, self.latent = classes, latent
        self.plane = nn.Linear(classes, 32 * 32)
        down: list[nn.Module] = []
        for a, b in zip([channels + 1, *w[:-1]], w, strict=True):
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(w[-1], latent), nn.Linear(w[-1], latent)
        self.start = nn.Linear(latent + classes, w[-1])
        up: list[nn.Module] = []
        for a, b in zip(w[:0:-1], w[-2::-1], strict=True):
            up += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.ConvTranspose2d(w[0], channels, 4, 2, 1), nn.Tanh())

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Images [n, C, 32, 32] of codes [n, latent] and labels [n]."""
        onehot = F.one_hot(y, self.classes).float()
        image: Tensor = self.decoder(self.start(torch.cat([z, onehot], 1))[..., None, None])
        return image

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared error and KL, summed over the batch."""
        plane = self.plane(F.one_hot(y, self.classes).float()).view(-1, 1, 32, 32)
        h = self.encoder(torch.cat([x, plane], 1))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        return F.mse_loss(self.decode(z, y), x, reduction="sum") + kl


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def alternate(name: str, twin: Callable[[], object], ours: Callable[[], object], pairs: int) -> None:
    """Runs the two in turn and prints medians and the spread of the paired ratios; three pairs warm up."""
    times = [(seconds(twin), seconds(ours)) for _ in range(pairs + 3)][3:]
    ratios = sorted(a / b for a, b in times)
    theirs, mine = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    middle = statistics.median(ratios)
    print(f"{name:9} twin {theirs:6.1f} ms  ours {mine:6.1f} ms  {middle:.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})")


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description="Our CVAE beside the published arithmetic")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(BATCH, 1, 32, 32, generator=rng) * 2 - 1, torch.randint(10, (BATCH,), generator=rng)

    twin = Twin()
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3, weight_decay=1e-3, foreach=False, fused=False)
    ours = CVAE().new(Task("image", (1, 32, 32), tuple("0123456789")), rng)
    (player,) = ours.players()

    def twin_step() -> None:
        adam.zero_grad()
        twin.loss(x, y).backward()  # type: ignore[no-untyped-call]
        adam.step()

    def twin_sample() -> None:
        twin.eval()
        with torch.no_grad():
            twin.decode(torch.randn(BATCH, twin.latent), y)
        twin.train()

    alternate("training", twin_step, lambda: step(player, x, y, rng, options.precision), options.pairs)
    alternate("sampling", twin_sample, lambda: ours.sample(y, rng), options.pairs)


if __name__ == "__main__":
    main()
