"""The ε of several mechanisms together, by Opacus's accountants, and the noise that a budget needs."""

import functools
import logging
import math
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from genfed.core.errors import GenfedError
from genfed.privacy.settings import Accountant, PrivacySettings

log = logging.getLogger(__name__)
Mechanism = tuple[float, float, int]
"""(noise multiplier, sampling rate, steps)"""


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


def epsilon(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant) -> float:
    """Returns the ε of these mechanisms together, by Opacus's accountant: 0 for none, ∞ without noise.

    Args:
        mechanisms: what a client or site is charged for.
        delta: δ, at which ε is computed.
        accountant: "prv" or "rdp".
    """
    spent = [(noise, rate, steps) for noise, rate, steps in mechanisms if steps]
    if any(noise == 0 for noise, _, _ in spent):
        return math.inf
    return _epsilon(tuple(spent), delta, accountant) if spent else 0.0


@functools.lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> float:
    from opacus.accountants import PRVAccountant, RDPAccountant  # takes seconds

    found = RDPAccountant() if accountant == "rdp" else PRVAccountant()
    found.history = list(mechanisms)
    more = [*range(64, 257, 8), 384, 512, 1024]  # orders for ε far below 1
    orders = {"alphas": [*RDPAccountant.DEFAULT_ALPHAS, *more]} if accountant == "rdp" else {}
    # With a sampling rate of 1, PRV divides by 0 on its way to the right number; RDP warns that an order is the last.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")
        return float(found.get_epsilon(delta, **orders))


def fits_budget(mechanisms: Sequence[Mechanism], budget: PrivacyLimit) -> bool:
    """Returns whether these mechanisms together stay within the budget; without a target all do."""
    if budget.epsilon is None:
        return True
    # Both accountants bound ε from above, and this one is fast.
    if epsilon(mechanisms, budget.delta, "rdp") <= budget.epsilon:
        return True
    return budget.accountant != "rdp" and epsilon(mechanisms, budget.delta, "prv") <= budget.epsilon


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
