"""The ε of several mechanisms together, by Opacus's accountants, and the noise that a budget needs."""

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from genfed.core.errors import GenfedError, first_line
from genfed.privacy.settings import LEAST_NOISE, MOST_NOISE, Accountant, PrivacySettings

log = logging.getLogger(__name__)
Mechanism = tuple[float, float, int]
"""(noise multiplier, sampling rate, steps)"""
UNKNOWN_COST: Mechanism = (0.0, 1.0, 1)
"""Stands for a cost of which no bound is known: its ε is ∞."""


class PrivacyLimit(Protocol):
    """A privacy budget and the accountant that it is counted with."""

    @property
    def epsilon(self) -> float | None: ...
    @property
    def delta(self) -> float: ...
    @property
    def accountant(self) -> Accountant: ...


WITHIN = 1.01
"""Maximum ratio of a noise multiplier to the smallest one that would be enough."""


LEAST_RATE = 1e-9
"""Smallest sampling rate for which ε is computed. Lower ones count as this one."""
PRV_BYTES, PRV_POINTS = 2**30, 2**24
"""Most memory that the PRV accountant may need, and the largest size of its mesh in points of all mechanisms together,
for which it takes some seconds.
"""
PRV_MECHANISMS = 32
"""Largest number of different mechanisms for which the PRV accountant is tried."""
PRV_REACH = 700.0
"""Largest privacy loss on the mesh of the PRV accountant; e to a larger one is not a number of 64 bits."""
_PRV_ERROR = 0.01  # Opacus's default: the PRV accountant adds it to ε


@dataclass(frozen=True)
class PrivacyCost:
    """The ε of several mechanisms together."""

    epsilon: float
    """ε: 0 for no mechanism, ∞ without noise."""
    accountant: Accountant
    """Accountant that ε comes from."""
    note: str = ""
    """Reason why ε does not come from the accountant that was asked for. Empty: it does."""


def epsilon(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant) -> float:
    """Returns the ε of `account`."""
    return account(mechanisms, delta, accountant).epsilon


def account(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant) -> PrivacyCost:
    """Returns the ε of these mechanisms together, by Opacus's accountants. The size of the PRV accountant's mesh is
    known before it is allocated. If it is too large, or if PRV is not reliable, ε comes from RDP, which is larger. More
    noise than `MOST_NOISE` counts as that, and less than `LEAST_NOISE` as none.

    Args:
        mechanisms: what a client or site is charged for.
        delta: δ, at which ε is computed.
        accountant: "prv", "rdp" or "exact".
    """
    spent: dict[tuple[float, float], int] = {}
    for noise, rate, steps in mechanisms:
        if steps:
            key = (min(noise, MOST_NOISE), max(rate, LEAST_RATE))
            spent[key] = spent.get(key, 0) + steps
    if any(noise < LEAST_NOISE for noise, _ in spent):
        return PrivacyCost(math.inf, accountant)
    found = tuple((noise, rate, steps) for (noise, rate), steps in spent.items())
    return _account(found, delta, accountant) if found else PrivacyCost(0.0, accountant)


