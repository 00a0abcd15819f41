"""A generator of representations, and what it learns from in place of data: FedGen's (arXiv 2105.10056)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.rng import seeded
from genfed.core.task import Weights


class RepresentationGenerator(nn.Module):
    """(noise [n, noise], y [n]) → representations [n, dimension], none below 0."""

    # differs from the paper: its code has BatchNorm after the first layer; no statistics are sent here.

    def __init__(self, noise: int, classes: int, hidden: int, dimension: int, rng: torch.Generator) -> None:
        super().__init__()
        self.noise, self.classes = noise, classes
        with seeded(rng):
            self.layers = nn.Sequential(
                nn.Linear(noise + classes, hidden), nn.ReLU(), nn.Linear(hidden, dimension), nn.ReLU()
            )

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.layers(torch.cat([noise, F.one_hot(y, self.classes)], 1))
        return z.float()

    def draw(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """One representation per label y [n], without gradients; the noise comes from `rng` (CPU)."""
        with torch.no_grad():
            z: Tensor = self(torch.randn(len(y), self.noise, generator=rng).to(y.device), y)
        return z


def diversity(noise: Tensor, z: Tensor) -> Tensor:
    """The diversity loss, a scalar: exp(−mean over all pairs of mean (ε_i − ε_j)² · mean |z_i − z_j|). It is 1 if all z
    are alike, and less the more they differ where their noise does.
    """
    apart = (noise[:, None] - noise).square().mean(2) * (z[:, None] - z).abs().mean(2)
    return torch.exp(-apart.mean())


def ensemble(headers: Sequence[Weights], counts: Tensor, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The headers as one: (z [n, dimension], y [n]) → logits [n, classes], Σ_k α_k^y · header_k(z), where α_k^y is
    client k's share of the examples of class y; counts are [clients, classes].
    """
    # differs from the paper: Eq. 4 has 1/K in place of α. α is from its code, which has it on the clients' losses.
    weight, bias = (torch.stack([header[name] for header in headers]).to(device) for name in ("weight", "bias"))
    shares = (counts / counts.sum(0).clamp(min=1)).T.to(device)

    def vote(z: Tensor, y: Tensor) -> Tensor:
        each = torch.einsum("nd,kcd->nkc", z, weight) + bias
        return (shares[y][:, :, None] * each).sum(1)

    return vote
