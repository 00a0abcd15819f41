"""A whole run: every method with every seed on the same clients, and the report of it."""

import contextlib
import datetime
import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from genfed.audits.findings import Exchanged
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, to_toml
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.data.features import write_encoder
from genfed.engines.client_runner import use_threads
from genfed.engines.round import Engine
from genfed.experiment import checks, compatibility, generator_quality, notes, partitioning, sample_grids
from genfed.experiment.auditing import audit_trial, describe_trial_exchanges
from genfed.experiment.environment import _command, _environment
from genfed.experiment.inputs import RunInputs, data_fingerprint, load_data, load_public
from genfed.experiment.local_clients import LocalClients, _simulation, _workers
from genfed.experiment.progress import Progress
from genfed.experiment.run_folder import RunStart, _claimed, _counting, _first, _logged, default_folder
from genfed.experiment.trial import Trial, new_trial
from genfed.experiment.trial_loop import TrialLoop
from genfed.privacy import client_level, example_level
from genfed.privacy import compatibility as privacy_compatibility
from genfed.privacy.accounting import Mechanism
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.report.images import Grid, SetGrid
from genfed.report.metrics_log import MetricsLog, retain_metrics
from genfed.report.metrics_log import read_metrics as read_metrics
from genfed.report.page import page
from genfed.report.privacy_section import NOTHING, read_audits
from genfed.report.results import QUALITY, Report, Row, to_json
from genfed.report.summarise import summarise
from genfed.report.tensorboard import TensorBoard, open_tensorboard
from genfed.training.pixels import normalize_pixels

if TYPE_CHECKING:
    pass

EngineName = Literal["embedded", "flower"]
log = logging.getLogger(__name__)


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    overrides: Iterable[str] = (),
    notify: Callable[[Progress], None] | None = None,
    command: str | None = None,
    engine: EngineName = "embedded",
) -> Report:
    """Runs a config and returns its report.

    Args:
        config: a TOML file, a run's folder, a table of settings or a `Config`, which says what can be set.
        overrides: "key=value" on top of it, as `genfed.config.reader.read` has them.
        out: the folder for its results; None: the run's folder where `config` is one, else runs/NAME.
        resume: goes on where the run in that folder stopped; starts it where there is none.
        fresh: deletes the run in that folder first.
        notify: called with what is going on.
        command: what the report says it was started with; None: this process's command line. A resumed run keeps the
            first.
        engine: what carries records to clients and back on this machine: genfed's own, or a simulation by Flower (the
            extra "flower"). The outcome is the same to the bit.

    Raises:
        GenfedError: something in the config, the data or the folder is wrong; what was done before stays done.
    """
    settings = config if isinstance(config, Config) else read_config(config, overrides)
    folder = default_folder(config, settings) if out is None else Path(out)
    simulate = _simulation() if engine == "flower" else None
    dataset = load_data(settings)
    public, known = load_public(settings, dataset.task), Architectures()
    for seed in settings.seeds:
        shards = partitioning.partition_data(settings, dataset, seed)
        checks.check_clients(settings, shards, known.new)
        generator_quality.check_generator_quality(settings, shards, known.new)
        compatibility.check_compatibility(settings, shards, seed)
        client_level.check(settings, shards.clients, seed)
    privacy_compatibility.check(settings, shards.task, shards.clients, known.new, normalize_pixels(shards.train.x[:2]))

    @contextlib.contextmanager
    def here() -> Iterator[FederationClients]:
        opened = _workers(settings, folder) if simulate is None else simulate(settings)
        if dataset.encoder is not None:  # whoever uses what was trained needs no training data
            write_encoder(dataset.encoder, folder / "encoder.json")
        with opened as workers:
            yield LocalClients(settings, dataset, folder, workers)

    inputs = RunInputs(settings, dataset.task, shards.clients, dict.fromkeys(settings.seeds, known), public)
    return run_on(inputs, folder, here, resume, fresh, notify or (lambda _: None), command)


class FederationClients(Protocol):
    """Where the clients of a run are, and their data."""

    def shards(self, seed: int) -> FederatedData:
        """The clients of a seed; without examples where these lie elsewhere."""

    def engine(self, trial: Trial) -> Engine:
        """What carries records to them; the last that was given is then closed."""

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """What was charged to each client's privacy budget."""

    def done(self, seed: int) -> None:
        """No trial of that seed is left."""


