"""The charges to a client's privacy budget."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Charge:
    """The cost of one training in one round: `steps` steps of the Gaussian mechanism on Poisson samples."""

    phase: str
    round: int
    step: int
    """Number of the round, counted over all phases of the trial."""
    rate: float
    """Probability that an example is in a batch."""
    noise_multiplier: float
    steps: int
    """Number of batches."""


@dataclass(frozen=True)
class Ledger:
    """All charges ever made to a client's budget. The client stores it and only adds to it."""

    charges: tuple[Charge, ...] = ()


def sum_by_mechanism(charges: Sequence[Charge]) -> list[tuple[float, float, int]]:
    """Returns (noise multiplier, rate, steps) of all charges, with the steps of equal mechanisms added up."""
    found: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = (charge.noise_multiplier, charge.rate)
        found[key] = found.get(key, 0) + charge.steps
    return [(multiplier, rate, steps) for (multiplier, rate), steps in sorted(found.items())]
