"""Refuses before training settings, methods and clients that do not go together, where they protect or attack."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo, list_groups, select_means
from genfed.core.errors import GenfedError, require
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase
from genfed.core.schedule import Schedule, list_upload_phases
from genfed.core.task import Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment.trial import new_server
from genfed.privacy.accounting import warn_of_weak_privacy
from genfed.privacy.compatibility import check_client_level, check_example_level
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.protocol import reason_to_refuse_secure
from genfed.secure_aggregation.settings import SecureAggregation


def check_compatibility(config: Config, shards: FederatedData, seed: int) -> None:
    """Refuses before training what would fail in it, or would seem to protect and not do so.

    Raises:
        GenfedError: an attack on nothing, or a rule for a method that averages nothing or for too small groups.
    """
    federated = {label: method for label, method in config.method.items() if not method.pooled}
    if config.attack:
        _check_attack(config, shards, {label: list_upload_phases(method) for label, method in federated.items()})
    if config.aggregation:
        for label, method in federated.items():
            phases = list_upload_phases(method)
            if phases and not any(select_means(phase.aggregate) for phase in phases):
                kind = registry.name_of(registry.AGGREGATIONS, type(config.aggregation))
                fields = ", ".join(sorted({name for phase in phases for name in phase.aggregate}))
                raise GenfedError(
                    f"aggregation.kind = {kind!r}: the server of {label} averages nothing of what clients upload "
                    f"({fields}), so it would protect nothing; leave the method out, or [aggregation]"
                )
            _check_groups(label, config, method, shards, seed)
    if config.secure_aggregation:
        _check_secure(config, config.secure_aggregation, federated, shards, seed)


def _check_secure(
    config: Config, how: SecureAggregation, methods: Mapping[str, Method[Any]], shards: FederatedData, seed: int
) -> None:
    require("cryptography", extra="privacy", what="[secure_aggregation]")
    if config.example_privacy:
        raise GenfedError(
            "[secure_aggregation] with [privacy] is not built: its exchanges are not charged; leave one of them out"
        )
    if config.aggregation or config.attack:
        other = "aggregation" if config.aggregation else "attack"
        why = "looks at" if config.aggregation else "is simulated on"
        raise GenfedError(f"[secure_aggregation] hides single uploads, which [{other}] {why}: leave one of them out")
    for label, method in methods.items():
        for phase in list_upload_phases(method):
            if (reason := reason_to_refuse_secure(phase)) is not None:
                raise GenfedError(
                    f"[secure_aggregation]: phase {phase.name} of {label} cannot be aggregated securely: {reason}"
                )
        for phase, asked in Schedule(
            method, shards.clients, config.federation.client_fraction, seed
        ).different_uploads():
            for group, count in Counter(name for info in asked for name in list_groups(phase.aggregate, info)).items():
                if count < how.minimum_group:
                    raise GenfedError(
                        f"secure_aggregation.minimum_group = {how.minimum_group}: in phase {phase.name} of {label} "
                        f"a sum would be of {count} uploads{f' of architecture {group}' if group else ''}; have more "
                        "clients in a group or leave the method out"
                    )


def _check_attack(config: Config, shards: FederatedData, phases: Mapping[str, Sequence[Phase[Any]]]) -> None:
    attack = config.attack
    assert attack is not None
    known = {phase.name for each in phases.values() for phase in each}
    for name in attack.phases:
        if name not in known:
            raise GenfedError(registry.explain_unknown(name, known, "attack.phases: no method uploads in such a phase"))
    kind = registry.name_of(registry.ATTACKS, type(attack))
    if not known:
        raise GenfedError(f"attack.kind = {kind!r}: no method of the run uploads anything; leave [attack] out")
    for label, each in phases.items():
        met = [phase for phase in each if attack.targets_phase(phase)]
        if met and (why := attack.reason_to_refuse(shards.task, met)):
            raise GenfedError(f"attack.kind = {kind!r}: it cannot be made on {label}: {why}")


def _check_groups(label: str, config: Config, method: Method[Any], shards: FederatedData, seed: int) -> None:
    rule = config.aggregation
    assert rule is not None
    for phase, asked in Schedule(method, shards.clients, config.federation.client_fraction, seed).different_uploads():
        for name, mean in select_means(phase.aggregate).items():
            for group, count in Counter(mean.group(info) for info in asked).items():
                _check_group(rule, count, f"{label}, phase {phase.name}, {name}{f' of {group}' if group else ''}")


def _check_group(rule: AggregationRule, count: int, where: str) -> None:
    try:
        rule.check(count)
    except GenfedError as error:
        raise GenfedError(f"{where}: {error}") from None


def check_client_privacy(config: Config, clients: Sequence[ClientInfo], seed: int) -> None:
    """Refuses before training what client-level privacy does not cover, or a budget that would be passed.

    Raises:
        GenfedError: Opacus is missing, or a method or setting that does not go with it.
    """
    if (how := config.client_privacy) is None:
        return
    if config.aggregation is not None:
        raise GenfedError(
            'privacy.kind = "dp_fedavg" with [aggregation], which replaces the means that get the noise: leave one of '
            "them out"
        )
    first = seed == config.seeds[0]
    if first:
        warn_of_weak_privacy(how, len(clients), f"there are {len(clients)} clients", "a client")
    schedules = {
        label: Schedule(method, tuple(clients), config.federation.client_fraction, seed)
        for label, method in config.method.items()
        if not method.pooled
    }
    secure = config.secure_aggregation
    check_client_level(how, schedules, secure.minimum_group if secure else None, warns=first)


def check_example_privacy(
    config: Config,
    task: Task,
    clients: Sequence[ClientInfo],
    new_network: NewNetwork,
    x: torch.Tensor | None = None,
) -> None:
    """Refuses before training what example-level privacy does not cover. A site's own architecture is tried at the
    site, unless there are examples.

    Args:
        config: of the run.
        task: the task of the clients' examples.
        clients: of one seed.
        new_network: makes classifiers.
        x: two examples, as a network takes them. None: noise stands for them.

    Raises:
        GenfedError: Opacus is missing, or a method, architecture, generator or setting that does not go with it.
    """
    if (how := config.example_privacy) is None:
        return
    most = max(info.examples for info in clients)
    warn_of_weak_privacy(how, most, f"a client has {most} examples", "an example")

    def networks() -> Iterator[TrainedNetwork]:
        for name in sorted({info.architecture for info in clients if x is not None or not info.personal}):
            yield trained_classifier(name, task, new_network)
        for method in config.method.values():
            server = new_server(task, tuple(clients), config.compute, new_network, 0, 0, "check")
            yield from method.trained_networks(server)

    check_example_level(config.method, networks(), config.compute.precision, x)


def trained_classifier(architecture: str, task: Task, new_network: NewNetwork) -> TrainedNetwork:
    """Returns a new classifier, as differential privacy checks it."""
    network = new_network(architecture, task, torch.Generator().manual_seed(0))
    other = f"{architecture.removesuffix('-bn')}-gn"
    known = other in Architectures().names()
    remedy = f'use "{other}"' if known else "put nn.GroupNorm in its place"
    return TrainedNetwork(f"architecture {architecture}", network, task, remedy=remedy)