@functools.lru_cache(maxsize=4096)
def _account(mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> PrivacyCost:
    if accountant == "rdp":
        return PrivacyCost(_rdp_epsilon(mechanisms, delta), "rdp")
    if accountant == "exact":
        if all(rate == 1 for _, rate, _ in mechanisms):
            return PrivacyCost(gaussian_epsilon(mechanisms, delta), "exact")
        other = _account(mechanisms, delta, "prv")
        return replace(other, note=other.note or "there is no exact formula for batches that are drawn")
    if not (note := _reason_against_prv(mechanisms, delta)):
        try:
            found = _prv_epsilon(mechanisms, delta)
            if math.isfinite(found):
                return PrivacyCost(max(0.0, found), "prv")
            note = "PRV gives no finite number"
        except (ArithmeticError, RuntimeError, ValueError) as error:  # Opacus's own checks
            note = f"PRV fails ({first_line(error)})"
    return PrivacyCost(_rdp_epsilon(mechanisms, delta), "rdp", note)


def gaussian_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Returns the ε of Gaussian mechanisms without sampling. With μ² = Σ steps / noise², they fail ε with probability
    Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ): Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML
    2018, arXiv 1805.06530, Theorem 8, which is exact.

    Args:
        mechanisms: (noise multiplier, 1, steps) of each.
        delta: δ.

    >>> round(gaussian_epsilon([(3.7304, 1.0, 1)], 1e-5), 3)
    1.0
    """
    mu = math.sqrt(sum(steps / noise**2 for noise, _, steps in mechanisms))

    def fails(epsilon: float) -> float:
        first, second = (_log_normal(side * mu / 2 - epsilon / mu) for side in (1, -1))
        return math.exp(first) * -math.expm1(min(0.0, epsilon + second - first))

    low, high = 0.0, 1.0
    if not mu or fails(low) <= delta:
        return 0.0
    while fails(high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fails(middle) > delta else (low, middle)
    return high


def _log_normal(x: float) -> float:
    """Returns the logarithm of Φ(x)."""
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))


def _prv_epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant  # takes seconds

    found = PRVAccountant()
    found.history = list(mechanisms)
    with _opacus_quiet():
        return float(found.get_epsilon(delta, eps_error=_PRV_ERROR))


def _reason_against_prv(mechanisms: tuple[Mechanism, ...], delta: float) -> str:
    """Returns why PRV cannot compute these mechanisms. Empty: it can. Allocates nothing."""
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size

    if len(mechanisms) > PRV_MECHANISMS:
        return f"PRV would take too long for {len(mechanisms)} different mechanisms"
    error, steps = delta / 1000, [steps for _, _, steps in mechanisms]  # Opacus's own choice of error
    if delta < 1e-15:
        return f"PRV is not reliable at δ = {delta:.2g}"
    losses = [PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in mechanisms]
    with _opacus_quiet():
        reach = float(compute_safe_domain_size(losses, steps, _PRV_ERROR, error))
    if not reach <= PRV_REACH:
        return "its ε is too large for PRV"
    points = 2 * reach / _PRV_ERROR * math.sqrt(sum(steps) * math.log(12 / error) / 2)
    if (size := points * (200 + 8 * len(mechanisms))) > PRV_BYTES:  # as measured
        return f"PRV would need {size / 2**30:,.1f} GiB of memory"
    if points * len(mechanisms) > PRV_POINTS:
        return f"PRV would take too long for {sum(steps):,} steps"
    # Opacus has this check too, but for sums of more precision than 64 bits, and then gives an ε that is too small.
    if float(np.finfo(np.float64).eps) * points > delta:
        return f"PRV is not reliable at δ = {delta:.2g}"
    return ""


def _rdp_epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = sum(_rdp(noise, rate) * steps for noise, rate, steps in mechanisms)
    with _opacus_quiet():
        return max(0.0, float(get_privacy_spent(orders=_orders(), rdp=total, delta=delta)[0]))


def _orders() -> list[float]:
    from opacus.accountants import RDPAccountant

    return [*RDPAccountant.DEFAULT_ALPHAS, *range(64, 257, 8), 384, 512, 1024]  # these are for ε far below 1


@functools.lru_cache(maxsize=4096)
def _rdp(noise: float, rate: float) -> Any:
    """Returns the Rényi divergence of one step at each of `_orders`."""
    from opacus.accountants.analysis.rdp import compute_rdp

    with _opacus_quiet():
        return compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_orders())


@contextlib.contextmanager
def _opacus_quiet() -> Iterator[None]:
    """Silences that PRV divides by 0 on its way to the right number, and that RDP's best order is its last."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")
        yield


def fits_budget(mechanisms: Sequence[Mechanism], budget: PrivacyLimit) -> bool:
    """Returns whether these mechanisms together stay within the budget; without a target all do."""
    if budget.epsilon is None:
        return True
    # Both accountants bound ε from above, and this one is fast.
    if epsilon(mechanisms, budget.delta, "rdp") <= budget.epsilon:
        return True
    return budget.accountant != "rdp" and epsilon(mechanisms, budget.delta, budget.accountant) <= budget.epsilon


def warn_of_weak_privacy(budget: PrivacySettings, n: int, counted: str, each: str) -> None:
    """Warns of noise that protects no one, and of a δ that is too large.

    Args:
        budget: the settings.
        n: number of the units that are protected: examples or clients.
        counted: text that names this number, for the warning.
        each: text that names one unit.
    """
    if budget.reproducible_noise:
        log.warning("privacy.reproducible_noise: any party that knows the seed can remove the noise; not private")
    if budget.delta >= 1 / n:
        log.warning(
            "privacy.delta = %g is not below 1/n = %.2g (%s): it would allow %s to be revealed in full; set a much "
            "smaller one",
            budget.delta, 1 / n, counted, each,
        )  # fmt: skip


def noise_for(trainings: Sequence[tuple[float, int]], budget: PrivacySettings) -> float:
    """Returns the smallest noise multiplier (to within 1 %) with which the trainings stay within the budget.

    Args:
        trainings: (sampling rate, steps) of each training.
        budget: the settings.

    Raises:
        GenfedError: no noise is enough.
    """

    def enough(noise: float) -> bool:
        return fits_budget([(noise, rate, steps) for rate, steps in trainings], budget)

    if not any(steps for _, steps in trainings):
        return 0.0
    high = 1.0
    while not enough(high):
        high *= 2
        if high > 1e5:
            raise GenfedError(f"privacy.epsilon = {budget.epsilon}: no noise is enough to keep it")
    low = high / 2
    while enough(low):
        low, high = low / 2, low
    while high / low > WITHIN:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
