"""The privacy budget of a site's examples over all runs that the site takes part in."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.record import load, save
from genfed.engines.client_storage import lock_folder
from genfed.privacy.accounting import Mechanism, PrivacyLimit, epsilon, fits_budget
from genfed.privacy.ledger import Charge, sum_by_mechanism

BUDGET = "budget.safetensors"
"""In a site's folder. Whoever deletes it gives the site's examples a new budget."""


@dataclass(frozen=True)
class TrialKey:
    """Whose charges they are."""

    run: str
    method: str
    seed: int


@dataclass(frozen=True)
class TrialCharges:
    """What was charged in one trial."""

    bill: TrialKey
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class SiteLedger:
    """All that was ever charged to a site, the oldest trial first; only added to."""

    paid: tuple[TrialCharges, ...] = ()

    def mechanisms(self, without: Collection[TrialKey] = ()) -> list[Mechanism]:
        """Of all trials but these."""
        return sum_by_mechanism([charge for p in self.paid if p.bill not in without for charge in p.charges])

    def plus(self, bill: TrialKey, more: tuple[Charge, ...]) -> "SiteLedger":
        """With these charged to that trial."""
        known = any(each.bill == bill for each in self.paid)
        paid = self.paid if known else (*self.paid, TrialCharges(bill, ()))
        return SiteLedger(tuple(TrialCharges(p.bill, (*p.charges, *more)) if p.bill == bill else p for p in paid))


class SiteBudget:
    """The budget of a site over all runs, as one trial is charged to it."""

    def __init__(self, folder: Path, limit: PrivacyLimit, trial: TrialKey) -> None:
        """`folder` is the site's."""
        self._folder, self._limit, self._trial = folder, limit, trial

    def charge(self, more: tuple[Charge, ...]) -> None:
        """Charges the trial, on the disk before this returns.

        Raises:
            GenfedError: the site's budget does not hold it; nothing is charged.
        """
        with lock_folder(self._folder):
            account = read_site_ledger(self._folder)
            after = account.plus(self._trial, more)
            if not fits_budget(after.mechanisms(), self._limit):
                spent = _describe_spent(account, self._limit)
                raise GenfedError(f"the site's privacy budget over all runs does not hold it: {spent}")
            save(after, self._folder / BUDGET)


def read_site_ledger(folder: Path) -> SiteLedger:
    """What was charged to the site whose folder it is."""
    return load(SiteLedger, folder / BUDGET) if (folder / BUDGET).exists() else SiteLedger()


def check_ahead(folder: Path, limit: PrivacyLimit, ahead: Sequence[Mechanism], bills: Collection[TrialKey]) -> None:
    """Refuses a run that would cost more than is left; `bills` are of its trials, of which some may be paid.

    Raises:
        GenfedError: it would.
    """
    account = read_site_ledger(folder)
    if not fits_budget([*account.mechanisms(without=bills), *ahead], limit):
        come = epsilon(ahead, limit.delta, limit.accountant)
        raise GenfedError(
            f"the site's privacy budget over all runs does not hold this one, which comes to ε = {come:.2f}: "
            f"{_describe_spent(account, limit)}"
        )


def read_budget_table(folder: Path, limit: PrivacyLimit) -> list[tuple[str, ...]]:
    """A row for each trial, the oldest first: run, method, seed, steps, its ε, and that of all up to it."""
    rows, paid = [], read_site_ledger(folder).paid
    for count, each in enumerate(paid, 1):
        alone, whole = SiteLedger((each,)).mechanisms(), SiteLedger(paid[:count]).mechanisms()
        come = [f"{epsilon(cost, limit.delta, limit.accountant):.2f}" for cost in (alone, whole)]
        rows.append(
            (each.bill.run, each.bill.method, str(each.bill.seed), str(sum(steps for _, _, steps in alone)), *come)
        )
    return rows


def _describe_spent(account: SiteLedger, limit: PrivacyLimit) -> str:
    spent = epsilon(account.mechanisms(), limit.delta, limit.accountant)
    return f"of ε = {limit.epsilon:g} at δ = {limit.delta:g}, {spent:.2f} is spent"
