"""Example-level differential privacy of a trial: the clients' budgets, and the guarantee that follows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.privacy import DeclaredTraining
from genfed.core.record import load, save
from genfed.engines.client_storage import UNSETTLED
from genfed.privacy.accounting import Mechanism, account, fits_budget
from genfed.privacy.dp_sgd import DPSGDTrainer, plan_batches
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.ledger import Charge, Ledger, sum_by_mechanism
from genfed.privacy.plan import PrivacyPlan
from genfed.privacy.randomness import os_randomness, seeded_randomness
from genfed.privacy.settings import DPSGD

LEDGER = "ledger.safetensors"


class TrialBudget:
    """The privacy budgets of a trial's clients; a `core.privacy.BudgetKeeper`."""

    def __init__(
        self,
        how: DPSGD,
        plan: PrivacyPlan,
        declared: Mapping[str, Sequence[DeclaredTraining]],
        seed: int,
        examples: Mapping[int, int],
        charge_site: Callable[[tuple[Charge, ...]], None] | None = None,
    ) -> None:
        """Prepares the budgets before the first round.

        Args:
            how: settings of the budgets and of DP-SGD.
            plan: each client's noise.
            declared: the trainings of each phase.
            seed: seed of the run, for noise that tests can repeat.
            examples: number of each client's examples.
            charge_site: called with new charges before they are in a client's ledger; raises to refuse them. If the
                process is killed between the two, the site is charged twice. None: no budget of a site.
        """
        self._how, self._plan, self._declared, self._seed, self._examples = how, plan, declared, seed, examples
        self._charge_site = charge_site

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int) -> DPSGDTrainer:
        """See `core.privacy.BudgetKeeper`."""
        declared = [training for training in self._declared.get(phase, ()) if training.epochs]
        noise, examples = self._plan.noise_multiplier[client], self._examples[client]
        if declared:
            planned = [plan_batches(training, examples) for training in declared]
            self.charge(folder, tuple(Charge(phase, round_, step, rate, noise, steps) for rate, steps in planned))
        fixed = self._how.reproducible_noise
        draws = seeded_randomness(self._seed, phase, round_, client) if fixed else os_randomness()
        return DPSGDTrainer(self._how.max_grad_norm, noise, draws, declared)

    def charge(self, folder: Path, more: tuple[Charge, ...]) -> None:
        """Adds charges to the ledger in a client's folder, unless they are its last ones and no result of that work has
        left the client.

        Raises:
            GenfedError: the charges exceed the budget of the client or of the site; nothing is charged.
        """
        ledger = read_ledger(folder)
        if (folder / UNSETTLED).exists() and ledger.charged(more):
            return
        ledger = Ledger((*ledger.charges, *more))
        if not fits_budget(sum_by_mechanism(ledger.charges), self._how):
            raise GenfedError(f"another round would exceed its privacy budget of ε = {self._how.epsilon:g}")
        if self._charge_site is not None:
            self._charge_site(more)
        folder.mkdir(parents=True, exist_ok=True)
        save(ledger, folder / LEDGER)
        (folder / UNSETTLED).touch()


def read_ledger(folder: Path) -> Ledger:
    """Returns the ledger in a client's folder. A missing file is an empty ledger."""
    return load(Ledger, folder / LEDGER) if (folder / LEDGER).exists() else Ledger()


def read_charges(folder: Path, clients: Iterable[int]) -> dict[int, list[Mechanism]]:
    """Returns the mechanisms that each of these clients was charged for; `folder` is the trial's."""
    return {client: sum_by_mechanism(read_ledger(folder / "clients" / str(client)).charges) for client in clients}


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
