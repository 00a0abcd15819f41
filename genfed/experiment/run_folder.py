"""A run's folder: who may write there, what it was started with, and its log."""

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from genfed.config.reader import decisive_settings, read_config, to_toml
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.experiment import generator_quality
from genfed.experiment.checkpoint import is_in_checkpoint, read_checkpoint
from genfed.experiment.trial import trial_folder
from genfed.report.results import QUALITY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """How a run began, whatever resumed it since: started.json."""

    command: str
    at: str
    """ISO 8601, UTC."""
    id: str = ""
    """Drawn by chance, so that sites tell two runs apart that began alike; nothing is derived from it."""


def default_folder(config: object, settings: Config) -> Path:
    """Where a run's results go if nothing is said: to the run whose folder was given, else to runs/NAME."""
    if isinstance(config, str | Path) and Path(config).is_dir():
        return Path(config)
    return Path("runs") / settings.name


def _first(folder: Path, now: RunStart) -> RunStart:
    """How the run in the folder began: as it says, else just now."""
    file = folder / "started.json"
    with contextlib.suppress(OSError, pydantic.ValidationError):
        return pydantic.TypeAdapter(RunStart).validate_json(file.read_bytes())
    file.write_bytes(pydantic.TypeAdapter(RunStart).dump_json(now) + b"\n")
    return now


def _counting(config: Config, folder: Path, task: Task) -> Callable[[dict[str, Any]], bool]:
    at = {
        (label, seed): read_checkpoint(method, trial_folder(folder, label, seed))
        for label, method in config.method.items()
        for seed in config.seeds
    }

    def counts(row: dict[str, Any]) -> bool:
        stale = row["phase"] == QUALITY and not generator_quality.is_current(row, config, task)
        return not stale and is_in_checkpoint(row, at.get((row["method"], row["seed"])))

    return counts


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
                before = read_config(mine)
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
    old, new = decisive_settings(before), decisive_settings(now)
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
