"""What was charged to a client's privacy budget."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Charge:
    """What one training in one round cost: so many steps of the Gaussian mechanism on a Poisson sample."""

    phase: str
    round: int
    step: int
    """Of the trial: rounds over all phases."""
    rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class Ledger:
    """All that was ever charged to a client's budget; kept by the client, and only added to."""

    charges: tuple[Charge, ...] = ()

    def charged(self, more: tuple[Charge, ...]) -> bool:
        """Whether the last charges are these. Others for the same step are new, or whoever names the steps could have
        more trained for the price of less.
        """
        return self.charges[-len(more) :] == more


def sum_by_mechanism(charges: Sequence[Charge]) -> list[tuple[float, float, int]]:
    """(noise multiplier, rate, steps) of all charges, those of one mechanism added up."""
    found: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = (charge.noise_multiplier, charge.rate)
        found[key] = found.get(key, 0) + charge.steps
    return [(multiplier, rate, steps) for (multiplier, rate), steps in sorted(found.items())]
