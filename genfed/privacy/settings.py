"""Settings of differential privacy. Each mechanism is a kind of [privacy]."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.privacy import SumBounds
from genfed.core.settings import settings
from genfed.privacy.noise import LONGEST, SHORTEST, ClipNorm

Accountant = Literal["prv", "rdp", "exact"]
LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""Smallest noise multiplier above 0, and largest one."""


@settings
class PrivacySettings:
    """Settings that every mechanism of differential privacy has."""

    kind: ClassVar[str]
    """Name of the mechanism in a config."""

    noise_multiplier: Annotated[float, Field(ge=0, le=MOST_NOISE)] | None = None
    """Noise standard deviation divided by the clipping norm, from 1e-3 to 1e6. 0: no noise, ε = ∞. Unset: the smallest
    value that keeps `epsilon` over all rounds in which a client takes part."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Privacy budget (ε) of each client over all phases and rounds of a method. A round that would exceed it is
    refused. Unset: no limit."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability that the guarantee ε fails (δ). It should be well below 1/n, where n is the number of a client's
    examples ("dp_sgd"), of all examples ("dp_sum") or of clients ("dp_fedavg")."""
    accountant: Accountant = "prv"
    """Accountant of Opacus. "prv" uses privacy loss random variables and is tight. "rdp" uses Rényi divergence: it is
    faster, but gives a larger ε. It replaces "prv" where that would need more than 1 GiB of memory or is not reliable
    (a large ε, very many steps, a tiny δ); a warning before training and the report say so. "exact" is the formula of
    the Gaussian mechanism, for noise on sums without sampling ("dp_sum", "dp_fedavg"); elsewhere "prv" replaces it."""
    reproducible_noise: bool = False
    """Whether noise and batches follow from the run's seed, for tests. True is not private: any party that knows the
    seed can remove the noise."""

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon is None:
            raise GenfedError("privacy: set epsilon (the noise is computed from it), noise_multiplier, or both")
        if self.noise_multiplier is not None and 0 < self.noise_multiplier < LEAST_NOISE:
            raise GenfedError(f"privacy.noise_multiplier = {self.noise_multiplier:g}: 0, or {LEAST_NOISE:g} and more")
        if self.noise_multiplier == 0 and self.epsilon is not None:
            raise GenfedError("privacy.noise_multiplier = 0: without noise no privacy.epsilon can be kept")


@settings
class DPSGD(PrivacySettings):
    """Differential privacy of every example. Clients train by DP-SGD (Abadi et al., arXiv 1607.00133)."""

    kind: ClassVar[str] = "dp_sgd"

    max_grad_norm: ClipNorm = 1.0
    """Maximum L2 norm of an example's gradient (C); longer gradients are clipped to it. From 1e-6 to 1e9."""


@settings
class DPSum(PrivacySettings):
    """Differential privacy of every example, for methods whose clients upload sums over examples. What an example adds
    to the sums (its count, its features and their products together) is bounded, and the sums of all clients get
    Gaussian noise once. The server adds it, sees the uploads and is trusted. With [secure_aggregation] the clients add
    the noise themselves, and the server sees only noisy sums.
    """

    kind: ClassVar[str] = "dp_sum"
    secret_sampling: ClassVar[bool] = False

    accountant: Accountant = "exact"
    """Accountant: "exact" is the formula of the Gaussian mechanism (Balle and Wang, arXiv 1805.06530); "prv" and "rdp",
    of Opacus, give a larger ε."""
    clip_norm: Annotated[float, Field(ge=1e-2, le=1e4)] | None = None
    """Maximum L2 norm of an example's features; longer rows are clipped to it. Unset: √d for d features, since encoders
    give features of mean square about 1."""
    count_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the count in the squared norm of what an example adds: the more, the less noise on counts of classes."""
    sum_share: Annotated[float, Field(gt=0, lt=1)] = 0.45
    """Share of its features there: the more, the less noise on sums of features. Their products have the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count_share + self.sum_share >= 1:
            raise GenfedError(
                f"privacy.count_share + privacy.sum_share = {self.count_share + self.sum_share:g}: below 1, since "
                "products have the rest"
            )

    @property
    def bounds(self) -> SumBounds:
        """The bounds of what an example adds."""
        return SumBounds(self.clip_norm, self.count_share, self.sum_share)


