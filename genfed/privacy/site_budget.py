"""The privacy budget of a site's examples over all runs in which the site takes part."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfed.core.errors import GenfedError, RecordError
from genfed.core.files import write_file
from genfed.core.record import load, save
from genfed.engines.client_storage import lock_folder
from genfed.privacy.accounting import Mechanism, PrivacyLimit, epsilon, fits_budget
from genfed.privacy.ledger import Charge, sum_by_mechanism

BUDGET = "budget.safetensors"
"""Name of a file in the site's folder. It may not be deleted: a site that has lost it takes no part in runs."""
CLIENT_BUDGET = "client-budget.safetensors"
"""The same for the site as a whole: the charges of its uploads with noise of its own."""
COUNTS = "charges.json"
"""Name of a file in the site's folder: the number of charges in each ledger, so that an older one is noticed."""


@dataclass(frozen=True)
class TrialKey:
    """The names that identify a trial."""

    run: str
    method: str
    seed: int


@dataclass(frozen=True)
class TrialCharges:
    """The charges of one trial."""

    trial: TrialKey
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class _OldTrialCharges:
    """`TrialCharges` as genfed 0.1 wrote them."""

    bill: TrialKey
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class _OldSiteLedger:
    """`SiteLedger` as genfed 0.1 wrote it: what was spent then stays spent."""

    paid: tuple[_OldTrialCharges, ...]


@dataclass(frozen=True)
class SiteLedger:
    """All charges ever made to a site, the oldest trial first. The site only adds to it."""

    trials: tuple[TrialCharges, ...] = ()

    def charges_of(self, trial: TrialKey) -> tuple[Charge, ...]:
        """Returns the charges of a trial, the oldest first."""
        return next((each.charges for each in self.trials if each.trial == trial), ())

    def count(self) -> int:
        """Returns the number of charges."""
        return sum(len(each.charges) for each in self.trials)

    def mechanisms(self, without: Collection[TrialKey] = ()) -> list[Mechanism]:
        """Returns the mechanisms that were charged in all trials except those in `without`."""
        kept = [each for each in self.trials if each.trial not in without]
        return sum_by_mechanism([charge for each in kept for charge in each.charges])

    def add(self, trial: TrialKey, more: tuple[Charge, ...]) -> "SiteLedger":
        """Returns the ledger with more charges to a trial."""
        known = any(each.trial == trial for each in self.trials)
        trials = self.trials if known else (*self.trials, TrialCharges(trial, ()))
        return SiteLedger(tuple(TrialCharges(t.trial, (*t.charges, *more)) if t.trial == trial else t for t in trials))


class SiteBudget:
    """The budget of a site over all runs, to which one trial is charged."""

    def __init__(self, folder: Path, limit: PrivacyLimit, trial: TrialKey, file: str = BUDGET) -> None:
        """Prepares the charges; `folder` is the site's, `file` the name of the ledger in it."""
        self._folder, self._limit, self._trial, self._file = folder, limit, trial, file

    def reconcile(self, charges: tuple[Charge, ...]) -> tuple[Charge, ...]:
        """Returns all charges of the trial: `charges`, those in its client's ledger, and any that were made when the
        process was killed before they were in that ledger, and so before the work that they pay for.

        Raises:
            GenfedError: the budget's file lacks charges that the client has.
        """
        with lock_folder(self._folder):
            paid = read_site_ledger(self._folder, self._file).charges_of(self._trial)
        if paid[: len(charges)] != charges:
            raise GenfedError(
                f"{self._file} lacks what this run was charged before: put it back as it was, or begin the run anew"
            )
        return paid

    def charge(self, more: tuple[Charge, ...]) -> None:
        """Charges the trial. The charges are on disk before this returns.

        Raises:
            GenfedError: the charges exceed the site's budget; nothing is charged.
        """
        with lock_folder(self._folder):
            ledger = read_site_ledger(self._folder, self._file)
            after = ledger.add(self._trial, more)
            if not fits_budget(after.mechanisms(), self._limit):
                spent = _describe_spent(ledger, self._limit)
                raise GenfedError(f"another round would exceed the site's privacy budget over all runs: {spent}")
            save(after, self._folder / self._file)
            counts = _read_counts(self._folder) | {self._file: after.count()}
            write_file(self._folder / COUNTS, json.dumps(counts) + "\n", durable=True)


