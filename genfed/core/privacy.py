"""The interfaces of example-level differential privacy: trainings that a phase declares, the trainer that a client
gets, and the keeper of privacy budgets; and the bounds of sums over examples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Data


@dataclass(frozen=True)
class DeclaredTraining:
    """One training on a client's own examples. A phase declares it, and the privacy budget is charged for it."""

    epochs: int
    """Passes over the examples."""
    batch_size: int
    """Maximum number of examples in a batch. Under DP-SGD: the maximum expected number."""


@dataclass(frozen=True)
class SumBounds:
    """How much of the sums of statistics one example may be, under differential privacy of sums."""

    clip_norm: float | None = None
    """Maximum L2 norm of an example's features; longer rows are clipped to it. None: √d for d features."""
    count_share: float = 0.05
    """Share of the count in the squared norm of an example's contribution."""
    sum_share: float = 0.45
    """Share of its features there. Their products have the rest."""

    @property
    def product_share(self) -> float:
        """Share of the products."""
        return 1 - self.count_share - self.sum_share

    def norm(self, features: int) -> float:
        """Returns the clipping norm of rows with this number of features."""
        return math.sqrt(features) if self.clip_norm is None else self.clip_norm


@dataclass(frozen=True)
class SumNoise:
    """What a party knows of the protection of sums over examples."""

    bounds: SumBounds
    multiplier: float = 0.0
    """Standard deviation of the noise on the sums, in units of an example's largest contribution. 0: no noise."""


class PrivateTrainer(Protocol):
    """Trains on a client's examples in one round so that no single example is revealed."""

    def fit(self, objectives: Sequence[Any], data: Data, *, epochs: int, batch_size: int) -> None:
        """Trains the `training.fit.Objective`s as `training.fit.fit` does.

        Raises:
            GenfedError: the phase did not declare this training, or it has been done already.
        """

    def finish(self, upload: object, received: Iterable[Tensor]) -> None:
        """Ends the round. Must be called before anything leaves the client.

        Args:
            upload: the record that the client would upload.
            received: the tensors that the client was sent.

        Raises:
            GenfedError: a declared training was not done by this trainer, so it may have been done without protection;
                or the upload holds something else than tensors that this trainer released, or that were received.
        """


class NoTraining:
    """A `PrivateTrainer` for work that must not train anything."""

    def fit(self, objectives: Sequence[Any], data: Data, *, epochs: int, batch_size: int) -> None:
        """See `PrivateTrainer`."""
        if epochs:
            refuse_undeclared(DeclaredTraining(epochs, batch_size))

    def finish(self, upload: object, received: Iterable[Tensor]) -> None:
        """See `PrivateTrainer`. Scores of held-out examples may leave: DP-SGD does not cover these."""


def refuse_undeclared(training: DeclaredTraining) -> NoReturn:
    """Refuses a training for which no budget was charged.

    Raises:
        GenfedError: always.
    """
    raise GenfedError(f"{training} was not declared by the method for this phase, so nothing was charged for it")


class BudgetKeeper(Protocol):
    """Keeps the privacy budgets of a trial's clients."""

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int, settled: int) -> PrivateTrainer:
        """Charges a round to a client's budget. The charge is on disk before this returns. A round that was charged,
        but of which nothing has left the client, is not charged again.

        Args:
            client: the client's id.
            folder: the client's folder.
            phase: name of the phase.
            round_: number of the round, counted per phase.
            step: number of the round, counted over all phases.
            settled: number of the client's charges of which something may have left it.

        Raises:
            GenfedError: the round would exceed the budget; nothing is charged.
        """

    def count(self, folder: Path) -> int:
        """Returns the number of charges to a client's budget; `folder` is the client's.

        Raises:
            StorageError: charges are lost.
        """
