"""The settings of differential privacy: budgets, example level, client level."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.settings import settings

Accountant = Literal["prv", "rdp"]


@settings
class Budget:
    """What differential privacy is asked for."""

    table: ClassVar[str] = ""
    """Of a config."""

    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Standard deviation of the noise over the norm that is cut to; 0: none, and ε is ∞. Left out: as little as
    `epsilon` needs for all rounds that a client will take part in."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Each client's budget (ε) over all phases and rounds of a method, which is not passed. Left out: there is no
    limit."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Chance with which ε may not hold (δ); well below one over what is protected: a client's examples, or the
    clients."""
    accountant: Accountant = "prv"
    """How Opacus adds up what rounds cost: by privacy loss random variables, which is tight, or by Rényi divergence."""
    reproducible_noise: bool = False
    """For tests: noise and batches from the run's seed. Whoever knows it can take the noise away: it is not private."""

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon is None:
            raise GenfedError(f"{self.table}: set epsilon (the noise follows from it), noise_multiplier, or both")
        if self.noise_multiplier == 0 and self.epsilon is not None:
            raise GenfedError(f"{self.table}.noise_multiplier = 0: without noise no {self.table}.epsilon can be kept")


@settings
class Privacy(Budget):
    """Differential privacy of every single example: clients train on their own by DP-SGD."""

    table: ClassVar[str] = "privacy"

    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Norm that the gradient of each example is cut to (C)."""


@settings
class AdaptiveClipping:
    """The norm that updates are clipped to follows a quantile of their norms, in each phase by itself."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the updates that are to stay as they are (γ)."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """How fast the norm moves (η_C)."""
    count_noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Standard deviation of the noise on the number of updates that stay as they are (σ_b); above half the noise
    multiplier. Left out: a twentieth of those asked, but no less than the noise multiplier."""

    # differs from the paper: that twentieth alone, of a few clients, would leave the updates no privacy at all.

    def on_count(self, noise_multiplier: float, asked: float) -> float:
        """σ_b, where so many are asked, or are to be expected."""
        if noise_multiplier == 0:
            return 0.0
        return self.count_noise or max(asked / 20, noise_multiplier)

    def on_updates(self, noise_multiplier: float, asked: float) -> float:
        """z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), so that updates and count cost together what z does (Theorem 1).

        Raises:
            GenfedError: the count alone would cost as much.
        """
        if noise_multiplier == 0:
            return 0.0
        count = self.on_count(noise_multiplier, asked)
        if 2 * count <= noise_multiplier:
            raise GenfedError(
                f"client_privacy.adaptive.count_noise = {count:g}: more than half the noise multiplier of "
                f"{noise_multiplier:.4g} is needed"
            )
        return float((noise_multiplier**-2 - (2 * count) ** -2) ** -0.5)

    def next_clip(self, clip: float, share: float) -> float:
        """The next norm; `share` of the updates were no longer than this one."""
        return clip * math.exp(-self.rate * (share - self.quantile))


@settings
class ClientPrivacy(Budget):
    """Differential privacy of every client as a whole: the server clips what a client uploads, and adds noise to the
    means (DP-FedAvg). It sees the uploads, and is trusted. With [secure] clients do both, and it sees noised sums.
    """

    table: ClassVar[str] = "client_privacy"

    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """L2 norm that a client's whole update of a round is clipped to (S); with `adaptive` the first one."""
    adaptive: AdaptiveClipping | None = None
    """The norm follows a quantile of the updates' norms; left out: it stays."""
    secret_sampling: bool = False
    """Who is asked in a round is drawn by the server in secret, each client with the chance `federation.sample` whoever
    else is: then rounds cost less. False: it follows from the seed, which clients know, and a client pays in full for
    the rounds that it is asked in."""


@settings
class LifetimeBudget:
    """The budget of every example of a site over all runs that it takes part in, together."""

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """ε, which is not passed."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """δ: well below one over the number of the site's examples."""
    accountant: Accountant = "prv"
    """How Opacus adds up what rounds cost; "rdp" is faster, and looser."""
