"""A whole run: every method with every seed on the same clients, and the report of it."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pydantic
from torch import Tensor

from genfed import __version__
from genfed.app import central, federation, grids, integrity, protection, quality
from genfed.app.accounting import Mechanism
from genfed.app.case import attack, shared_by
from genfed.app.config import Config, decisive, read, to_toml
from genfed.app.site import new_site, new_trial, shards_file, site_of, trial_folder
from genfed.app.trial import Progress, Run, Trial, counts_for, new_server, read_checkpoint
from genfed.core.aggregate import ClientInfo
from genfed.core.audit import Shared
from genfed.core.errors import GenfedError
from genfed.core.method import Task
from genfed.core.record import digest, pack, save
from genfed.data.dataset import Dataset, Source
from genfed.data.features import write_encoder
from genfed.data.huggingface import HuggingFace
from genfed.engines.ask import Engine
from genfed.engines.embedded import InProcess, Workers
from genfed.engines.site import Shards, threads
from genfed.learn.fit import scaled
from genfed.report.metrics import Metrics, retain
from genfed.report.metrics import read as read_metrics
from genfed.report.page import Grid, SetGrid, page
from genfed.report.privacy import NOTHING, read_audits
from genfed.report.results import QUALITY, Environment, Protection, Report, Row, summarise, to_json
from genfed.report.tensorboard import TensorBoard, open_tensorboard

if TYPE_CHECKING:
    from genfed.engines.flower import Flower

EngineName = Literal["embedded", "flower"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Public:
    """The public examples as a record."""

    x: Tensor


@dataclass(frozen=True)
class Started:
    """How a run began, whatever resumed it since: started.json."""

    command: str
    at: str
    """ISO 8601, UTC."""
    id: str = ""
    """Drawn by chance, so that sites tell two runs apart that began alike; nothing is derived from it."""


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
        overrides: "key=value" on top of it, as `genfed.app.config.read` has them.
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
        shards = federation.share_out(settings, dataset, seed)
        federation.check(settings, shards)
        quality.check(settings, shards)
        integrity.check(settings, shards, seed)
        central.check(settings, shards.clients, seed)
    protection.check(settings, shards.task, shards.clients, scaled(shards.train.x[:2]))

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


class _Here:
    """All clients on this machine."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path, workers: "Workers | Flower | None") -> None:
        self._config, self._dataset, self._folder, self._workers = config, dataset, folder, workers

    def shards(self, seed: int) -> Shards:
        shards = federation.share_out(self._config, self._dataset, seed)
        if self._workers:
            save(shards, shards_file(self._folder, seed), durable=False)
        return shards

    def engine(self, trial: Trial) -> Engine:
        if self._workers is None:
            return InProcess(new_site(trial))
        self._workers.open(json.dumps({"run": str(self._folder.resolve()), "label": trial.label, "seed": trial.seed}))
        return self._workers

    def spent(self, trial: Trial) -> Mapping[int, Sequence[Mechanism]]:
        return protection.spent_in(trial)

    def done(self, seed: int) -> None:
        shards_file(self._folder, seed).unlink(missing_ok=True)


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


def default_folder(config: object, settings: Config) -> Path:
    """Where a run's results go if nothing is said: to the run whose folder was given, else to runs/NAME."""
    if isinstance(config, str | Path) and Path(config).is_dir():
        return Path(config)
    return Path("runs") / settings.name


def load_data(config: Config) -> Dataset:
    """Reads the data set, a relative path starting from `data_root`."""
    return load_source(config.data, config.data_root)


def load_public(config: Config, task: Task) -> Tensor | None:
    """Reads the training part of the public data set, without labels; None where the config has none.

    Raises:
        GenfedError: its examples are not like the clients'.
    """
    if config.public is None:
        return None
    public = load_source(config.public, config.data_root)
    if (public.task.kind, public.task.shape) != (task.kind, task.shape):
        raise GenfedError(
            f"public: {public.task.kind} examples of shape {public.task.shape}, where the clients' are {task.kind} "
            f"examples of shape {task.shape}; set its size and channels, or choose another source"
        )
    return public.train.x


PATHS = ("path", "validation_path", "test_path")
"""Settings of a data source that name files or folders."""


def load_source(source: Source, root: str) -> Dataset:
    """Reads a data source whose relative paths start from `root`."""
    if root:
        given = {name: getattr(source, name, None) for name in PATHS}
        paths = {name: str(Path(root) / path) for name, path in given.items() if isinstance(path, str)}
        if isinstance(source, HuggingFace) and not Path(paths["path"]).exists():
            return source.load()  # a hub's name is no path
        source = replace(source, **paths)  # type: ignore[type-var]
    return source.load()


def fingerprint(shards: Shards, public: Tensor | None) -> str:
    """Names the data of a seed: another one is of other data. What clients are scored on besides the common part does
    not count, since training does not depend on it; a run that was begun without goes on.
    """
    packed = pack(replace(shards, own={}))
    fields = {name: value for name, value in json.loads(packed.skeleton).items() if name != "own"}
    named = digest(packed._replace(skeleton=json.dumps(fields)))
    return named + ("" if public is None else digest(pack(Public(public))))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(config: Config) -> int:
    """The worker processes a run has: what is said, else as many as keep every core busy with their threads; never more
    than clients.
    """
    fitting = max(1, cores() // config.compute.threads)
    return min(fitting if config.compute.workers is None else config.compute.workers, config.federation.clients)


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
                partition[str(seed)] = federation.class_counts(shards)
            values = tuple(own.values for each in shards.own.values() for own in each)
            natural |= {str(seed): values} if any(values) else {}
            judge = quality.Judge(config, shards, seed)
            which = fingerprint(shards, public)
            for label, method in config.method.items():
                trial = replace(new_trial(config, folder, label, seed, shards, which), public=public)
                protection.prepare(trial)  # before workers would, each for itself
                loop = Run(trial, clients.engine(trial), record, notify)
                state = loop.finish()
                protected[label, seed] = protection.protection_of(trial, clients.spent(trial))
                if quality.judged(method) and config.quality.samples and (label, seed) not in judged:
                    loop.tell_after(QUALITY)
                    record([judge(trial, state, loop.step)])
                if seed == config.seeds[0]:
                    sent += shared_by(trial, protected[label, seed])
                if seed == config.seeds[0] and (picture := grids.picture(label, trial, state, shards)):
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
        notes=integrity.notes(config, infos, trials),
    )
    (folder / "report.json").write_text(to_json(report), "utf-8")
    audits = replace(read_audits(folder) or NOTHING, shared=tuple(sent))
    (folder / "report.html").write_text(page(report, pictures, audits), "utf-8")
    shutil.rmtree(data, ignore_errors=True)
    return report


