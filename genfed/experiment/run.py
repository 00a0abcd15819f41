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

from torch import Tensor

from genfed.audits.findings import Shared
from genfed.config.reader import read, to_toml
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import Shards
from genfed.core.task import Task
from genfed.data.features import write_encoder
from genfed.engines.client_runner import threads
from genfed.engines.round import Engine
from genfed.experiment import checks, compatibility, generator_quality, notes, partitioning, sample_grids
from genfed.experiment.auditing import attack, shared_by
from genfed.experiment.environment import _command, _environment
from genfed.experiment.inputs import fingerprint, load_data, load_public
from genfed.experiment.local_clients import _Here, _simulation, _workers
from genfed.experiment.progress import Progress
from genfed.experiment.run_folder import Started, _claimed, _counting, _first, _logged, default_folder
from genfed.experiment.trial import Trial, new_server, new_trial
from genfed.experiment.trial_loop import Run
from genfed.privacy import client_level, example_level
from genfed.privacy import compatibility as privacy_compatibility
from genfed.privacy.accounting import Mechanism
from genfed.privacy.guarantee import Protection
from genfed.report.images import Grid, SetGrid
from genfed.report.metrics_log import Metrics, retain
from genfed.report.metrics_log import read as read_metrics
from genfed.report.page import page
from genfed.report.privacy_section import NOTHING, read_audits
from genfed.report.results import QUALITY, Report, Row, to_json
from genfed.report.summarise import summarise
from genfed.report.tensorboard import TensorBoard, open_tensorboard
from genfed.training.pixels import scaled

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
    settings = config if isinstance(config, Config) else read(config, overrides)
    folder = default_folder(config, settings) if out is None else Path(out)
    simulate = _simulation() if engine == "flower" else None
    dataset = load_data(settings)
    public = load_public(settings, dataset.task)
    for seed in settings.seeds:
        shards = partitioning.share_out(settings, dataset, seed)
        checks.check(settings, shards)
        generator_quality.check(settings, shards)
        compatibility.check(settings, shards, seed)
        client_level.check(settings, shards.clients, seed)
    privacy_compatibility.check(settings, shards.task, shards.clients, scaled(shards.train.x[:2]))

    @contextlib.contextmanager
    def here() -> Iterator[Clients]:
        opened = _workers(settings, folder) if simulate is None else simulate(settings)
        if dataset.encoder is not None:  # whoever uses what was trained needs no training data
            write_encoder(dataset.encoder, folder / "encoder.json")
        with opened as workers:
            yield _Here(settings, dataset, folder, workers)

    return run_on(
        settings, dataset.task, shards.clients, public, folder, here, resume, fresh, notify or (lambda _: None), command
    )


class Clients(Protocol):
    """Where the clients of a run are, and their data."""

    def shards(self, seed: int) -> Shards:
        """The clients of a seed; without examples where these lie elsewhere."""

    def engine(self, trial: Trial) -> Engine:
        """What carries records to them; the last that was given is then closed."""

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        """What was charged to each client's privacy budget."""

    def done(self, seed: int) -> None:
        """No trial of that seed is left."""


def run_on(
    settings: Config,
    task: Task,
    clients: tuple[ClientInfo, ...],
    public: Tensor | None,
    folder: Path,
    there: Callable[[], AbstractContextManager[Clients]],
    resume: bool,
    fresh: bool,
    notify: Callable[[Progress], None],
    command: str | None,
) -> Report:
    """The same as `run` once it is known who takes part: `there` opens where they are, and `clients` are those of one
    seed, for checks before anything is done.
    """
    for method in settings.method.values():  # a generator that does not fit, before an earlier method has run
        method.init(new_server(task, clients, settings.compute, settings.seeds[-1], 0, "init", public=public))
    started = Started(
        command or _command(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), secrets.token_hex(8)
    )
    if resume and not (folder / "config.toml").exists():
        log.warning("nothing to resume in %s: starting", folder)
    with _claimed(folder, settings, resume=resume, fresh=fresh), _logged(folder), threads(settings.compute.threads):
        try:
            with there() as opened:
                return _run(settings, task, opened, public, folder, notify, _first(folder, started))
        except OSError as error:
            raise GenfedError(f"{error}; nothing that was saved is lost: mend it, then go on with --resume") from None


def _run(
    config: Config,
    task: Task,
    clients: Clients,
    public: Tensor | None,
    folder: Path,
    notify: Callable[[Progress], None],
    started: Started,
) -> Report:
    partition: dict[str, tuple[tuple[int, ...], ...]] = {}
    infos: dict[int, tuple[ClientInfo, ...]] = {}
    natural: dict[str, tuple[tuple[str, ...], ...]] = {}
    pictures: dict[str, Grid | SetGrid] = {}
    protected: dict[tuple[str, int], Protection | None] = {}
    sent: list[Shared] = []
    data = folder / "data"
    data.mkdir(exist_ok=True)
    retain(folder / "metrics.jsonl", _counting(config, folder, task))
    # A generator that was judged before a stop is not judged again.
    judged = {(row["method"], row["seed"]) for row in read_metrics(folder / "metrics.jsonl") if row["phase"] == QUALITY}
    with Metrics(folder / "metrics.jsonl") as metrics, _tensorboard(folder) as board:

        def record(rows: Sequence[Row]) -> None:
            metrics.write(rows)
            metrics.flush()  # rows without their checkpoint are dropped on resume; the reverse would be a hole
            if board:
                board.write(rows)

        for seed in config.seeds:
            shards = clients.shards(seed)
            infos[seed] = shards.clients
            if len(shards.train):
                partition[str(seed)] = partitioning.class_counts(shards)
            values = tuple(own.values for each in shards.own.values() for own in each)
            natural |= {str(seed): values} if any(values) else {}
            judge = generator_quality.Judge(config, shards, seed)
            which = fingerprint(shards, public)
            for label, method in config.method.items():
                trial = replace(new_trial(config, folder, label, seed, shards, which), public=public)
                example_level.prepare(trial)  # before workers would, each for itself
                loop = Run(trial, clients.engine(trial), record, notify)
                state = loop.finish()
                protected[label, seed] = example_level.protection_of(trial, clients.spent(trial))
                if generator_quality.judged(method) and config.quality.samples and (label, seed) not in judged:
                    loop.tell_after(QUALITY)
                    record([judge(trial, state, loop.step)])
                if seed == config.seeds[0]:
                    sent += shared_by(trial, protected[label, seed])
                if seed == config.seeds[0] and (picture := sample_grids.picture(label, trial, state, shards)):
                    pictures[label] = picture
                if seed == config.seeds[0] and config.audits:
                    loop.tell_after("audits")
                    attack(config, trial, config.audits, folder)
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
        notes=notes.notes(config, infos, trials),
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