def run_on(
    inputs: RunInputs,
    folder: Path,
    there: Callable[[], AbstractContextManager[FederationClients]],
    resume: bool,
    fresh: bool,
    notify: Callable[[Progress], None],
    command: str | None,
) -> Report:
    """The same as `run` once it is known who takes part: `there` opens where they are."""
    settings = inputs.config
    for method in settings.method.values():  # a generator that does not fit, before an earlier method has run
        method.init(inputs.initial_server())
    started = RunStart(
        command or _command(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), secrets.token_hex(8)
    )
    if resume and not (folder / "config.toml").exists():
        log.warning("nothing to resume in %s: starting", folder)
    with _claimed(folder, settings, resume=resume, fresh=fresh), _logged(folder), use_threads(settings.compute.threads):
        try:
            with there() as opened:
                return _run(inputs, opened, folder, notify, _first(folder, started))
        except OSError as error:
            raise GenfedError(f"{error}; nothing that was saved is lost: mend it, then go on with --resume") from None


def _run(
    inputs: RunInputs,
    clients: FederationClients,
    folder: Path,
    notify: Callable[[Progress], None],
    started: RunStart,
) -> Report:
    config, task = inputs.config, inputs.task
    partition: dict[str, tuple[tuple[int, ...], ...]] = {}
    infos: dict[int, tuple[ClientInfo, ...]] = {}
    natural: dict[str, tuple[tuple[str, ...], ...]] = {}
    pictures: dict[str, Grid | SetGrid] = {}
    protected: dict[tuple[str, int], PrivacyGuarantee | None] = {}
    sent: list[Exchanged] = []
    data = folder / "data"
    data.mkdir(exist_ok=True)
    retain_metrics(folder / "metrics.jsonl", _counting(config, folder, task))
    # A generator that was judged before a stop is not judged again.
    judged = {(row["method"], row["seed"]) for row in read_metrics(folder / "metrics.jsonl") if row["phase"] == QUALITY}
    with MetricsLog(folder / "metrics.jsonl") as metrics, _tensorboard(folder) as board:

        def record(rows: Sequence[Row]) -> None:
            metrics.write(rows)
            metrics.flush()  # rows without their checkpoint are dropped on resume; the reverse would be a hole
            if board:
                board.write(rows)

        for seed in config.seeds:
            shards = clients.shards(seed)
            infos[seed] = shards.clients
            if len(shards.train):
                partition[str(seed)] = partitioning.count_classes(shards)
            values = tuple(own.values for each in shards.own.values() for own in each)
            natural |= {str(seed): values} if any(values) else {}
            judge = generator_quality.GeneratorEvaluator(config, shards, seed, inputs.architectures[seed].new)
            which = data_fingerprint(shards, inputs.public)
            for label, method in config.method.items():
                new_network = inputs.architectures[seed].new
                trial = new_trial(config, folder, label, seed, shards, which, new_network, inputs.public)
                example_level.settle_noise_by_client(trial)  # before workers would, each for itself
                loop = TrialLoop(trial, clients.engine(trial), record, notify)
                state = loop.finish()
                protected[label, seed] = example_level.guarantee_of(trial, clients.spent(trial))
                if generator_quality.is_evaluated(method) and config.quality.samples and (label, seed) not in judged:
                    loop.report_progress(QUALITY)
                    record([judge(trial, state, loop.step)])
                if seed == config.seeds[0]:
                    sent += describe_trial_exchanges(trial, protected[label, seed])
                if seed == config.seeds[0] and (picture := sample_grids.sample_picture(label, trial, state, shards)):
                    pictures[label] = picture
                if seed == config.seeds[0] and config.audits:
                    loop.report_progress("audits")
                    audit_trial(config, trial, config.audits, folder)
            clients.done(seed)
    rows = read_metrics(folder / "metrics.jsonl")
    trials = tuple(
        replace(summarise(rows, label, seed), protection=protected[label, seed])
        for label in config.labels
        for seed in config.seeds
    )
    report = Report(
        name=config.name,
        config=to_toml(config),
        classes=task.classes,
        shape=task.shape,
        environment=_environment(config, started),
        trials=trials,
        partition=partition,
        scored_on=config.evaluation.part,
        published=config.published,
        skewed=not config.partition.alike,
        column=config.partition.natural if natural else None,
        natural=natural,
        notes=notes.write_notes(config, infos, trials),
    )
    (folder / "report.json").write_text(to_json(report), "utf-8")
    audits = replace(read_audits(folder) or NOTHING, shared=tuple(sent))
    (folder / "report.html").write_text(page(report, pictures, audits), "utf-8")
    shutil.rmtree(data, ignore_errors=True)
    return report


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[TensorBoard | None]:
    board = open_tensorboard(folder / "tensorboard", read_metrics(folder / "metrics.jsonl"))
    try:
        yield board
    finally:
        if board:
            board.close()
