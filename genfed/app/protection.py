"""Example-level differential privacy of a trial: what is refused, the noise that its plan needs, clients' budgets."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genfed.app import central, registry
from genfed.app.accounting import Mechanism, epsilon, holds, noise_for, warn
from genfed.app.config import Config
from genfed.app.trial import Trial, new_server
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Method, Phase, Task, Trained, leaves, rounds_ahead
from genfed.core.privacy import Charge, Ledger, Private, Use, steps_by_mechanism
from genfed.core.record import load, save
from genfed.data.checks import reason
from genfed.engines.site import UNSETTLED
from genfed.generators.generator import GeneratorNetwork
from genfed.learn.fit import Player, cross_entropy
from genfed.learn.training import Training
from genfed.report.results import Protection

LEDGER, PLAN = "ledger.safetensors", "privacy.safetensors"


@dataclass(frozen=True)
class Plan:
    """What was settled before the first round: each client's noise multiplier."""

    noise_multiplier: dict[int, float]


def planned(trial: Trial) -> dict[int, Counter[Use]]:
    """By client: how often each training will be done, over all phases and the rounds that it takes part in.

    Raises:
        GenfedError: the rounds of a phase are not known in advance.
    """
    uses = trial.method.uses() or {}
    found: dict[int, Counter[Use]] = {info.id: Counter() for info in trial.shards.clients}
    sample = 1.0 if trial.method.pooled else trial.federation.sample
    if (phase := _unplanned(trial)) is not None:
        raise GenfedError(
            f"{trial.label}: how many rounds phase {phase.name!r} has is known only when it begins, so "
            "privacy.epsilon cannot be planned for; set privacy.noise_multiplier"
        )
    for phase, asked in rounds_ahead(trial.method, trial.shards.clients, sample, trial.seed):
        for info in asked:
            found[info.id].update(uses.get(phase.name, ()))
    return found


def prepare(trial: Trial) -> Plan | None:
    """Settles the noise of a trial once, and writes it down for every process and resume; None: no privacy."""
    if trial.privacy is None:
        return None
    file = trial.folder / PLAN
    if not file.exists():
        noise = trial.privacy.noise_multiplier
        if noise is None:
            found: dict[tuple[int, tuple[tuple[Use, int], ...]], float] = {}
            noises = {}
            ahead = planned(trial)
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
        save(Plan(noises), file)
    return load(Plan, file)


def planned_cost(trial: Trial, client: int) -> list[Mechanism]:
    """What all rounds of the trial will cost a client; nothing is written. Empty: no privacy, or it is not known.

    Raises:
        GenfedError: no noise suffices, or the rounds of a phase are not known in advance and the noise must be found.
    """
    info = next(info for info in trial.shards.clients if info.id == client)
    if trial.privacy is None or (trial.privacy.noise_multiplier is not None and _unplanned(trial)):
        return []
    trainings = _trainings(planned(trial)[client], info.examples)
    noise = trial.privacy.noise_multiplier
    if noise is None:
        noise = noise_for(trainings, trial.privacy)
    ahead = [(noise, rate, steps) for rate, steps in trainings]
    return ahead if holds(ahead, trial.privacy) else []  # the client will stop before, where is not known


def _trainings(uses: Mapping[Use, int], examples: int) -> list[tuple[float, int]]:
    """(rate, steps) of each use, done so often, on so many examples."""
    return [(use.rate(examples), use.steps(examples) * times) for use, times in uses.items()]


def _unplanned(trial: Trial) -> Phase[Any] | None:
    """A phase of which it is known only when it begins how many rounds it has; None: there is none."""
    return next((phase for phase in leaves(trial.method.phases()) if callable(phase.rounds)), None)


class Budgets:
    """The clients' budgets of a trial; a `core.privacy.Guard`."""

    def __init__(self, trial: Trial) -> None:
        plan, uses = prepare(trial), trial.method.uses()
        assert plan is not None
        assert trial.privacy is not None
        assert uses is not None
        self._plan, self._uses, self._privacy, self._seed = plan, uses, trial.privacy, trial.seed
        self._examples = {info.id: info.examples for info in trial.shards.clients}

    def admit(self, client: int, folder: Path, phase: str, round_: int, step: int) -> Private:
        """See `core.privacy.Guard`."""
        uses = [use for use in self._uses.get(phase, ()) if use.epochs]
        noise, n = self._plan.noise_multiplier[client], self._examples[client]
        if uses:
            self.charge(folder, tuple(Charge(phase, round_, step, use.rate(n), noise, use.steps(n)) for use in uses))
        from genfed.learn.dpsgd import repeatable, unforeseeable

        fixed = self._privacy.reproducible_noise
        draws = repeatable(self._seed, phase, round_, client) if fixed else unforeseeable()
        return Private(self._privacy.max_grad_norm, noise, draws, uses)

    def charge(self, folder: Path, more: tuple[Charge, ...]) -> None:
        """Puts these on the ledger in a client's folder, unless they are its last and nothing of that work has left.

        Raises:
            GenfedError: the budget does not hold them.
        """
        ledger = ledger_in(folder)
        if (folder / UNSETTLED).exists() and ledger.charged(more):
            return
        ledger = Ledger((*ledger.charges, *more))
        if not holds(steps_by_mechanism(ledger.charges), self._privacy):
            raise GenfedError(f"its privacy budget of ε = {self._privacy.epsilon:g} does not hold another round")
        self.keep(folder, ledger, more)
        (folder / UNSETTLED).touch()

    def keep(self, folder: Path, ledger: Ledger, more: tuple[Charge, ...]) -> None:
        """Puts a ledger with new charges on the disk."""
        folder.mkdir(parents=True, exist_ok=True)
        save(ledger, folder / LEDGER)


