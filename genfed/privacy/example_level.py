"""Example-level differential privacy of a trial: the clients' budgets, and the guarantee that follows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from genfed.core.errors import GenfedError, RecordError
from genfed.core.files import make_folder
from genfed.core.privacy import DeclaredTraining
from genfed.core.record import load, save
from genfed.engines.client_storage import LEDGER, explain_loss, read_index
from genfed.privacy.accounting import Mechanism, account, fits_budget
from genfed.privacy.dp_sgd import DPSGDTrainer, plan_batches
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.ledger import Charge, Ledger, sum_by_mechanism
from genfed.privacy.plan import PrivacyPlan
from genfed.privacy.randomness import os_randomness, seeded_randomness
from genfed.privacy.settings import DPSGD


class SiteAccount(Protocol):
    """The account of one trial in a budget that is kept outside the trial, such as a site's over all runs."""

    def reconcile(self, charges: tuple[Charge, ...]) -> tuple[Charge, ...]:
        """Returns all charges to the account: `charges`, those that the trial's client knows, and any after them that
        were made when its process was killed.

        Raises:
            GenfedError: the account lacks some of the client's charges.
        """

    def charge(self, more: tuple[Charge, ...]) -> None:
        """Charges the account; raises GenfedError to refuse. The charges are on disk before this returns."""


class TrialBudget:
    """The privacy budgets of a trial's clients; a `core.privacy.BudgetKeeper`."""

    def __init__(
        self,
        how: DPSGD,
        plan: PrivacyPlan,
        declared: Mapping[str, Sequence[DeclaredTraining]],
        seed: int,
        examples: Mapping[int, int],
        site: SiteAccount | None = None,
    ) -> None:
        """Prepares the budgets before the first round.

        Args:
            how: settings of the budgets and of DP-SGD.
            plan: each client's noise.
            declared: the trainings of each phase.
            seed: seed of the run, for noise that tests can repeat.
            examples: number of each client's examples.
            site: charged before charges are in a client's ledger. None: no budget of a site.
        """
        self._how, self._plan, self._declared, self._seed, self._examples = how, plan, declared, seed, examples
        self._site = site

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int, settled: int) -> DPSGDTrainer:
        """See `core.privacy.BudgetKeeper`."""
        declared = [training for training in self._declared.get(phase, ()) if training.epochs]
        noise, examples = self._plan.noise_multiplier[client], self._examples[client]
        if declared:
            planned = [plan_batches(training, examples) for training in declared]
            more = tuple(Charge(phase, round_, step, rate, noise, steps) for rate, steps in planned)
            self.charge(folder, more, settled)
        fixed = self._how.reproducible_noise
        draws = seeded_randomness(self._seed, phase, round_, client) if fixed else os_randomness()
        return DPSGDTrainer(self._how.max_grad_norm, noise, draws, declared)

    def count(self, folder: Path) -> int:
        """See `core.privacy.BudgetKeeper`."""
        return len(read_ledger(folder).charges)

    def charge(self, folder: Path, more: tuple[Charge, ...], settled: int) -> None:
        """Adds charges to the ledger in a client's folder, unless they are its last ones and no result of that work has
        left the client: they are not among the first `settled` ones.

        Raises:
            GenfedError: the charges exceed the budget of the client or of the site; nothing is charged.
        """
        stored = read_ledger(folder).charges
        known = stored if self._site is None else self._site.reconcile(stored)
        after = known
        if known[settled:][-len(more) :] != more:  # other charges for the same step are new ones
            after = (*known, *more)
            if not fits_budget(sum_by_mechanism(after), self._how):
                raise GenfedError(f"another round would exceed its privacy budget of ε = {self._how.epsilon:g}")
            if self._site is not None:
                self._site.charge(more)
        if after != stored:
            make_folder(folder)
            save(Ledger(after), folder / LEDGER)


def read_ledger(folder: Path) -> Ledger:
    """Returns the ledger in a client's folder. A missing file is an empty ledger, if the client was never charged.

    Raises:
        StorageError: charges are lost: the ledger is damaged, or has fewer than the client's index says.
    """
    file, needed = folder / LEDGER, read_index(folder).charges
    try:
        ledger = load(Ledger, file) if file.exists() else Ledger()
    except RecordError as error:
        raise explain_loss(folder, str(error)) from None
    if len(ledger.charges) < needed:
        raise explain_loss(folder, f"{file} has {len(ledger.charges)} of {needed} charges to the privacy budget")
    return ledger


def read_charges(
    folder: Path, clients: Iterable[int], stored: Mapping[int, int] | None = None
) -> dict[int, list[Mechanism]]:
    """Returns the mechanisms that each of these clients was charged for.

    Args:
        folder: the trial's folder.
        clients: the clients' ids.
        stored: the last round in which each client stored something, as far as it is known. None: it is not known.

    Raises:
        StorageError: charges are lost.
    """
    found = {}
    for client in clients:
        own = folder / "clients" / str(client)
        read_index(own, (stored or {}).get(client))
        found[client] = sum_by_mechanism(read_ledger(own).charges)
    return found


def example_level_guarantee(
    how: DPSGD, plan: PrivacyPlan, spent: Mapping[int, Sequence[Mechanism]], *, pooled: bool
) -> PrivacyGuarantee:
    """Returns the guarantee for the examples of a trial.

    Args:
        how: settings of the budgets and of DP-SGD.
        plan: each client's noise.
        spent: the mechanisms that each client was charged for.
        pooled: see `PrivacyGuarantee`.
    """
    costs = [account(each, how.delta, how.accountant) for each in spent.values()]
    worst = max(costs, key=lambda cost: cost.epsilon)
    return PrivacyGuarantee(
        epsilon=worst.epsilon if math.isfinite(worst.epsilon) else None,
        target=how.epsilon,
        delta=how.delta,
        accountant=worst.accountant,
        noise_multiplier=(min(plan.noise_multiplier.values()), max(plan.noise_multiplier.values())),
        max_grad_norm=how.max_grad_norm,
        steps=max(sum(steps for _, _, steps in each) for each in spent.values()),
        reproducible_noise=how.reproducible_noise,
        pooled=pooled,
        accountant_note=worst.note,
    )
