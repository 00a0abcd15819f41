"""The settings of differential privacy: each mechanism is a kind of [privacy]."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.settings import settings

Accountant = Literal["prv", "rdp"]


@settings
class PrivacySettings:
    """The settings that every mechanism of differential privacy has."""

    kind: ClassVar[str]
    """Name of the mechanism in a config."""

    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Noise standard deviation divided by the clipping norm. 0: no noise, ε = ∞. Unset: the least noise that `epsilon`
    allows over all rounds in which a client takes part."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Privacy budget (ε) of each client over all phases and rounds of a method; a round that would exceed it is
    refused. Unset: no limit."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability that ε does not hold (δ). Choose it well below 1/n, where n is the number of a client's examples
    ("dp_sgd") or of clients ("dp_fedavg")."""
    accountant: Accountant = "prv"
    """Accountant of Opacus. "prv": privacy loss random variables, which is tight; "rdp": Rényi divergence, faster."""
    reproducible_noise: bool = False
    """True: noise and batches follow from the run's seed, for tests. Not private: any party that knows the seed can
    remove the noise."""

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon is None:
            raise GenfedError("privacy: set epsilon (the noise follows from it), noise_multiplier, or both")
        if self.noise_multiplier == 0 and self.epsilon is not None:
            raise GenfedError("privacy.noise_multiplier = 0: without noise no privacy.epsilon can be kept")


@settings
class DPSGD(PrivacySettings):
    """Differential privacy of every example: clients train by DP-SGD (Abadi et al., arXiv 1607.00133)."""

    kind: ClassVar[str] = "dp_sgd"

    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """L2 norm to which the gradient of each example is clipped (C)."""


@settings
class AdaptiveClipping:
    """A clipping norm that follows a quantile of the updates' norms, for each phase by itself (Andrew et al., arXiv
    1905.03871).
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of the updates that are not to be clipped (γ)."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Learning rate of the norm (η_C)."""
    count_noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Standard deviation of the noise on the number of updates that are not clipped (σ_b); above half the noise
    multiplier. Unset: a twentieth of the participating clients, and at least the noise multiplier."""

    # differs from the paper: that twentieth alone, of a few clients, would leave the updates no privacy at all.

    def on_count(self, noise_multiplier: float, asked: float) -> float:
        """Returns σ_b for a round of `asked` (expected) clients."""
        if noise_multiplier == 0:
            return 0.0
        return self.count_noise or max(asked / 20, noise_multiplier)

    def on_updates(self, noise_multiplier: float, asked: float) -> float:
        """Returns z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), so that updates and count cost together what z does (Theorem 1).

        Raises:
            GenfedError: the count alone would cost as much.
        """
        if noise_multiplier == 0:
            return 0.0
        count = self.on_count(noise_multiplier, asked)
        if 2 * count <= noise_multiplier:
            raise GenfedError(
                f"privacy.adaptive.count_noise = {count:g}: more than half the noise multiplier of "
                f"{noise_multiplier:.4g} is needed"
            )
        return float((noise_multiplier**-2 - (2 * count) ** -2) ** -0.5)

    def next_clip(self, clip: float, share: float) -> float:
        """Returns the next norm; the fraction `share` of the updates was not longer than `clip`."""
        return clip * math.exp(-self.rate * (share - self.quantile))


@settings
class DPFedAvg(PrivacySettings):
    """Differential privacy of every client as a whole: the server clips each client's update and adds noise to the mean
    (DP-FedAvg; McMahan et al., arXiv 1710.06963). It sees the uploads and is trusted. With [secure_aggregation] the
    clients clip and add the noise, and the server sees only noisy sums.
    """

    kind: ClassVar[str] = "dp_fedavg"

    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """L2 norm to which a client's whole update of a round is clipped (S); with `adaptive` the first norm."""
    adaptive: AdaptiveClipping | None = None
    """Clipping norm that follows a quantile of the updates' norms. Unset: the norm is constant."""
    secret_sampling: bool = False
    """True: the server draws the clients of a round in secret, each with probability `federation.client_fraction`, so
    that a round costs less privacy. False: the seed, which clients know, decides; a client pays in full for its
    rounds."""


@settings
class LifetimeBudget:
    """The privacy budget of every example of a site, over all runs in which the site takes part."""

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Budget (ε); a round that would exceed it is refused."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability that ε does not hold (δ); well below 1/n for the n examples of the site."""
    accountant: Accountant = "prv"
    """How Opacus adds up what rounds cost; "rdp" is faster, and looser."""
