"""What it costs the examples of a site to take part in runs, over all of them together."""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfed.app.accounting import Limit, Mechanism, epsilon, holds
from genfed.app.protection import Budgets
from genfed.app.trial import Trial
from genfed.core.errors import GenfedError
from genfed.core.privacy import Charge, Ledger, steps_by_mechanism
from genfed.core.record import load, save

BUDGET = "budget.safetensors"
"""In a site's folder. Whoever deletes it gives the site's examples a new budget."""


@dataclass(frozen=True)
class Paid:
    """What was charged in one trial."""

    run: str
    """Run, method and seed."""
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class Account:
    """All that was ever charged to a site, the oldest trial first; only added to."""

    paid: tuple[Paid, ...] = ()

    def mechanisms(self) -> list[Mechanism]:
        """Of all trials."""
        return steps_by_mechanism([charge for each in self.paid for charge in each.charges])

    def of(self, run: str) -> Ledger:
        """What one trial was charged."""
        return Ledger(next((each.charges for each in self.paid if each.run == run), ()))

    def plus(self, run: str, more: tuple[Charge, ...]) -> "Account":
        """With these charged to that trial."""
        known = [each.run for each in self.paid]
        paid = self.paid if run in known else (*self.paid, Paid(run, ()))
        return Account(tuple(Paid(p.run, (*p.charges, *more)) if p.run == run else p for p in paid))


class OwnBudgets(Budgets):
    """The budget of a trial, within that of the site."""

    def __init__(self, trial: Trial, folder: Path, limit: Limit, run: str) -> None:
        """`folder` is the site's, and `run` names the trial among all."""
        super().__init__(trial)
        self._folder, self._limit, self._run = folder, limit, run

    def charge(self, folder: Path, more: tuple[Charge, ...]) -> None:
        """See `Budgets`. On the site's account first: killed between the two, it is not charged there again."""
        with _locked(self._folder):
            account = account_in(self._folder)
            if not account.of(self._run).charged(more):
                after = account.plus(self._run, more)
                if not holds(after.mechanisms(), self._limit):
                    raise GenfedError(
                        f"the site's privacy budget over all runs does not hold it: {_told(account, self._limit)}"
                    )
                save(after, self._folder / BUDGET)
        super().charge(folder, more)


def account_in(folder: Path) -> Account:
    """What was charged to the site whose folder it is."""
    return load(Account, folder / BUDGET) if (folder / BUDGET).exists() else Account()


def check_ahead(folder: Path, limit: Limit, ahead: Sequence[Mechanism]) -> None:
    """Refuses a run that would cost more than is left.

    Raises:
        GenfedError: it would.
    """
    account = account_in(folder)
    if not holds([*account.mechanisms(), *ahead], limit):
        come = epsilon(ahead, limit.delta, limit.accountant)
        raise GenfedError(
            f"the site's privacy budget over all runs does not hold this one, which comes to ε = {come:.2f}: "
            f"{_told(account, limit)}"
        )


def table_of(folder: Path, limit: Limit) -> list[tuple[str, ...]]:
    """A row for each trial, the oldest first: run, method, seed, steps, its ε, and that of all up to it."""
    rows, paid = [], account_in(folder).paid
    for count, each in enumerate(paid, 1):
        alone, whole = Account((each,)).mechanisms(), Account(paid[:count]).mechanisms()
        come = [f"{epsilon(cost, limit.delta, limit.accountant):.2f}" for cost in (alone, whole)]
        rows.append((*each.run.split(" "), str(sum(steps for _, _, steps in alone)), *come))
    return rows


def _told(account: Account, limit: Limit) -> str:
    spent = epsilon(account.mechanisms(), limit.delta, limit.accountant)
    return f"of ε = {limit.epsilon:g} at δ = {limit.delta:g}, {spent:.2f} is spent"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes of a site never charge at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".budget.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