def ledger_in(folder: Path) -> Ledger:
    """What was charged to the client whose folder it is."""
    return load(Ledger, folder / LEDGER) if (folder / LEDGER).exists() else Ledger()


def spent_in(trial: Trial) -> dict[int, list[Mechanism]]:
    """What was charged to each client whose folder is here."""
    folder = trial.folder / "clients"
    return {info.id: steps_by_mechanism(ledger_in(folder / str(info.id)).charges) for info in trial.shards.clients}


def protection_of(trial: Trial, spent: Mapping[int, Sequence[Mechanism]]) -> Protection | None:
    """What protects a trial, by what each client was charged; None: no privacy is asked for."""
    if trial.client_privacy is not None:
        return central.protection(trial)
    plan, privacy = prepare(trial), trial.privacy
    if plan is None or privacy is None:
        return None
    worst = max(epsilon(each, privacy.delta, privacy.accountant) for each in spent.values())
    return Protection(
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


def check(config: Config, task: Task, clients: Sequence[ClientInfo], x: torch.Tensor | None = None) -> None:
    """Refuses before training what differential privacy does not cover. `x`: two examples, as a network takes them;
    None: noise stands for them. A site's own architecture is tried at the site (`check_architecture`).

    Raises:
        GenfedError: Opacus is missing, or a method, architecture, generator or setting that does not go with it.
    """
    if (privacy := config.privacy) is None:
        return
    from genfed.learn.dpsgd import _opacus

    _opacus()
    check_precision(config.compute.precision)
    most = max(info.examples for info in clients)
    warn(privacy, most, f"a client has {most} examples", "an example")
    for label, method in config.method.items():
        check_method(label, method)
    for name in sorted({info.architecture for info in clients if x is not None or not info.personal}):
        check_architecture(name, task, x)
    for method in config.method.values():
        server = new_server(task, tuple(clients), config.compute, 0, 0, "check")
        for each in method.trained(server):
            words = (
                'set norm = "group" for it'
                if isinstance(each.network, GeneratorNetwork)
                else "nn.GroupNorm can stand there"
            )
            each.network.to(server.device)
            _check(each.name, each, x if each.task.shape == task.shape else None, words)


def check_precision(precision: str) -> None:
    """Refuses mixed precision.

    Raises:
        GenfedError: it is that.
    """
    if precision != "float32":
        raise GenfedError(f'compute.precision = "{precision}": under [privacy] "float32" alone is allowed')


def check_architecture(name: str, task: Task, x: torch.Tensor | None = None) -> None:
    """Refuses a classifier that cannot be trained by DP-SGD; `x` as in `check`.

    Raises:
        GenfedError: says why.
    """
    network = registry.new_network(name, task, torch.Generator().manual_seed(0))
    _check(f"architecture {name}", Trained(f"architecture {name}", network, task), x, _grouped(name))


def check_method(label: str, method: Method[Any]) -> None:
    """Refuses a method whose clients use their examples in ways that DP-SGD does not cover.

    Raises:
        GenfedError: it does, or does not say.
    """
    uses = method.uses()
    working = {phase.name: phase for phase in leaves(method.phases()) if phase.work is not None}
    if uses is None or not _declared(type(method), working):
        what = (
            f"its clients upload {method.bare}"
            if method.bare
            else "it does not say what its clients train (Method.uses)"
        )
        raise GenfedError(f"{label} cannot be run under [privacy]: {what}, which DP-SGD does not cover")
    if unsaid := working.keys() - uses.keys():
        raise GenfedError(f"{label} cannot be run under [privacy]: it does not say what phase {min(unsaid)!r} trains")
    for name in type(method).__dataclass_fields__:  # type: ignore[attr-defined]
        training = getattr(method, name)
        if isinstance(training, Training) and training.augmentation != "none":
            raise GenfedError(
                f'method.{label}.{name}.augmentation = "{training.augmentation}": "none" alone goes with [privacy]'
            )


def _declared(cls: type[Any], working: Mapping[str, Phase[Any]]) -> bool:
    """Whether whoever declares `uses` knew the phases and the work: no class below it brings its own."""
    order = cls.__mro__

    def place(name: str) -> int:
        return next(i for i, each in enumerate(order) if name in vars(each))

    names = ["phases"]
    for phase in working.values():
        work: Callable[..., Any] | None = phase.work
        name = getattr(work, "__name__", "")
        if getattr(work, "__self__", None) is None or not hasattr(cls, name):
            return False
        names.append(name)
    return all(place(name) >= place("uses") for name in names)


def _check(what: str, each: Trained, x: torch.Tensor | None, instead: str) -> None:
    from genfed.learn.dpsgd import check_alone, check_layers, check_trained

    network = each.network
    device = next(network.parameters()).device
    noise = torch.rand(2, *each.task.shape, generator=torch.Generator().manual_seed(0))
    x = (noise if x is None else x).to(device)
    y = torch.arange(2, device=device) % len(each.task.classes)
    try:
        check_layers(network)
    except GenfedError as error:
        raise GenfedError(f"{what} cannot be trained under [privacy]: {error}; {instead}") from None
    try:
        if isinstance(network, GeneratorNetwork):
            players = [player for player in network.train().players() if player.sees_data]
        else:
            players = [
                Player(cross_entropy(network), torch.optim.SGD(network.train().parameters(), 0.1), network=network)
            ]
            check_alone(network, x)
        for player in players:
            check_trained(player, x, y)
    except GenfedError as error:
        raise GenfedError(f"{what} cannot be trained under [privacy]: {reason(error)}") from None


def _grouped(name: str) -> str:
    other = f"{name.removesuffix('-bn')}-gn"
    return f'use "{other}"' if other in registry.architectures() else "put nn.GroupNorm in its place"