def _first(folder: Path, now: Started) -> Started:
    """How the run in the folder began: as it says, else just now."""
    file = folder / "started.json"
    with contextlib.suppress(OSError, pydantic.ValidationError):
        return pydantic.TypeAdapter(Started).validate_json(file.read_bytes())
    file.write_bytes(pydantic.TypeAdapter(Started).dump_json(now) + b"\n")
    return now


def _counting(config: Config, folder: Path, task: Task) -> Callable[[dict[str, Any]], bool]:
    at = {
        (label, seed): read_checkpoint(method, trial_folder(folder, label, seed))
        for label, method in config.method.items()
        for seed in config.seeds
    }

    def counts(row: dict[str, Any]) -> bool:
        stale = row["phase"] == QUALITY and not quality.current(row, config, task)
        return not stale and counts_for(row, at.get((row["method"], row["seed"])))

    return counts


@contextlib.contextmanager
def _workers(config: Config, folder: Path) -> Iterator[Workers | None]:
    count = worker_count(config)
    if count == 0:
        yield None
        return
    command = [sys.executable, "-m", "genfed.app.worker", str(config.compute.threads), str(os.getpid())]
    # A worker finds what this process can import: the user's own methods and architectures.
    paths = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    with (folder / "workers.log").open("ab") as output:
        environment = os.environ | {"PYTHONPATH": paths}
        workers = Workers(command, count, output, environment, config.federation.timeout)
        try:
            yield workers
        finally:
            workers.close()


def _simulation() -> Callable[[Config], "AbstractContextManager[Flower]"]:
    """Opens Flower's simulation.

    Raises:
        GenfedError: the extra is not installed, or its version does not work.
    """
    from genfed.engines import flower

    def opened(config: Config) -> "AbstractContextManager[Flower]":
        clients, compute = config.federation.clients, config.compute
        return flower.simulation(
            clients, max(1, worker_count(config)), compute.threads, site_of, config.federation.timeout
        )

    return opened


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[TensorBoard | None]:
    board = open_tensorboard(folder / "tensorboard", read_metrics(folder / "metrics.jsonl"))
    try:
        yield board
    finally:
        if board:
            board.close()


def check_choice(folder: Path, held: bool, *, resume: bool, fresh: bool) -> None:
    """Refuses both flags, and neither where the folder is `held` by a run.

    Raises:
        GenfedError: says what to choose from.
    """
    if resume and fresh:
        raise GenfedError("--resume goes on with a run and --fresh deletes it: choose one")
    if held and not (resume or fresh):
        raise GenfedError(f"{folder} holds a run: go on with --resume, delete it with --fresh, or change --out")


@contextlib.contextmanager
def _claimed(folder: Path, config: Config, *, resume: bool, fresh: bool) -> Iterator[None]:
    """Makes the run's folder, or refuses one that is another's or in use."""
    mine = folder / "config.toml"
    check_choice(folder, mine.exists(), resume=resume, fresh=fresh)
    if folder.exists() and {entry.name for entry in folder.iterdir()} - {".lock"}:
        if not mine.exists():
            raise GenfedError(f"{folder} holds files that are no run of genfed; choose another --out")
        if resume:
            try:
                before = read(mine)
            except GenfedError as error:
                raise GenfedError(f"{mine}: {error}; this run cannot be resumed, use --fresh") from None
            _same(before, config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GenfedError(f"{folder} is being written by another process; wait for it or use --out") from None
        # Killed here, the folder must still be a run's: config.toml goes last and comes whole.
        for entry in sorted(folder.iterdir(), key=lambda e: e == mine) if fresh else ():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for leftover in folder.rglob(".*.part"):  # of a kill while saving
            leftover.unlink()
        part = folder / ".config.toml.part"
        part.write_text(to_toml(config), "utf-8")
        part.replace(mine)
        yield


def _same(before: Config, now: Config, folder: Path) -> None:
    old, new = decisive(before), decisive(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise GenfedError(
                f"{folder} was started with {key} = {old.get(key)!r}, not {new.get(key)!r}: "
                "resume it as it was, start anew with --fresh, or use --out"
            )


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("genfed")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        handler.close()


def _environment(config: Config, started: Started) -> Environment:
    versions = {"genfed": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "safetensors", "scikit-learn", "diffusers", "transformers", "opacus", "flwr"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # extras
            versions[name] = importlib.metadata.version(name)
    return Environment(
        command=started.command,
        started=started.at,
        versions=versions,
        processor=processor(),
        cores=cores(),
        workers=worker_count(config),
        threads=config.compute.threads,
        device=config.compute.device,
        precision=config.compute.precision,
    )


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["genfed" if name == "__main__.py" else name, *sys.argv[1:]])
