"""The privacy guarantee of a finished trial."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["example", "client"]


@dataclass(frozen=True)
class PrivacyGuarantee:
    """Differential privacy of every example of a client, or of every client, computed from what clients were charged;
    see docs/privacy.md.
    """

    epsilon: float | None
    """ε of the client that spent most. None: ∞, since there was no noise."""
    target: float | None
    """Privacy budget (ε). None: no budget was set."""
    delta: float
    """Probability that the guarantee ε fails (δ)."""
    accountant: str
    """Accountant that ε comes from: "prv" or "rdp" of Opacus, or "exact"."""
    noise_multiplier: tuple[float, float]
    """Smallest and largest noise multiplier of all clients."""
    max_grad_norm: float
    """L2 norm to which gradients of examples, or updates of clients, are clipped. With adaptive clipping: the norm of
    the first round."""
    steps: int
    """Largest number of DP-SGD steps of a client; under client-level privacy, of rounds."""
    reproducible_noise: bool = False
    """Whether the noise came from the run's seed. True: nothing is private."""
    pooled: bool = False
    """Whether ε is that of one of several models, each trained on all examples."""
    mechanism: str = "DP-SGD: Gaussian noise on clipped gradients of Poisson-sampled batches"
    """Text that names the mechanism."""
    level: Level = "example"
    """Unit that ε protects."""
    distributed: bool = False
    """Whether clients add the noise themselves, so that the server sees only noisy sums."""
    clipped: str = ""
    """What is clipped to the norm, under "dp_sum". Empty: gradients or updates."""
    accountant_note: str = ""
    """Reason why ε does not come from the accountant of the settings. Empty: it does."""

    @property
    def is_void(self) -> bool:
        """Whether it says nothing: only uploads get noise, and no client uploads anything."""
        return not self.steps and (self.level == "client" or bool(self.clipped))