def begin_ledger(folder: Path, name: str) -> None:
    """Writes an empty ledger if there is none yet, so that one that is deleted later is missed.

    Raises:
        GenfedError: there was one, which is missing or older than it was.
    """
    with lock_folder(folder):
        read_site_ledger(folder, name)
        if not (folder / name).exists():
            save(SiteLedger(), folder / name)


def read_site_ledger(folder: Path, name: str = BUDGET) -> SiteLedger:
    """Returns the ledger in a site's folder. A missing file is an empty ledger, if nothing was ever charged.

    Raises:
        GenfedError: charges are lost: the file is missing, damaged, or older than it was.
    """
    ledger, needed = _load_ledger(folder / name), _read_counts(folder).get(name, 0)
    if (found := ledger.count()) < needed:
        lost = f"is older than it was: it has {found} of {needed} charges" if (folder / name).exists() else "is lost"
        raise GenfedError(
            f"{name}, which says what the site's privacy budget was charged, {lost}; put the newest one back"
        )
    return ledger


def _load_ledger(file: Path) -> SiteLedger:
    if not file.exists():
        return SiteLedger()
    try:
        return load(SiteLedger, file)
    except RecordError:
        old = load(_OldSiteLedger, file)
    return SiteLedger(tuple(TrialCharges(each.bill, each.charges) for each in old.paid))


def _read_counts(folder: Path) -> dict[str, int]:
    """Returns the number of charges in each ledger when it was last written; empty: none was, or by genfed 0.1."""
    try:
        counts = json.loads((folder / COUNTS).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        counts = None
    if not (isinstance(counts, dict) and all(type(count) is int for count in counts.values())):
        raise GenfedError(
            f"{COUNTS}, the number of charges to the site's privacy budget, is damaged: put it back as it was"
        )
    return counts


def check_ahead(
    folder: Path,
    limit: PrivacyLimit,
    ahead: Sequence[Mechanism],
    trials: Collection[TrialKey],
    file: str = BUDGET,
) -> None:
    """Refuses a run that would exceed the site's budget.

    Args:
        folder: the site's folder.
        limit: the site's budget.
        ahead: the mechanisms of the whole run.
        trials: the trials of the run; charges that they have already are not counted again.
        file: name of the ledger.

    Raises:
        GenfedError: the run would exceed the budget.
    """
    ledger = read_site_ledger(folder, file)
    if not fits_budget([*ledger.mechanisms(without=trials), *ahead], limit):
        cost = epsilon(ahead, limit.delta, limit.accountant)
        raise GenfedError(
            f"this run costs ε = {cost:.2f} and would exceed the site's privacy budget over all runs: "
            f"{_describe_spent(ledger, limit)}"
        )


def read_budget_table(folder: Path, limit: PrivacyLimit, file: str = BUDGET) -> list[tuple[str, ...]]:
    """Returns a row per trial, the oldest first: run, method, seed, steps, its ε, and the ε of all trials up to it."""
    rows, trials = [], read_site_ledger(folder, file).trials
    for count, each in enumerate(trials, 1):
        alone, total = SiteLedger((each,)).mechanisms(), SiteLedger(trials[:count]).mechanisms()
        costs = [f"{epsilon(cost, limit.delta, limit.accountant):.2f}" for cost in (alone, total)]
        steps, key = sum(steps for _, _, steps in alone), each.trial
        rows.append((key.run, key.method, str(key.seed), str(steps), *costs))
    return rows


def _describe_spent(ledger: SiteLedger, limit: PrivacyLimit) -> str:
    spent = epsilon(ledger.mechanisms(), limit.delta, limit.accountant)
    return f"of ε = {limit.epsilon:g} at δ = {limit.delta:g}, {spent:.2f} is spent"
