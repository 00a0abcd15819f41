"""Example-level differential privacy of a trial: what is refused, the noise that its plan needs, clients' budgets."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.privacy import DeclaredTraining
from genfed.core.record import load, save
from genfed.engines.client_storage import UNSETTLED
from genfed.experiment.trial import Trial
from genfed.privacy import client_level
from genfed.privacy.accounting import Mechanism, epsilon, fits_budget, noise_for
from genfed.privacy.dp_sgd import DPSGDTrainer, plan_batches
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.ledger import Charge, Ledger, sum_by_mechanism
from genfed.privacy.randomness import os_randomness, seeded_randomness

LEDGER, PLAN = "ledger.safetensors", "privacy.safetensors"


@dataclass(frozen=True)
class NoisePlan:
    """What was settled before the first round: each client's noise multiplier."""

    noise_multiplier: dict[int, float]


def count_trainings(trial: Trial) -> dict[int, Counter[DeclaredTraining]]:
    """By client: how often each training will be done, over all phases and the rounds that it takes part in.

    Raises:
        GenfedError: the rounds of a phase are not known in advance.
    """
    uses = trial.method.private_trainings() or {}
    found: dict[int, Counter[DeclaredTraining]] = {info.id: Counter() for info in trial.shards.clients}
    if unplanned := trial.schedule.open_ended_phases():
        raise GenfedError(
            f"{trial.label}: how many rounds phase {unplanned[0].name!r} has is known only when it begins, so "
            "privacy.epsilon cannot be planned for; set privacy.noise_multiplier"
        )
    for phase, asked in trial.schedule.rounds():
        for info in asked:
            found[info.id].update(uses.get(phase.name, ()))
    return found


def settle_noise_by_client(trial: Trial) -> NoisePlan | None:
    """Settles the noise of a trial once, and writes it down for every process and resume; None: no privacy."""
    if trial.privacy is None:
        return None
    file = trial.folder / PLAN
    if not file.exists():
        noise = trial.privacy.noise_multiplier
        if noise is None:
            found: dict[tuple[int, tuple[tuple[DeclaredTraining, int], ...]], float] = {}
            noises = {}
            ahead = count_trainings(trial)
            for info in trial.shards.clients:
                if not info.examples:  # another's, at a site of its own
                    continue
                key = (info.examples, tuple(sorted(ahead[info.id].items(), key=str)))
                if key not in found:
                    found[key] = noise_for(_trainings(ahead[info.id], info.examples), trial.privacy)
                noises[info.id] = found[key]
        else:
            noises = {info.id: noise for info in trial.shards.clients}
        trial.folder.mkdir(parents=True, exist_ok=True)
        save(NoisePlan(noises), file)
    return load(NoisePlan, file)


def estimate_cost(trial: Trial, client: int) -> list[Mechanism]:
    """What all rounds of the trial will cost a client; nothing is written. Empty: no privacy, or it is not known.

    Raises:
        GenfedError: no noise suffices, or the rounds of a phase are not known in advance and the noise must be found.
    """
    info = next(info for info in trial.shards.clients if info.id == client)
    if trial.privacy is None or (trial.privacy.noise_multiplier is not None and trial.schedule.open_ended_phases()):
        return []
    trainings = _trainings(count_trainings(trial)[client], info.examples)
    noise = trial.privacy.noise_multiplier
    if noise is None:
        noise = noise_for(trainings, trial.privacy)
    ahead = [(noise, rate, steps) for rate, steps in trainings]
    return ahead if fits_budget(ahead, trial.privacy) else []  # the client will stop before, where is not known


def _trainings(uses: Mapping[DeclaredTraining, int], examples: int) -> list[tuple[float, int]]:
    """(rate, steps) of each use, done so often, on so many examples."""
    planned = [(*plan_batches(use, examples), times) for use, times in uses.items()]
    return [(rate, steps * times) for rate, steps, times in planned]


class TrialBudget:
    """The clients' budgets of a trial; a `core.privacy.BudgetKeeper`."""

    def __init__(self, trial: Trial) -> None:
        plan, uses = settle_noise_by_client(trial), trial.method.private_trainings()
        assert plan is not None
        assert trial.privacy is not None
        assert uses is not None
        self._plan, self._uses, self._privacy, self._seed = plan, uses, trial.privacy, trial.seed
        self._examples = {info.id: info.examples for info in trial.shards.clients}

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int) -> DPSGDTrainer:
        """See `core.privacy.BudgetKeeper`."""
        uses = [use for use in self._uses.get(phase, ()) if use.epochs]
        noise, n = self._plan.noise_multiplier[client], self._examples[client]
        if uses:
            planned = [plan_batches(use, n) for use in uses]
            self.charge(folder, tuple(Charge(phase, round_, step, rate, noise, steps) for rate, steps in planned))
        fixed = self._privacy.reproducible_noise
        draws = seeded_randomness(self._seed, phase, round_, client) if fixed else os_randomness()
        return DPSGDTrainer(self._privacy.max_grad_norm, noise, draws, uses)

    def charge(self, folder: Path, more: tuple[Charge, ...]) -> None:
        """Puts these on the ledger in a client's folder, unless they are its last and nothing of that work has left.

        Raises:
            GenfedError: the budget does not hold them.
        """
        ledger = read_ledger(folder)
        if (folder / UNSETTLED).exists() and ledger.charged(more):
            return
        ledger = Ledger((*ledger.charges, *more))
        if not fits_budget(sum_by_mechanism(ledger.charges), self._privacy):
            raise GenfedError(f"its privacy budget of ε = {self._privacy.epsilon:g} does not hold another round")
        self.keep(folder, ledger, more)
        (folder / UNSETTLED).touch()

    def keep(self, folder: Path, ledger: Ledger, more: tuple[Charge, ...]) -> None:
        """Puts a ledger with new charges on the disk."""
        folder.mkdir(parents=True, exist_ok=True)
        save(ledger, folder / LEDGER)


def read_ledger(folder: Path) -> Ledger:
    """What was charged to the client whose folder it is."""
    return load(Ledger, folder / LEDGER) if (folder / LEDGER).exists() else Ledger()


def read_charges(trial: Trial) -> dict[int, list[Mechanism]]:
    """What was charged to each client whose folder is here."""
    folder = trial.folder / "clients"
    return {info.id: sum_by_mechanism(read_ledger(folder / str(info.id)).charges) for info in trial.shards.clients}


def guarantee_of(trial: Trial, spent: Mapping[int, Sequence[Mechanism]]) -> PrivacyGuarantee | None:
    """What protects a trial, by what each client was charged; None: no privacy is asked for."""
    if trial.client_privacy is not None:
        return client_level.client_level_guarantee(trial)
    plan, privacy = settle_noise_by_client(trial), trial.privacy
    if plan is None or privacy is None:
        return None
    worst = max(epsilon(each, privacy.delta, privacy.accountant) for each in spent.values())
    return PrivacyGuarantee(
        epsilon=worst if math.isfinite(worst) else None,
        target=privacy.epsilon,
        delta=privacy.delta,
        accountant=privacy.accountant,
        noise_multiplier=(min(plan.noise_multiplier.values()), max(plan.noise_multiplier.values())),
        max_grad_norm=privacy.max_grad_norm,
        steps=max(sum(steps for _, _, steps in each) for each in spent.values()),
        reproducible_noise=privacy.reproducible_noise,
        pooled=trial.method.pooled,
    )
