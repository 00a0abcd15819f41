"""A whole run: every method with every seed on the same clients, and the report of it."""

import contextlib
import datetime
import functools
import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.config.settings import Config
from genfed.core.errors import GenfedError, contain_exit, describe_error, find_own_code
from genfed.core.federated_data import FederatedData
from genfed.core.files import make_folder
from genfed.data.dataset import Dataset
from genfed.data.encoder import digest_encoder, fingerprint_encoder
from genfed.data.fitted import describe_fitted
from genfed.engines.client_runner import use_threads
from genfed.engines.round import Engine
from genfed.experiment import checks, compatibility, coverage, generator_quality, partitioning
from genfed.experiment.auditing import audit_trial
from genfed.experiment.checkpoint import counted_rows, read_checkpoint
from genfed.experiment.environment import command_line
from genfed.experiment.inputs import RunInputs, data_fingerprint, load_data, load_public
from genfed.experiment.local_clients import EngineName, choose_engine, open_local_clients
from genfed.experiment.outcomes import TrialOutcomes, build_report
from genfed.experiment.progress import Progress
from genfed.experiment.run_folder import OnExisting, RunFolder, RunStart, default_folder, digest_code
from genfed.experiment.trial import Trial, new_trial
from genfed.experiment.trial_loop import TrialLoop
from genfed.methods.bases.federated_generator import FederatedGenerator
from genfed.preprocessing.source_summary import SourceSummary
from genfed.privacy.accounting import Mechanism
from genfed.report.metrics_log import MetricsLog, read_metrics, retain_metrics
from genfed.report.page import build_page
from genfed.report.results import QUALITY, Report, Row
from genfed.report.tensorboard import open_tensorboard
from genfed.training.pixels import normalize_pixels

log = logging.getLogger(__name__)
Record = Callable[[Sequence[Row]], None]
"""Writes rows of metrics to the disk."""


@contain_exit()
def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    on_existing: OnExisting = "refuse",
    overrides: Iterable[str] = (),
    notify: Callable[[Progress], None] | None = None,
    tell: Callable[[SourceSummary], None] | None = None,
    command: str | None = None,
    engine: EngineName = "embedded",
) -> Report:
    """Runs a config and returns its report.

    >>> import tempfile
    >>> import genfed
    >>> config = {
    ...     "name": "tiny",
    ...     "methods": ["fedavg"],
    ...     "baselines": [],
    ...     "data": {"kind": "digits", "size": 8},
    ...     "federation": {"clients": 4, "max_examples": 80, "architectures": ["linear"]},
    ...     "defaults": {"rounds": 2, "training": {"epochs": 1}},
    ...     "compute": {"workers": 0},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:  # real runs keep it: report.html, checkpoints and metrics
    ...     report = genfed.run(config, out=f"{folder}/tiny", command="tiny example")
    >>> report.methods, len(report.of("fedavg")[0].curve)
    (('fedavg',), 1)

    Args:
        config: a TOML file, a run's folder, a table of settings, or a `Config`.
        out: the folder for the results. None: the run's folder where `config` is one, else runs/NAME.
        on_existing: what to do where that folder holds a run: refuse it, resume it where it stopped, or replace it.
        overrides: "key=value" on top of `config`, with a dotted key.
        notify: called with the progress of the run.
        tell: called with what was read, before training. None: only what looks wrong is logged.
        command: the command that the report names; a resumed run keeps its first. None: this process's command line.
        engine: what carries records to the clients: genfed's own, or Flower's simulation (extra "flower"); same bits.

    Raises:
        GenfedError: the config, the data or the folder is wrong. Rounds that were finished stay on the disk.
    """
    settings = config if isinstance(config, Config) else read_config(config, overrides)
    folder = RunFolder((default_folder(config, settings.name).path if out is None else Path(out)).absolute())
    open_engine = choose_engine(engine)
    folder.check_settings(settings, on_existing)  # before the data are read
    dataset = load_data(settings)
    inputs = _checked_inputs(settings, dataset)
    clients = functools.partial(open_local_clients, settings, dataset, folder, open_engine)
    return run_on(inputs, folder, clients, on_existing, notify or (lambda progress: None), command, tell)


def _log_warnings(summary: SourceSummary) -> None:
    for line in summary.warnings:
        log.warning(line)


