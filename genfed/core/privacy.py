"""The interfaces of example-level differential privacy: what a phase declares that it trains on a client's examples,
what a client is given to train with, and who keeps its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from genfed.core.errors import GenfedError
from genfed.core.task import Data


@dataclass(frozen=True)
class DeclaredTraining:
    """One training on a client's own examples: a phase declares it, and DP-SGD is accounted for it."""

    epochs: int
    """Passes over the examples."""
    batch_size: int
    """Examples in a batch, at most. Under DP-SGD: the largest mean over batches."""


class PrivateTrainer(Protocol):
    """Trains on a client's examples in one round so that no single example shows."""

    def fit(self, objectives: Sequence[Any], data: Data, *, epochs: int, batch_size: int) -> None:
        """Trains the `training.fit.Objective`s as `training.fit.fit` does.

        Raises:
            GenfedError: the phase did not declare this training, or it is done already.
        """

    def finish(self) -> None:
        """Ends the round; must be called before anything leaves the client.

        Raises:
            GenfedError: a declared training was not done here, so it may have been done without protection.
        """


class NoTraining:
    """A `PrivateTrainer` for work in which nothing may be trained."""

    def fit(self, objectives: Sequence[Any], data: Data, *, epochs: int, batch_size: int) -> None:
        """See `PrivateTrainer`."""
        if epochs:
            refuse_undeclared(DeclaredTraining(epochs, batch_size))

    def finish(self) -> None:
        """See `PrivateTrainer`."""


def refuse_undeclared(training: DeclaredTraining) -> NoReturn:
    """Refuses a training that no budget was charged for.

    Raises:
        GenfedError: always.
    """
    raise GenfedError(f"{training} was not declared by the method for this phase, so nothing was charged for it")


class BudgetKeeper(Protocol):
    """Keeps the privacy budgets of a trial's clients."""

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int) -> PrivateTrainer:
        """Charges a round to the client's budget, on the disk (in `folder`) before this returns. A round of which
        nothing has left since it was charged, as a file there says, is not charged again.

        Raises:
            GenfedError: the budget does not hold the round; nothing is charged.
        """
