"""The noise of a trial. It is planned once before the first round, and stored."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.files import make_folder
from genfed.core.privacy import DeclaredTraining
from genfed.core.record import load, save
from genfed.core.schedule import Schedule
from genfed.privacy.accounting import UNKNOWN_COST, Mechanism, account, epsilon, fits_budget, noise_for
from genfed.privacy.dp_sgd import plan_batches
from genfed.privacy.settings import DPSGD, RoundNoise

log = logging.getLogger(__name__)
PLAN = "privacy.safetensors"


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise of a trial."""

    noise_multiplier: dict[int, float]
    """Noise multiplier by client. Under client-level privacy, all clients have the same one."""

    @property
    def common_multiplier(self) -> float:
        """The one noise multiplier under client-level privacy."""
        return next(iter(self.noise_multiplier.values()))

    def client_std(self, clip: float, smallest_sum: int) -> float:
        """Returns the standard deviation of the noise that each client adds.

        Args:
            clip: the L2 norm to which updates are clipped.
            smallest_sum: the smallest number of clients whose noise together must be enough.
        """
        return self.common_multiplier / math.sqrt(smallest_sum) * clip


def settle_plan(folder: Path, how: DPSGD | RoundNoise, schedule: Schedule) -> PrivacyPlan:
    """Returns the noise of the trial in `folder`. The first call plans and stores it; later calls read it.

    Raises:
        GenfedError: no noise is enough, or the noise must be computed and the rounds are not known in advance.
    """
    file = folder / PLAN
    if not file.exists():
        if not isinstance(how, DPSGD):
            noise = plan_client_noise(how, schedule)
            found = {info.id: noise for info in schedule.clients}
        else:
            found = plan_example_noise(how, schedule)
        make_folder(folder)
        save(PrivacyPlan(found), file)
    return load(PrivacyPlan, file)


# Example level.


def plan_example_noise(how: DPSGD, schedule: Schedule) -> dict[int, float]:
    """Returns each client's noise multiplier: the one that is set, or the smallest that its trainings allow. A client
    whose examples are at another site is not included.

    Raises:
        GenfedError: see `settle_plan`.
    """
    if how.noise_multiplier is not None:
        return {info.id: how.noise_multiplier for info in schedule.clients}
    known: dict[tuple[int, tuple[tuple[DeclaredTraining, int], ...]], float] = {}
    found, ahead = {}, count_trainings(schedule)
    for info in schedule.clients:
        if not info.examples:
            continue
        key = (info.examples, tuple(sorted(ahead[info.id].items(), key=str)))
        if key not in known:
            known[key] = noise_for(_rates_and_steps(ahead[info.id], info.examples), how)
        found[info.id] = known[key]
    return found


def count_trainings(schedule: Schedule) -> dict[int, Counter[DeclaredTraining]]:
    """Returns by client how often it does each training, over all phases and the rounds that it takes part in.

    Raises:
        GenfedError: the number of rounds of a phase is not known in advance.
    """
    if unplanned := schedule.open_ended_phases():
        raise GenfedError(
            f"phase {unplanned[0].name!r} decides how many rounds it has only when it begins, so no noise can be "
            "computed from privacy.epsilon; set privacy.noise_multiplier"
        )
    declared = schedule.method.private_trainings() or {}
    found: dict[int, Counter[DeclaredTraining]] = {info.id: Counter() for info in schedule.clients}
    for phase, clients in schedule.rounds():
        for info in clients:
            found[info.id].update(declared.get(phase.name, ()))
    return found


def estimate_cost(how: DPSGD, schedule: Schedule, client: int) -> list[Mechanism]:
    """Returns the mechanisms that a client is charged for over all rounds. Empty: not known in advance. Writes no file.

    Raises:
        GenfedError: see `settle_plan`.
    """
    if how.noise_multiplier is not None and schedule.open_ended_phases():
        return []
    ahead = _count_mechanisms(how, schedule, client)
    return ahead if fits_budget(ahead, how) else []  # the client stops earlier; when is not known


def limit_cost(how: DPSGD, schedule: Schedule, client: int) -> list[Mechanism]:
    """Returns mechanisms that cost at least what a client was charged for, if no round was repeated: all that is
    planned, or a cost without bound where the rounds are not known in advance.

    Raises:
        GenfedError: see `settle_plan`.
    """
    return [UNKNOWN_COST] if schedule.open_ended_phases() else _count_mechanisms(how, schedule, client)


def _count_mechanisms(how: DPSGD, schedule: Schedule, client: int) -> list[Mechanism]:
    info = next(info for info in schedule.clients if info.id == client)
    trainings = _rates_and_steps(count_trainings(schedule)[client], info.examples)
    noise = noise_for(trainings, how) if how.noise_multiplier is None else how.noise_multiplier
    return [(noise, rate, steps) for rate, steps in trainings]


