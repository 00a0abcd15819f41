"""Checks before training: settings of protection and attack that do not fit the methods or clients are refused."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo, list_groups
from genfed.core.client import Server
from genfed.core.errors import GenfedError, first_line, require
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Phase
from genfed.core.schedule import Schedule, list_upload_phases
from genfed.core.task import Data, Task
from genfed.data.dataset import Source
from genfed.encoders.encoder import build_encoder
from genfed.encoders.shared import list_fixed_encoders
from genfed.engines.client_runner import NewNetwork
from genfed.experiment.trial import new_server
from genfed.privacy.accounting import warn_of_weak_privacy
from genfed.privacy.compatibility import check_client_level, check_example_level
from genfed.privacy.dp_sum import check_sum_level
from genfed.privacy.independence import check_features_independent
from genfed.privacy.plan import check_example_plan
from genfed.robustness.robust_mean import (
    AggregationRule,
    GroupedRule,
    describe_uncovered,
    find_replaced,
    list_uncovered,
)
from genfed.secure_aggregation.graph import check_neighbors
from genfed.secure_aggregation.protocol import reason_to_refuse_secure
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.training.pixels import normalize_pixels

log = logging.getLogger(__name__)


def check_compatibility(config: Config, shards: FederatedData, seed: int) -> None:
    """Refuses attacks, robust rules and secure aggregation that would fail during training, or would not protect.

    Args:
        config: the settings of the run.
        shards: the clients of one seed.
        seed: the seed.

    Raises:
        GenfedError: an attack without a target, a rule that would not protect a method, or a group that is too small.
    """
    federated = {label: method for label, method in config.method.items() if not method.pooled}
    if config.attack:
        _check_attack(config, shards, {label: list_upload_phases(method) for label, method in federated.items()})
    if config.aggregation:
        kind = registry.name_of(registry.AGGREGATIONS, type(config.aggregation))
        for label, method in federated.items():
            phases = list_upload_phases(method)
            _check_covered(label, phases, config.aggregation, kind)
            _check_groups(label, config, method, shards, seed)
            line = describe_uncovered(label, phases, config.aggregation, kind)
            if line and seed == config.seeds[-1]:  # once for all seeds
                log.warning("aggregation.kind = %r: one client can still spoil what is not averaged; %s", kind, line)
    if config.secure_aggregation:
        _check_secure(config, config.secure_aggregation, federated, shards, seed)


def _check_secure(
    config: Config, how: SecureAggregation, methods: Mapping[str, Method[Any]], shards: FederatedData, seed: int
) -> None:
    require("cryptography", extra="privacy", what="[secure_aggregation]")
    if config.example_privacy:
        raise GenfedError(
            "[secure_aggregation] with DP-SGD is not implemented: its exchanges are not charged; remove one of them"
        )
    if config.aggregation or config.attack:
        other = "aggregation" if config.aggregation else "attack"
        why = "reads" if config.aggregation else "changes"
        raise GenfedError(f"[secure_aggregation] hides single uploads, which [{other}] {why}: remove one of them")
    for label, method in methods.items():
        for phase in list_upload_phases(method):
            if (reason := reason_to_refuse_secure(phase)) is not None:
                raise GenfedError(
                    f"[secure_aggregation]: phase {phase.name} of {label} cannot be aggregated securely: {reason}"
                )
        schedule = Schedule(method, shards.clients, config.federation.client_fraction, seed)
        for phase, clients in schedule.different_uploads():
            sizes = Counter(name for info in clients for name in list_groups(phase.aggregate, info))
            for group, count in sizes.items():
                if count < how.minimum_group:
                    raise GenfedError(
                        f"secure_aggregation.minimum_group = {how.minimum_group}: in phase {phase.name} of {label} "
                        f"a sum would have {count} uploads{f' of architecture {group}' if group else ''}; set more "
                        "clients for a group or remove the method"
                    )
                check_neighbors(count, how, f"in phase {phase.name} of {label}")


def _check_attack(config: Config, shards: FederatedData, phases: Mapping[str, Sequence[Phase[Any]]]) -> None:
    attack = config.attack
    assert attack is not None
    known = {phase.name for each in phases.values() for phase in each}
    for name in attack.phases:
        if name not in known:
            raise GenfedError(registry.explain_unknown(name, known, "attack.phases: no method uploads in such a phase"))
    kind = registry.name_of(registry.ATTACKS, type(attack))
    if not known:
        raise GenfedError(f"attack.kind = {kind!r}: no method of the run uploads anything; remove [attack]")
    for label, each in phases.items():
        targets = [phase for phase in each if attack.targets_phase(phase)]
        if targets and (why := attack.reason_to_refuse(shards.task, targets)):
            raise GenfedError(f"attack.kind = {kind!r}: it cannot attack {label}: {why}")


def _check_covered(label: str, phases: Sequence[Phase[Any]], rule: AggregationRule, kind: str) -> None:
    """Refuses a method that a rule would only seem to protect.

    Args:
        label: label of the method.
        phases: the phases in which clients upload.
        rule: the rule.
        kind: name of the rule.

    Raises:
        GenfedError: the rule replaces no upload, or in one phase some fields of an upload and not the others.
    """
    if phases and not any(find_replaced(phase, rule) for phase in phases):
        how = "averages no uploads of clients"
        if isinstance(rule, GroupedRule):
            how = "adds up no uploads of clients that can be joined from groups"
        fields = ", ".join(sorted(list_uncovered(phases, rule)))
        raise GenfedError(
            f"aggregation.kind = {kind!r}: the server of {label} {how} ({fields}), so the rule would protect nothing; "
            "remove the method or [aggregation]"
        )
    for phase in phases:
        if (means := find_replaced(phase, rule)) and (others := list_uncovered([phase], rule)):
            raise GenfedError(
                f"aggregation.kind = {kind!r}: in phase {phase.name} of {label} the rule would reduce "
                f"{', '.join(means)}, and the server combines {', '.join(others)} in its own way, so the rule would "
                "not protect the model; remove the method or [aggregation]"
            )


def _check_groups(label: str, config: Config, method: Method[Any], shards: FederatedData, seed: int) -> None:
    rule = config.aggregation
    assert rule is not None
    for phase, clients in Schedule(method, shards.clients, config.federation.client_fraction, seed).different_uploads():
        for name, how in find_replaced(phase, rule).items():
            for group, count in Counter(how.group(info) for info in clients).items():
                with _named(f"{label}, phase {phase.name}, {name}{f' of {group}' if group else ''}"):
                    rule.check(count)
            if isinstance(rule, GroupedRule):
                with _named(f"{label}, phase {phase.name}, {name}"):
                    rule.check_groups(info.id for info in clients)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts the place before errors in the block."""
    try:
        yield
    except GenfedError as error:
        raise GenfedError(f"{where}: {error}") from None


