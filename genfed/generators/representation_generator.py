"""FedGen's generator of representations and its losses, which need no data (arXiv 2105.10056)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.rng import seeded
from genfed.core.task import Weights


class RepresentationGenerator(nn.Module):
    """A conditional generator: (noise [n, noise], y [n]) → representations [n, dimension], at least 0.

    Args:
        noise: The dimension of the noise.
        classes: The number of classes.
        hidden: The width of the hidden layer.
        dimension: The dimension of a representation.
        rng: The source of the initial weights.
    """

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

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """Generates one representation per label y [n], without gradients; the noise comes from `rng` (CPU)."""
        with torch.no_grad():
            z: Tensor = self(torch.randn(len(y), self.noise, generator=rng).to(y.device), y)
        return z


def diversity_loss(noise: Tensor, z: Tensor) -> Tensor:
    """Returns the diversity loss, a scalar: exp(−mean over all pairs of mean (ε_i − ε_j)² · mean |z_i − z_j|).

    It is 1 if all representations are equal, and falls the more they differ where their noise differs.

    Args:
        noise: The noise ε [n, noise].
        z: The representations [n, dimension].
    """
    distances = (noise[:, None] - noise).square().mean(2) * (z[:, None] - z).abs().mean(2)
    return torch.exp(-distances.mean())


def combine_headers(
    headers: Sequence[Weights], counts: Tensor, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Combines the clients' headers: (z [n, dimension], y [n]) → logits [n, classes], Σ_k α_k^y · header_k(z).

    α_k^y is client k's share of the examples of class y.

    Args:
        headers: The weight and bias of each client's linear header.
        counts: The numbers of examples [clients, classes].
        device: Where the headers are computed.
    """
    # differs from the paper: Eq. 4 has 1/K instead of α. α is from its code, which weights the clients' losses by it.
    weight, bias = (torch.stack([header[name] for header in headers]).to(device) for name in ("weight", "bias"))
    shares = (counts / counts.sum(0).clamp(min=1)).T.to(device)

    def vote(z: Tensor, y: Tensor) -> Tensor:
        by_client = torch.einsum("nd,kcd->nkc", z, weight) + bias
        return (shares[y][:, :, None] * by_client).sum(1)

    return vote
