"""The privacy guarantee of a finished trial."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["example", "client"]


@dataclass(frozen=True)
class PrivacyGuarantee:
    """Differential privacy of every single example of a client, or of every client, by what clients were charged; see
    docs/privacy.md.
    """

    epsilon: float | None
    """ε of the client that spent most; None: ∞, without noise."""
    target: float | None
    """The budget; None: there was none."""
    delta: float
    accountant: str
    """"prv" or "rdp"; Opacus's."""
    noise_multiplier: tuple[float, float]
    """Least and most of all clients."""
    max_grad_norm: float
    """Norm that gradients of examples, or updates of clients, are cut to; the first one, where it adapts."""
    steps: int
    """Of DP-SGD, or rounds, by the client that took most."""
    reproducible_noise: bool = False
    """Whether noise came from the run's seed: then nothing is private."""
    pooled: bool = False
    """Whether ε is that of one of several models, each trained on all examples."""
    mechanism: str = "DP-SGD: Gaussian noise on cut gradients of Poisson-sampled batches"
    level: Level = "example"
    """What ε is of."""
    distributed: bool = False
    """Whether clients add the noise themselves, and the server sees a noised sum alone."""
