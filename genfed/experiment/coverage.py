"""Warnings before training of classes and clients that a run never sees, or does not protect."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from genfed.config.settings import Config
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.schedule import Schedule, list_upload_phases
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


def describe_single_holders(config: Config, shards: FederatedData) -> Iterator[str]:
    """Yields a line on the classes of which one client alone has examples, where masks should hide what single clients
    add to sums by class.
    """
    if config.secure_aggregation is None:
        return
    sums = [label for label, method in config.method.items() if any(p.by_class for p in list_upload_phases(method))]
    if not sums:
        return
    classes = shards.task.classes
    counts = [torch.bincount(shards.train.y[a:b], minlength=len(classes)) for a, b in shards.ranges]
    holders = (torch.stack(counts) > 0).sum(0)
    if alone := [show(name) for name, n in zip(classes, holders.tolist(), strict=True) if n == 1]:
        yield (
            f"of class {list_some(alone)} one client has all examples: masks do not hide what it adds up of them in "
            f"{', '.join(sums)}, since no other client adds to these sums"
        )


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
