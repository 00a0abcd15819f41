"""Refuses before training what DP-SGD does not cover."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, first_line
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase, flatten_phases
from genfed.core.task import Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment.trial import new_server
from genfed.generators.generator import GeneratorNetwork
from genfed.privacy.accounting import warn_of_weak_privacy
from genfed.training.classifier import Training
from genfed.training.fit import Objective, cross_entropy


def check(
    config: Config,
    task: Task,
    clients: Sequence[ClientInfo],
    new_network: NewNetwork,
    x: torch.Tensor | None = None,
) -> None:
    """Refuses before training what differential privacy does not cover. `x`: two examples, as a network takes them;
    None: noise stands for them. A site's own architecture is tried at the site (`check_architecture`).

    Raises:
        GenfedError: Opacus is missing, or a method, architecture, generator or setting that does not go with it.
    """
    if (privacy := config.privacy) is None:
        return
    from genfed.privacy.per_example_gradients import _opacus

    _opacus()
    check_precision(config.compute.precision)
    most = max(info.examples for info in clients)
    warn_of_weak_privacy(privacy, most, f"a client has {most} examples", "an example")
    for label, method in config.method.items():
        check_method(label, method)
    for name in sorted({info.architecture for info in clients if x is not None or not info.personal}):
        check_architecture(name, task, new_network, x)
    for method in config.method.values():
        server = new_server(task, tuple(clients), config.compute, new_network, 0, 0, "check")
        for each in method.trained_networks(server):
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


def check_architecture(name: str, task: Task, new_network: NewNetwork, x: torch.Tensor | None = None) -> None:
    """Refuses a classifier that cannot be trained by DP-SGD; `x` as in `check`.

    Raises:
        GenfedError: says why.
    """
    network = new_network(name, task, torch.Generator().manual_seed(0))
    _check(f"architecture {name}", TrainedNetwork(f"architecture {name}", network, task), x, _grouped(name))


def check_method(label: str, method: Method[Any]) -> None:
    """Refuses a method whose clients use their examples in ways that DP-SGD does not cover.

    Raises:
        GenfedError: it does, or does not say.
    """
    uses = method.private_trainings()
    working = {phase.name: phase for phase in flatten_phases(method.phases()) if phase.work is not None}
    if uses is None or not _declared(type(method), working):
        what = (
            f"its clients upload {method.unprotected_upload}"
            if method.unprotected_upload
            else "it does not say what its clients train (Method.private_trainings)"
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
    return all(place(name) >= place("private_trainings") for name in names)


def _check(what: str, each: TrainedNetwork, x: torch.Tensor | None, instead: str) -> None:
    from genfed.privacy.per_example_gradients import check_alone, check_layers, check_trained

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
            players = [player for player in network.train().objectives() if player.sees_data]
        else:
            players = [
                Objective(cross_entropy(network), torch.optim.SGD(network.train().parameters(), 0.1), network=network)
            ]
            check_alone(network, x)
        for player in players:
            check_trained(player, x, y)
    except GenfedError as error:
        raise GenfedError(f"{what} cannot be trained under [privacy]: {first_line(error)}") from None


def _grouped(name: str) -> str:
    other = f"{name.removesuffix('-bn')}-gn"
    return f'use "{other}"' if other in Architectures().names() else "put nn.GroupNorm in its place"