def check_example_plan(label: str, how: DPSGD, schedule: Schedule) -> None:
    """Plans the noise and the cost of a trial before training, writes no file, and warns if another accountant than the
    one that is set must compute the cost.

    Raises:
        GenfedError: see `settle_plan`; the label of the method is named.
    """
    try:
        noise = plan_example_noise(how, schedule)
        ahead = {} if schedule.open_ended_phases() else count_trainings(schedule)
    except GenfedError as error:
        raise GenfedError(f"{label}: {error}") from None
    costs = {
        tuple((noise[info.id], rate, steps) for rate, steps in _rates_and_steps(ahead[info.id], info.examples))
        for info in schedule.clients
        if info.id in noise and info.id in ahead and info.examples
    }
    _warn_of_accountant(label, how, costs)


def _warn_of_accountant(label: str, how: DPSGD | RoundNoise, costs: Iterable[Sequence[Mechanism]]) -> None:
    """Warns of the first of these costs that the accountant of the settings cannot compute."""
    for mechanisms in costs:
        if note := account(mechanisms, how.delta, how.accountant).note:
            log.warning(
                'privacy.accountant = "%s": %s, so the ε of %s comes from RDP, which is larger; more noise or fewer '
                "steps would change that",
                how.accountant, note, label,
            )  # fmt: skip
            return


def check_reported(
    said: Sequence[Mechanism], planned: PrivacyPlan, how: DPSGD, schedule: Schedule, client: int
) -> None:
    """Refuses mechanisms that a client cannot have been charged for: with another noise, or at the sampling rate of no
    training that the method declares. What it refuses is never computed, whatever it would need.

    Raises:
        GenfedError: a mechanism is none of these.
    """
    info = next(info for info in schedule.clients if info.id == client)
    declared = (schedule.method.private_trainings() or {}).values()
    rates = [plan_batches(training, info.examples)[0] for trainings in declared for training in trainings]
    noise = planned.noise_multiplier[client]
    for multiplier, rate, _ in said:
        if not (math.isclose(multiplier, noise, rel_tol=1e-3) and any(math.isclose(rate, each) for each in rates)):
            raise GenfedError(
                f"it reports a noise multiplier of {multiplier:g} at a sampling rate of {rate:g}, which is not planned"
            )


def _rates_and_steps(trainings: Mapping[DeclaredTraining, int], examples: int) -> list[tuple[float, int]]:
    planned = [(*plan_batches(training, examples), times) for training, times in trainings.items()]
    return [(rate, steps * times) for rate, steps, times in planned]


# Client level.


def plan_client_noise(how: RoundNoise, schedule: Schedule) -> float:
    """Returns the noise multiplier of all clients: the one that is set, or the smallest that their rounds allow.

    Raises:
        GenfedError: the noise must be computed and the rounds are not known in advance, or the noise that is set
            exceeds the budget.
    """
    rounds, rate = count_charged_rounds(how, schedule), sampling_rate(how, schedule.fraction)
    if how.noise_multiplier is None:
        if rounds is None:
            raise GenfedError(
                "the number of rounds is not known in advance, so no noise can be computed from privacy.epsilon; "
                "set privacy.noise_multiplier"
            )
        return noise_for([(rate, rounds)], how)
    if rounds and not fits_budget(spent := [(how.noise_multiplier, rate, rounds)], how):
        came = epsilon(spent, how.delta, how.accountant)
        raise GenfedError(
            f"privacy.epsilon = {how.epsilon:g}: with noise_multiplier = {how.noise_multiplier:g}, {rounds} "
            f"rounds cost a client ε = {came:.2f}; set fewer rounds or more noise"
        )
    return how.noise_multiplier


def check_client_plan(label: str, how: RoundNoise, schedule: Schedule) -> float:
    """Plans the noise and the cost of a trial before training, and warns as `check_example_plan` does. Returns the
    noise multiplier.

    Raises:
        GenfedError: see `plan_client_noise`.
    """
    noise, rounds = plan_client_noise(how, schedule), count_charged_rounds(how, schedule)
    _warn_of_accountant(label, how, [[(noise, sampling_rate(how, schedule.fraction), rounds or 0)]])
    return noise


def count_charged_rounds(how: RoundNoise, schedule: Schedule) -> int | None:
    """Returns the largest number of rounds that a client is charged for. None: not known in advance."""
    if any(phase.aggregate for phase in schedule.open_ended_phases()):
        return None
    uploads = [clients for _, clients in schedule.uploads()]
    if how.secret_sampling:
        return len(uploads)
    return max(Counter(info.id for clients in uploads for info in clients).values(), default=0)


def sampling_rate(how: RoundNoise, fraction: float) -> float:
    """Returns the sampling rate of the subsampled Gaussian mechanism that a charged client pays for in a round."""
    # differs from the paper, except with secret_sampling: sampling does not reduce the cost. The seed, which clients
    # know, decides which of them take part. So a round is a full Gaussian mechanism for its clients, and costs the
    # others nothing.
    return fraction if how.secret_sampling else 1.0


def expected_participants(how: RoundNoise, schedule: Schedule, selected: int) -> float:
    """Returns the number of clients in a round: `selected`, or the expected number where selection is secret."""
    return schedule.fraction * len(schedule.clients) if how.secret_sampling else selected
