"""Warnings before training of classes and clients that a run never sees, or does not protect."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from genfed.config.settings import Config
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.schedule import Schedule
from genfed.preprocessing.source_summary import list_some, show


def describe_missing_classes(shards: FederatedData) -> Iterator[str]:
    """Yields a line on the classes that are held out and that no client has examples of; none if there are none."""
    classes = shards.task.classes
    held, known = (torch.bincount(data.y, minlength=len(classes)) for data in (shards.held_out, shards.train))
    missing = [show(classes[c]) for c in ((known == 0) & (held > 0)).nonzero()[:, 0].tolist()]
    if missing:
        share = float(held[known == 0].sum() / held.sum())
        yield (
            f"no client has examples of class {list_some(missing)}: no method of the run can learn it, the ceiling "
            f"included, and {share:.0%} of the held-out examples are of it"
        )


def describe_single_holders(config: Config, shards: FederatedData, seed: int) -> Iterator[str]:
    """Yields lines on the classes of which one client alone has examples, among those that are selected together, where
    masks should hide what single clients add to sums by class.
    """
    if config.secure_aggregation is None:
        return
    methods = defaultdict[tuple[int, ...], list[str]](list)
    for label, method in config.method.items():
        schedule = Schedule(method, shards.clients, config.federation.client_fraction, seed)
        if alone := _find_single_holders(schedule, shards):
            methods[tuple(sorted(alone))].append(label)
    selected = "" if config.federation.client_fraction == 1 else ", of those that are selected for a round,"
    for classes, labels in methods.items():
        names = list_some([show(shards.task.classes[c]) for c in classes])
        yield (
            f"of class {names} one client{selected} has all examples: masks do not hide what it adds up of them in "
            f"{', '.join(labels)}, since no other client adds to these sums"
        )


def _find_single_holders(schedule: Schedule, shards: FederatedData) -> set[int]:
    """Returns the classes of which, in a round of sums by class, one selected client alone has examples."""
    classes = len(shards.task.classes)
    has = {
        info.id: torch.bincount(shards.train.y[start:stop], minlength=classes) > 0
        for info, (start, stop) in zip(shards.clients, shards.ranges, strict=True)
    }
    found: set[int] = set()
    for phase, clients in schedule.different_uploads():
        if phase.by_class:
            holders = torch.stack([has[info.id] for info in clients]).sum(0)
            found |= set((holders == 1).nonzero()[:, 0].tolist())
    return found


def describe_clients_never_asked(
    methods: Mapping[str, Method[Any]], shards: FederatedData, fraction: float, seed: int
) -> Iterator[str]:
    """Yields a line for each method that asks some clients only once, in one phase of one round; the others' examples
    never enter it.
    """
    for label, method in methods.items():
        schedule = Schedule(method, shards.clients, fraction, seed)
        rounds = list(schedule.uploads())
        times = Counter(phase.name for phase, _ in rounds)
        for phase, clients in rounds:
            if times[phase.name] == 1 and not callable(phase.rounds) and len(clients) < len(shards.clients):
                yield (
                    f"phase {phase.name} of {label} has one round, and federation.client_fraction = {fraction:g} "
                    f"selects {len(clients)} of {len(shards.clients)} clients for it: what the others have is not used"
                )