def _checked_inputs(config: Config, dataset: Dataset) -> RunInputs:
    """Returns what the run works on.

    Raises:
        GenfedError: something in the config would fail in training, or does not go with the data.
    """
    digest = digest_encoder(dataset.encoder, dataset.task.kind)
    public, architectures = load_public(config, dataset.task, digest), Architectures()
    noticed: dict[str, None] = {}
    for seed in config.seeds:
        shards = partitioning.partition_data(config, dataset, seed)
        noticed |= dict.fromkeys(coverage.describe_missing_classes(shards))
        noticed |= dict.fromkeys(coverage.describe_single_holders(config, shards, seed))
        checks.check_excluded(config, dataset, shards.train)
        checks.check_clients(config, shards, architectures.new)
        generator_quality.check_generator_quality(config.metrics, config.method, shards, architectures.new)
        compatibility.check_compatibility(config, shards, seed)
        compatibility.check_client_privacy(config, shards.clients, seed)
        compatibility.check_sum_privacy(config, shards.clients, seed)
    examples = normalize_pixels(shards.train.x[:2])
    compatibility.check_example_privacy(config, dataset.task, shards.clients, architectures.new, examples)
    compatibility.check_private_encoders(config, dataset.task, shards.clients, architectures.new)
    parts = dataset.train, dataset.validation, dataset.test
    for label, method in config.method.items():
        compatibility.check_public_examples(label, method, config.data, parts)
    fraction, first = config.federation.client_fraction, config.seeds[0]
    noticed |= dict.fromkeys(coverage.describe_clients_never_asked(config.method, shards, fraction, first))
    summary = dataset.summary + SourceSummary((), tuple(noticed))
    if config.privacy and (fitted := describe_fitted(config.data, dataset)):
        summary += SourceSummary((), (f"ε does not cover how examples are encoded: {fitted}",))
    known = dict.fromkeys(config.seeds, architectures)
    return RunInputs(config, dataset.task, shards.clients, known, public, summary, fingerprint_encoder(dataset.encoder))


class FederationClients(Protocol):
    """Where the clients of a run are, and their data."""

    def shards(self, seed: int) -> FederatedData:
        """Returns the clients of a seed; without examples where these lie elsewhere."""

    def engine(self, trial: Trial) -> Engine:
        """Returns what carries records to the clients; it closes the engine before it."""

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """Returns what was charged to the privacy budget of each client."""

    def done(self, seed: int) -> None:
        """Frees what the trials of a seed needed."""


