"""Checks before training: everything that differential privacy does not cover is refused."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from genfed.core.aggregate import list_groups, select_means
from genfed.core.errors import GenfedError, first_line
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase, flatten_phases
from genfed.core.schedule import Schedule, list_upload_phases
from genfed.privacy.independence import check_independent
from genfed.privacy.per_example_gradients import check_layers, check_trained
from genfed.privacy.plan import check_client_plan, count_charged_rounds, expected_participants
from genfed.privacy.randomness import require_privacy
from genfed.privacy.settings import DPFedAvg
from genfed.training.classifier import Training
from genfed.training.fit import Objective, cross_entropy

log = logging.getLogger(__name__)


# Example level.


def check_example_level(
    methods: Mapping[str, Method[Any]], networks: Iterable[TrainedNetwork], precision: str, x: Tensor | None = None
) -> None:
    """Refuses what DP-SGD does not cover.

    Args:
        methods: the methods of the run, by label.
        networks: the networks that clients train on their examples.
        precision: precision of clients' arithmetic.
        x: two examples, as a network takes them. Networks of other shapes get noise instead. None: noise for all.

    Raises:
        GenfedError: Opacus is missing, or DP-SGD does not support a method, a network or the precision.
    """
    require_privacy("[privacy]")
    check_precision(precision)
    for label, method in methods.items():
        check_method(label, method)
    sizes = list_batch_sizes(methods.values())
    for each in networks:
        check_network(each, x, sizes)


def list_batch_sizes(methods: Iterable[Method[Any]]) -> list[int]:
    """Returns the different batch sizes of the trainings that these methods declare."""
    declared = [
        training for method in methods for each in (method.private_trainings() or {}).values() for training in each
    ]
    return sorted({training.batch_size for training in declared if training.epochs})


def check_precision(precision: str) -> None:
    """Refuses mixed precision.

    Raises:
        GenfedError: the precision is not "float32".
    """
    if precision != "float32":
        raise GenfedError(f'compute.precision = "{precision}": under [privacy] only "float32" is allowed')


def check_method(label: str, method: Method[Any]) -> None:
    """Refuses a method whose clients use their examples in ways that DP-SGD does not cover.

    Raises:
        GenfedError: the method does so, or does not declare what its clients train.
    """
    declared = method.private_trainings()
    working = {phase.name: phase for phase in flatten_phases(method.phases()) if phase.work is not None}
    if declared is None or not _declared(type(method), working):
        what = (
            f"its clients upload {method.unprotected_upload}"
            if method.unprotected_upload
            else "it does not declare what its clients train (Method.private_trainings)"
        )
        hint = '; set privacy.kind = "dp_sum"' if any(phase.noise_scales for phase in working.values()) else ""
        raise GenfedError(f"{label} cannot be run under [privacy]: {what}, which DP-SGD does not cover{hint}")
    if missing := working.keys() - declared.keys():
        raise GenfedError(
            f"{label} cannot be run under [privacy]: it does not declare what phase {min(missing)!r} trains"
        )
    for name in type(method).__dataclass_fields__:  # type: ignore[attr-defined]
        training = getattr(method, name)
        if isinstance(training, Training) and training.augmentation != "none":
            raise GenfedError(
                f'method.{label}.{name}.augmentation = "{training.augmentation}": [privacy] allows only "none"'
            )


def _declared(cls: type[Any], working: Mapping[str, Phase[Any]]) -> bool:
    """Returns whether `private_trainings` still describes the method: no subclass of the class that defines it has its
    own `phases` or work.
    """
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


def check_network(each: TrainedNetwork, x: Tensor | None = None, batch_sizes: Sequence[int] = ()) -> None:
    """Refuses a network that cannot be trained by DP-SGD.

    Args:
        each: the network.
        x: see `check_example_level`.
        batch_sizes: sizes of the batches of its trainings, which are tried besides small ones.

    Raises:
        GenfedError: the reason.
    """
    network = each.network.train()
    device = next(network.parameters()).device
    if x is None or x.shape[1:] != each.task.shape:
        x = torch.rand(2, *each.task.shape, generator=torch.Generator().manual_seed(0))
    x, y = x.to(device), torch.arange(2, device=device) % len(each.task.classes)
    try:
        check_layers(network)
    except GenfedError as error:
        raise GenfedError(f"{each.name} cannot be trained under [privacy]: {error}; {each.remedy}") from None
    objectives = each.objectives
    try:
        if not objectives:
            objectives = [
                Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), 0.1), network=network)
            ]
        for objective in objectives:
            if objective.sees_data:
                check_trained(objective, x, y)
                check_independent(objective, x, y, batch_sizes)
    except GenfedError as error:
        raise GenfedError(f"{each.name} cannot be trained under [privacy]: {first_line(error)}") from None


# Client level.


def check_client_level(
    how: DPFedAvg, schedules: Mapping[str, Schedule], minimum_group: int | None, *, warns: bool
) -> None:
    """Refuses methods and settings that client-level privacy does not cover, and runs that would exceed the budget.

    Args:
        how: settings of client-level privacy.
        schedules: the schedule of each federated method, by label.
        minimum_group: smallest number of clients in a sum of secure aggregation. None: the server adds the noise.
        warns: whether to warn if clients add more noise than is needed.

    Raises:
        GenfedError: Opacus is missing, a method or setting is not supported, or a run would exceed the budget.
    """
    require_privacy('[privacy] kind = "dp_fedavg"')
    if minimum_group and how.adaptive:
        raise GenfedError(
            "privacy.adaptive with [secure_aggregation]: the server cannot count the updates that were clipped"
        )
    if minimum_group and how.secret_sampling:
        raise GenfedError(
            "privacy.secret_sampling with [secure_aggregation]: clients must know which clients' masks are in a sum"
        )
    for label, schedule in schedules.items():
        if how.secret_sampling and schedule.fraction == 1:
            raise GenfedError(
                "privacy.secret_sampling: federation.client_fraction = 1 selects every client; set it lower"
            )
        for phase in list_upload_phases(schedule.method):
            if (why := reason_to_refuse(phase, how)) is not None:
                raise GenfedError(f"{label} cannot be run under client-level privacy: in phase {phase.name} {why}")
        try:
            noise = check_client_plan(label, how, schedule)
            if minimum_group and warns:
                _warn_of_noise(label, minimum_group, schedule)
            if how.adaptive and count_charged_rounds(how, schedule) != 0:
                selected = len(schedule.participants("", 0))
                how.adaptive.on_updates(noise, expected_participants(how, schedule, selected))
        except GenfedError as error:
            raise GenfedError(f"{label}: {error}") from None


def _warn_of_noise(label: str, least: int, schedule: Schedule) -> None:
    """Warns if clients add much more noise than is needed, since `least` is far below the size of every sum."""
    sums = [
        Counter(name for info in clients for name in list_groups(phase.aggregate, info))
        for phase, clients in schedule.different_uploads()
    ]
    smallest = min((count for each in sums for count in each.values()), default=0)
    if (times := math.sqrt(smallest / least)) > 1.5:
        log.warning(
            "secure_aggregation.minimum_group = %d: the noise of this number of clients must be enough, so the %d "
            "clients of %s add %.1f times the noise that is needed; set it to the number of clients that you can rely "
            "on to answer",
            least, smallest, label, times,
        )  # fmt: skip


def reason_to_refuse(phase: Phase[Any], how: DPFedAvg) -> str | None:
    """Returns the reason why the uploads of a phase cannot be protected. None: they can be, or there are none."""
    means = select_means(phase.aggregate)
    for name, aggregate in phase.aggregate.items():
        if name not in means and aggregate.linear:
            return f"the server adds up {name}, and a client's share of that sum has no bound"
        if name not in means:
            return f"the server uses each client's {name} by itself, and only means of clipped updates get noise"
        if how.secret_sampling and name not in (field.name for field in fields(phase.wire_types.sent)):
            return f"{name} is not sent, so secret_sampling has nothing to release in a round without a client"
    return None