@settings
class AdaptiveClipping:
    """A clipping norm that follows a quantile of the updates' norms, separately for each phase (Andrew et al., arXiv
    1905.03871).
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of the updates that should stay unclipped (γ)."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Learning rate of the clipping norm (η_C)."""
    count_noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Standard deviation of the noise on the number of unclipped updates (σ_b). It must be above half the noise
    multiplier. Unset: 1/20 of the number of participating clients, but at least the noise multiplier."""

    # differs from the paper: with few clients, 1/20 alone would leave no privacy budget for the updates.

    def on_count(self, noise_multiplier: float, participating: float) -> float:
        """Returns σ_b for a round with the (expected) number of participating clients."""
        if noise_multiplier == 0:
            return 0.0
        return self.count_noise or max(participating / 20, noise_multiplier)

    def on_updates(self, noise_multiplier: float, participating: float) -> float:
        """Returns z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), so that updates and count together cost what z costs (Theorem 1).

        Args:
            noise_multiplier: z, the noise multiplier of the whole round.
            participating: (expected) number of participating clients.

        Raises:
            GenfedError: the count alone costs as much as z or more.
        """
        if noise_multiplier == 0:
            return 0.0
        count = self.on_count(noise_multiplier, participating)
        if 2 * count <= noise_multiplier:
            raise GenfedError(
                f"privacy.adaptive.count_noise = {count:g}: more than half the noise multiplier of "
                f"{noise_multiplier:.4g} is required"
            )
        return float((noise_multiplier**-2 - (2 * count) ** -2) ** -0.5)

    def next_clip(self, clip: float, share: float) -> float:
        """Returns the clipping norm that follows `clip`, where the fraction `share` of the updates was not clipped. It
        stays within the bounds of clipping norms.
        """
        following = clip * math.exp(-self.rate * (share - self.quantile))
        return min(max(following, SHORTEST), LONGEST)


@settings
class DPFedAvg(PrivacySettings):
    """Differential privacy of every client as a whole. The server clips each client's update and adds noise to the mean
    (DP-FedAvg; McMahan et al., arXiv 1710.06963). It sees the uploads and is trusted. With [secure_aggregation] the
    clients clip and add noise themselves, and the server sees only noisy sums.
    """

    kind: ClassVar[str] = "dp_fedavg"

    clip_norm: ClipNorm = 1.0
    """Maximum L2 norm of a client's whole update in a round (S), from 1e-6 to 1e9; longer updates are clipped to it.
    With `adaptive`: the norm of the first round."""
    adaptive: AdaptiveClipping | None = None
    """Clipping norm that follows a quantile of the updates' norms. Unset: `clip_norm` in every round."""
    secret_sampling: bool = False
    """Whether the server selects the clients of a round in secret, each with probability `federation.client_fraction`,
    so that a round costs less privacy. False: the seed, which clients know, decides, and each round costs its clients
    the full price."""


RoundNoise = DPFedAvg | DPSum
"""Mechanisms that add noise to what the clients of a round upload together."""


@settings
class LifetimeBudget:
    """Privacy budget of every example of a site, over all runs in which the site takes part."""

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Privacy budget (ε). A round that would exceed it is refused."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability that the guarantee ε fails (δ). It should be well below 1/n, where n is the number of the site's
    examples."""
    accountant: Accountant = "prv"
    """Accountant of Opacus. "prv" is tight. "rdp" is faster, but gives a larger ε, and replaces "prv" where that would
    need more than 1 GiB of memory or is not reliable."""


@settings
class ClientNoiseDemand(LifetimeBudget):
    """Noise that a site demands for itself as a whole: it uploads only under masks, with noise of its own, as in
    [privacy] kind = "dp_fedavg" with [secure_aggregation]. The budget is for all examples of the site together, over
    all runs in which it takes part.
    """

    noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE, le=MOST_NOISE)] | None = None
    """Smallest accepted noise multiplier of a round: that of the noise of `secure_aggregation.minimum_group` clients
    together. Unset: any that keeps the budget."""
