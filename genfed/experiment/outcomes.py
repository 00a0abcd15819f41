"""What the trials of a run ended with, and the report that is built of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from genfed.audits.findings import Exchanged
from genfed.config.reader import to_toml
from genfed.core.aggregate import ClientInfo
from genfed.core.federated_data import FederatedData
from genfed.experiment import notes, partitioning, sample_grids
from genfed.experiment.auditing import describe_trial_exchanges
from genfed.experiment.environment import describe_environment
from genfed.experiment.inputs import RunInputs, digest_pool
from genfed.experiment.run_folder import RunStart
from genfed.experiment.trial import Trial
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.report.images import Grid, SetGrid
from genfed.report.results import Report, Row
from genfed.report.summarize import summarize_trial


class TrialOutcomes:
    """What the trials of a run ended with, as far as it stands in no file."""

    def __init__(self) -> None:
        self.clients: dict[int, tuple[ClientInfo, ...]] = {}
        """The clients, by seed."""
        self.class_counts: dict[str, tuple[tuple[int, ...], ...]] = {}
        """Training examples per client and class, by seed; without the seeds whose examples lie elsewhere."""
        self.data_digest: dict[str, str] = {}
        """Digest of the examples, by seed; without the seeds whose examples lie elsewhere."""
        self.natural_values: dict[str, tuple[tuple[str, ...], ...]] = {}
        """Values of the natural column per client, by seed; without the seeds that have none."""
        self.guarantees: dict[tuple[str, int], PrivacyGuarantee | None] = {}
        """What protects each trial, by label and seed."""
        self.pictures: dict[str, Grid | SetGrid] = {}
        """Samples of the first seed, by label."""
        self.exchanges: list[Exchanged] = []
        """What the phases of the first seed's trials sent."""

    def add_clients(self, seed: int, shards: FederatedData) -> None:
        """Adds the clients of a seed."""
        self.clients[seed] = shards.clients
        if len(shards.train):
            nothing = (0,) * len(shards.task.classes)
            self.class_counts[str(seed)] = _by_number(shards, partitioning.count_classes(shards), nothing)
            self.data_digest[str(seed)] = digest_pool(shards)
        values = tuple(own.values for each in shards.own.values() for own in each)
        if any(values):
            self.natural_values[str(seed)] = _by_number(shards, values, ())

    def add_guarantee(self, trial: Trial, guarantee: PrivacyGuarantee | None) -> None:
        """Adds what protects a finished trial. None: no differential privacy."""
        self.guarantees[trial.label, trial.seed] = guarantee

    def show_trial(self, trial: Trial, state: Any) -> None:
        """Adds what the page shows of a finished trial, whose guarantee is known: its samples and exchanges."""
        self.exchanges += describe_trial_exchanges(trial, self.guarantees[trial.label, trial.seed])
        if picture := sample_grids.sample_picture(trial, state):
            self.pictures[trial.label] = picture


T = TypeVar("T")


def _by_number(shards: FederatedData, values: Sequence[T], nothing: T) -> tuple[T, ...]:
    """Returns the clients' values in the order of their numbers, with `nothing` for those that are excluded."""
    of = {info.id: value for info, value in zip(shards.clients, values, strict=True)}
    return tuple(of.get(number, nothing) for number in range(max(of) + 1))


def build_report(outcomes: TrialOutcomes, inputs: RunInputs, rows: Sequence[Row], started: RunStart) -> Report:
    """Returns the report of a finished run, whose metrics are `rows`."""
    config = inputs.config
    trials = tuple(
        replace(summarize_trial(rows, label, seed), protection=outcomes.guarantees[label, seed])
        for label in config.labels
        for seed in config.seeds
    )
    natural = outcomes.natural_values
    return Report(
        name=config.name,
        config=to_toml(config),
        classes=inputs.task.classes,
        shape=inputs.task.shape,
        environment=describe_environment(config.compute, config.federation.clients, started),
        trials=trials,
        partition=outcomes.class_counts,
        scored_on=config.evaluation.split,
        published=config.published,
        skewed=not config.partition.alike,
        column=config.partition.natural if natural else None,
        natural=natural,
        notes=notes.write_notes(config, outcomes.clients, trials, outcomes.class_counts),
        data_digest=outcomes.data_digest,
        data_summary=inputs.summary,
    )
