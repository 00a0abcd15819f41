"""Example-level differential privacy, as everybody sees it: what a phase trains on a client's examples, what that is
charged to, and what a client is given to train with.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from genfed.core.errors import GenfedError


@dataclass(frozen=True)
class DeclaredTraining:
    """One training on a client's own examples: what a phase declares and DP-SGD is accounted for."""

    epochs: int
    batch_size: int
    """Of training without privacy; under it a batch is so large at most in the mean."""

    def rate(self, examples: int) -> float:
        """The chance of each example to be in a batch: one over the batches of an epoch."""
        return 1 / self._batches(examples)

    def steps(self, examples: int) -> int:
        """Batches in all."""
        return self.epochs * self._batches(examples)

    def _batches(self, examples: int) -> int:
        return max(1, math.ceil(examples / self.batch_size))


class PrivateTrainer:
    """How a client trains in one round so that no single example shows: what its phase declared, and no more."""

    def __init__(
        self, clip: float, noise_multiplier: float, draws: np.random.Generator, uses: Iterable[DeclaredTraining]
    ) -> None:
        """`clip` is the norm that an example's gradient is cut to; batches and noise come from `draws`."""
        self.clip, self.noise_multiplier, self.draws = clip, noise_multiplier, draws
        self._left = [use for use in uses if use.epochs]

    def begin(self, use: DeclaredTraining) -> None:
        """To be called before a training.

        Raises:
            GenfedError: it was not declared, or is done already.
        """
        if not use.epochs:
            return
        if use not in self._left:
            raise GenfedError(f"{use} was not declared by the method for this phase, so nothing was charged for it")
        self._left.remove(use)

    def finish(self) -> None:
        """To be called before anything leaves.

        Raises:
            GenfedError: a declared training did not come by here, so it may have been done without protection.
        """
        if self._left:
            raise GenfedError(f"{self._left[0]} was declared by the method, and not trained by DP-SGD")


def allow_no_training() -> PrivateTrainer:
    """For work in which nothing may be trained."""
    return PrivateTrainer(1.0, 0.0, np.random.default_rng(0), ())


class BudgetKeeper(Protocol):
    """Who keeps the clients' budgets of a trial."""

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int) -> PrivateTrainer:
        """Charges a round to the client's budget, on the disk (in `folder`) before this returns; a round is not charged
        again if nothing of it has left since: whoever works it says so by a file there.

        Raises:
            GenfedError: the budget does not hold it; nothing is charged.
        """