def check_encoders(label: str, method: Method[Any], server: Server) -> None:
    """Refuses, under privacy of examples, an encoder that mixes them: one example would change the features of others.

    Args:
        label: the label of the method.
        method: the method.
        server: a server that knows the task.

    Raises:
        GenfedError: an encoder does so, or fails on a batch.
    """
    x = torch.rand(32, *server.task.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, encoder in list_fixed_encoders(method):
        network = build_encoder(encoder, server).network
        try:
            check_features_independent(network, x.to(server.device))
        except Exception as error:  # a user's encoder can raise any error
            kind = registry.name_of(registry.ENCODERS, type(encoder))
            raise GenfedError(
                f"method.{label}.{name}.kind = {kind!r} cannot be used under [privacy]: {first_line(error)}"
            ) from None


def check_private_encoders(config: Config, task: Task, clients: Sequence[ClientInfo], new_network: NewNetwork) -> None:
    """Checks the encoders of all methods of a run by `check_encoders`, if it has privacy of examples.

    Args:
        config: the settings of the run.
        task: the task of the clients' examples.
        clients: the clients of one seed.
        new_network: returns a new classifier.
    """
    if config.example_privacy is None and config.sum_privacy is None:
        return
    for label, method in config.method.items():
        seed = config.seeds[-1]
        check_encoders(label, method, new_server(task, tuple(clients), config.compute, new_network, seed, 0, "check"))


def check_public_examples(label: str, method: Method[Any], source: Source, parts: Sequence[Data]) -> None:
    """Refuses an encoder that is computed from public examples some of which are the run's own: neither ε nor an
    accuracy would be what it seems. Copies in another size, or on another scale, are found by the source alone.

    Args:
        label: the label of the method.
        method: the method.
        source: where the run's examples come from.
        parts: these examples.

    Raises:
        GenfedError: an encoder is.
    """
    for name, encoder in list_fixed_encoders(method):
        for public in encoder.public_sources():
            if public.origin == source.origin != "" or _share_examples(public, parts):
                kind = registry.name_of(registry.ENCODERS, type(encoder))
                raise GenfedError(
                    f"method.{label}.{name}.kind = {kind!r}: it is computed from public examples with their classes "
                    f"({public.origin or type(public).__name__}), and some of them are the run's own; choose others"
                )


def _share_examples(public: Source, parts: Sequence[Data]) -> bool:
    given = public.load()
    known = set().union(*(_row_bytes(part.x) for part in (given.train, given.validation, given.test)))
    return any(part.x.shape[1:] == given.task.shape and not known.isdisjoint(_row_bytes(part.x)) for part in parts)


def _row_bytes(x: torch.Tensor) -> Iterator[bytes]:
    """Yields the pixels of each image, as bytes from 0, black, to 255, white."""
    levels = (normalize_pixels(x) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return (row.tobytes() for row in levels.flatten(1).numpy())


def check_client_privacy(config: Config, clients: Sequence[ClientInfo], seed: int) -> None:
    """Refuses methods and settings that client-level privacy does not cover, and runs that would exceed the budget.

    Args:
        config: the settings of the run.
        clients: the clients of one seed.
        seed: the seed.

    Raises:
        GenfedError: Opacus is missing, a method or setting is not supported, or the run would exceed the budget.
    """
    if (how := config.client_privacy) is None:
        return
    if config.aggregation is not None:
        raise GenfedError(
            'privacy.kind = "dp_fedavg" with [aggregation], which replaces the means that get the noise: remove one of '
            "them"
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


def check_sum_privacy(config: Config, clients: Sequence[ClientInfo], seed: int) -> None:
    """Refuses methods and settings that privacy of sums does not cover, and runs that would exceed the budget.

    Args:
        config: the settings of the run.
        clients: the clients of one seed.
        seed: the seed.

    Raises:
        GenfedError: Opacus is missing, a method or setting is not supported, or the run would exceed the budget.
    """
    if (how := config.sum_privacy) is None:
        return
    if config.aggregation is not None:
        raise GenfedError('privacy.kind = "dp_sum" with [aggregation] is not implemented: remove one of them')
    if seed == config.seeds[0]:
        examples = sum(info.examples for info in clients)
        warn_of_weak_privacy(how, examples, f"there are {examples} examples", "an example")
    federated = {label: method for label, method in config.method.items() if not method.pooled}
    fraction = config.federation.client_fraction
    check_sum_level(
        how, {label: Schedule(method, tuple(clients), fraction, seed) for label, method in federated.items()}
    )


def check_example_privacy(
    config: Config,
    task: Task,
    clients: Sequence[ClientInfo],
    new_network: NewNetwork,
    x: torch.Tensor | None = None,
) -> None:
    """Refuses what example-level privacy does not cover. Without examples, an architecture that only a site knows is
    not checked here; the site checks it.

    Args:
        config: the settings of the run.
        task: the task of the clients' examples.
        clients: the clients of one seed.
        new_network: returns a new classifier.
        x: two examples, as a network takes them. None: noise is used instead.

    Raises:
        GenfedError: Opacus is missing; a method, architecture, generator or setting is not supported; or the noise
            cannot be planned.
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
    for label, method in config.method.items():
        if not method.pooled:  # a pooled one has other clients; it is planned when it begins
            check_example_plan(
                label, how, Schedule(method, tuple(clients), config.federation.client_fraction, config.seeds[-1])
            )


def trained_classifier(architecture: str, task: Task, new_network: NewNetwork) -> TrainedNetwork:
    """Returns a new classifier, as differential privacy checks it."""
    network = new_network(architecture, task, torch.Generator().manual_seed(0))
    other = f"{architecture.removesuffix('-bn')}-gn"
    known = other in Architectures().names()
    remedy = f'use "{other}"' if known else "use nn.GroupNorm instead"
    return TrainedNetwork(f"architecture {architecture}", network, task, remedy=remedy)