def run_on(
    inputs: RunInputs,
    folder: RunFolder,
    open_clients: Callable[[RunStart], AbstractContextManager[FederationClients]],
    on_existing: OnExisting,
    notify: Callable[[Progress], None],
    command: str | None,
    tell: Callable[[SourceSummary], None] | None = None,
) -> Report:
    """Runs the trials on clients that may be anywhere, and returns the report.

    Args:
        inputs: what the run works on, checked already.
        folder: the folder for its results.
        open_clients: connects to the clients for as long as the run goes on, given how it began.
        on_existing: see `run`.
        notify: see `run`.
        command: see `run`.
        tell: see `run`.

    Raises:
        GenfedError: a generator does not fit the data, the folder cannot be used, or a trial failed.
    """
    config = inputs.config
    for method in config.method.values():  # a generator that does not fit, before an earlier method has run
        method.init(inputs.initial_server())
    started = describe_start(command, config, inputs.encoder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.claim(config, on_existing))
        (tell or _log_warnings)(inputs.summary)
        stack.enter_context(folder.log())
        stack.enter_context(use_threads(config.compute.threads))
        _write_summary(inputs.summary)
        try:
            began = folder.begin(started)
            with open_clients(began) as clients:
                return _run_trials(inputs, folder, clients, notify, began)
        except (GenfedError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's own code may fail in any way
            log.exception("the run stopped")
            if not isinstance(error, OSError):
                raise
            why = describe_error(error) if find_own_code(error) else str(error)
            raise GenfedError(f"{why}; nothing that was saved is lost: mend it, then go on with --resume") from None


def _write_summary(summary: SourceSummary) -> None:
    """Writes what was read to the run's log."""
    for line in summary.facts:
        log.info("read: %s", line)
    for line in summary.warnings:
        log.warning("read: %s", line)


def describe_start(command: str | None, config: Config, encoder: str = "") -> RunStart:
    """Returns when and how a run is started, with a new number.

    Args:
        command: The command. None: the one of this process.
        config: The settings.
        encoder: See `RunStart`.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return RunStart(command or command_line(), now, secrets.token_hex(8), digest_code(config), encoder)


def _run_trials(
    inputs: RunInputs,
    folder: RunFolder,
    clients: FederationClients,
    notify: Callable[[Progress], None],
    started: RunStart,
) -> Report:
    """Runs every method with every seed, and writes the report."""
    make_folder(folder.data)
    retain_metrics(folder.metrics, functools.partial(_select_rows, inputs, folder))
    outcomes = TrialOutcomes()
    with _open_metrics(folder) as record:
        for seed in inputs.config.seeds:
            _SeedTrials(inputs, folder, clients, record, notify, seed).run(outcomes)
            clients.done(seed)
    report = build_report(outcomes, inputs, read_metrics(folder.metrics), started)
    audits = replace(folder.read_audits(), shared=tuple(outcomes.exchanges))
    folder.write_report(report, build_page(report, outcomes.pictures, audits))
    shutil.rmtree(folder.data, ignore_errors=True)
    return report


class _SeedTrials:
    """The trials of one seed: every method on the same clients."""

    def __init__(
        self,
        inputs: RunInputs,
        folder: RunFolder,
        clients: FederationClients,
        record: Record,
        notify: Callable[[Progress], None],
        seed: int,
    ) -> None:
        self._inputs, self._folder, self._clients, self._seed = inputs, folder, clients, seed
        self._record, self._notify = record, notify
        self._shards = clients.shards(seed)
        self._fingerprint = data_fingerprint(self._shards, inputs.public)
        self._new_network = inputs.architectures[seed].new
        self._evaluate = generator_quality.GeneratorEvaluator(
            inputs.config.metrics, torch.device(inputs.config.compute.device), self._shards, seed, self._new_network
        )
        # A generator that was evaluated before a stop is not evaluated again.
        rows = read_metrics(folder.metrics)
        self._evaluated = {row["method"] for row in rows if (row["phase"], row["seed"]) == (QUALITY, seed)}

    def run(self, outcomes: TrialOutcomes) -> None:
        """Finishes every trial, and adds to `outcomes` what it ended with."""
        outcomes.add_clients(self._seed, self._shards)
        for label in self._inputs.config.method:
            trial = self._new_trial(label)
            inspect = functools.partial(self._judge_generator, trial)
            loop = TrialLoop(trial, self._clients.engine(trial), self._record, self._notify, inspect)
            state = loop.finish()
            outcomes.add_guarantee(trial, trial.guarantee(self._clients.spent(trial)))
            self._measure_generator(trial, loop, state)
            if self._seed == self._inputs.config.seeds[0]:
                outcomes.show_trial(trial, state)
                self._audit(trial, loop)

    def _new_trial(self, label: str) -> Trial:
        trial = new_trial(
            self._inputs.config,
            label,
            self._seed,
            folder=self._folder,
            shards=self._shards,
            new_network=self._new_network,
            fingerprint=self._fingerprint,
            public=self._inputs.public,
        )
        if trial.privacy or trial.round_noise:
            trial.settle_plan()  # before workers would, each for itself
        return trial

    def _judge_generator(self, trial: Trial, state: Any) -> str | None:
        """Returns a warning if the generator that classifiers will learn from ignores labels. None: there is no such
        generator, or no evaluation of generators (`metrics.samples` = 0).
        """
        if not (self._inputs.config.metrics.samples and isinstance(trial.method, FederatedGenerator)):
            return None
        verdict = self._evaluate.describe_labels(trial, state)
        return None if verdict is None else f"{verdict}. {trial.method.advise_on_labels()}."

    def _measure_generator(self, trial: Trial, loop: TrialLoop, state: Any) -> None:
        wanted = self._inputs.config.metrics.samples and generator_quality.is_evaluated(trial.method)
        if wanted and trial.label not in self._evaluated:
            loop.report_progress(QUALITY)
            loop.add_quality(self._evaluate(trial, state, loop.step))

    def _audit(self, trial: Trial, loop: TrialLoop) -> None:
        config = self._inputs.config
        if config.audits:
            loop.report_progress("audits")
            audit_trial(trial, {label: config.audit[label] for label in config.audits}, self._folder)


def _select_rows(inputs: RunInputs, folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of metrics that the checkpoints in the folder count on, in their order, without measures of
    generators under other settings than those of now.

    Raises:
        GenfedError: rows on which a checkpoint counts are missing or differ.
    """
    config, kept = inputs.config, set[int]()
    for label, method in config.method.items():
        for seed in config.seeds:
            own = folder.trial(label, seed)
            counted = counted_rows(rows, label, seed, read_checkpoint(method, own), folder.metrics, own)
            kept.update(map(id, counted))
    return [
        row
        for row in rows
        if id(row) in kept
        and (row["phase"] != QUALITY or generator_quality.is_current(row, config.metrics, inputs.task))
    ]


@contextlib.contextmanager
def _open_metrics(folder: RunFolder) -> Iterator[Record]:
    """Yields what writes rows to the log of metrics, and to TensorBoard where it is installed."""
    board = open_tensorboard(folder.path / "tensorboard", read_metrics(folder.metrics))
    with contextlib.nullcontext() if board is None else contextlib.closing(board), MetricsLog(folder.metrics) as log:

        def record(rows: Sequence[Row]) -> None:
            log.write(rows)
            log.flush()  # rows without their checkpoint are dropped on resume; the reverse would be a hole
            if board is not None:
                board.write(rows)

        yield record
