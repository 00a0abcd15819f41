"""The folder of a run: its files, who may write to it, how the run began, and its log."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from genfed.audits.findings import Audits
from genfed.config.reader import decisive_settings, read_config, refuse_old_run, to_toml
from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.files import (
    exclusive_lock,
    holds_nothing,
    make_folder,
    open_file,
    refuse_links,
    remove_parts,
    write_file,
)
from genfed.core.text import LogFormatter
from genfed.data.encoder import Encoder, fingerprint_content, fingerprint_encoder, read_encoder, write_encoder
from genfed.report.privacy_section import NOTHING, read_audits
from genfed.report.results import Report, from_json, to_json

OnExisting = Literal["refuse", "resume", "replace"]
"""What to do where the folder holds a run already."""
PUT_BACK = "put it back as it was, or start anew with --fresh"
_MIXED = "its results come from both; start anew with --fresh if the change matters"
_OWN_CLASS = re.compile(r'"([A-Za-z_][\w.]*):[A-Za-z_]\w*"')
log = logging.getLogger(__name__)
_ENCODED_OTHERWISE = (
    "the data are encoded otherwise than when the run began, so their columns, categories or scales have changed; put "
    "them back as they were, choose another --out, or --fresh"
)


@dataclass(frozen=True)
class RunStart:
    """How a run began, however often it was resumed: started.json."""

    command: str
    at: str
    """Time in ISO 8601, UTC."""
    id: str = ""
    """Random text that distinguishes this run from others with the same config. No random number depends on it."""
    code: dict[str, str] = field(default_factory=dict)
    """Digest of the file of each module of one's own that the config names."""
    encoder: str = ""
    """Digest of encoder.json. Empty: there is none, or it is unknown."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. A run that anyone may have made is opened only if it holds no links (`refuse_links`)."""

    path: Path

    def __post_init__(self) -> None:
        if os.path.lexists(self.config) or os.path.lexists(self.report):
            refuse_links(self.path)

    def __str__(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(self.path.relative_to(Path.cwd()))  # as its user names it
        return str(self.path)

    @property
    def config(self) -> Path:
        """The resolved settings. A folder that has this file holds a run."""
        return self.path / "config.toml"

    @property
    def started(self) -> Path:
        """How the run began."""
        return self.path / "started.json"

    @property
    def metrics(self) -> Path:
        """A row for each client, round and evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The report of a finished run."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def encoder(self) -> Path:
        """How raw examples become x: a table's schema, or the scale of pixels."""
        return self.path / "encoder.json"

    @property
    def data(self) -> Path:
        """Examples that worker processes map; only while the run goes on."""
        return self.path / "data"

    @property
    def shadows(self) -> Path:
        """What an audit trains; only while it goes on."""
        return self.path / "shadows"

    def trial(self, label: str, seed: int) -> Path:
        """Returns the folder of a trial: its checkpoint, and what its clients store."""
        return self.path / "trials" / label / f"seed-{seed}"

    def client_data(self, seed: int) -> Path:
        """Returns the file with the examples of a seed's clients, for worker processes to map."""
        return self.data / f"seed-{seed}.safetensors"

    def read_config(self) -> Config:
        """Reads the settings of the run.

        Raises:
            GenfedError: this is not the folder of a run, or it is a run of genfed 0.1.
        """
        if not self.config.is_file():
            raise GenfedError(f"{self} is not the folder of a run: it has no config.toml")
        return read_config(self.path)

    def read_report(self) -> Report:
        """Reads the report.

        Raises:
            GenfedError: the run has not finished, the file is damaged, or it is a run of genfed 0.1.
        """
        if not self.report.exists():
            state = "has not finished" if self.config.exists() else "is not the folder of a run"
            raise GenfedError(f"{self} {state}: it has no report.json")
        report = from_json(self.report.read_text("utf-8", "replace"), str(self.report))
        with contextlib.suppress(ValueError, RecursionError):
            refuse_old_run(tomllib.loads(report.config), self)
        return report

    def write_report(self, report: Report, page: str) -> None:
        """Writes the report and its page."""
        for file, text in ((self.page, page), (self.report, to_json(report))):  # a run with a report has finished
            write_file(file, text)

    def read_audits(self) -> Audits:
        """Returns what the audits found so far; empty where there was none."""
        return read_audits(self.path) or NOTHING

    def read_encoder(self) -> Encoder | None:
        """Returns how raw examples become x. None: they are used as they are.

        Raises:
            GenfedError: the file is damaged or missing, or another one than the run began with.
        """
        known = self._read_start().encoder if self.started.exists() else ""
        found = read_encoder(self.encoder) if self.encoder.exists() else None
        if known and (found is None or fingerprint_content(self.encoder.read_bytes()) != known):
            what = "is missing" if found is None else "is not that of the run"
            raise GenfedError(f"{self.encoder} {what}; put it back, or resume the run (--resume), which writes it anew")
        return found

    def keep_encoder(self, encoder: Encoder, began: RunStart) -> None:
        """Writes how raw examples become x, unless it is there: whatever uses the trained models later needs no
        training data.

        Raises:
            GenfedError: the run has another one.
        """
        try:
            before = self.read_encoder()
        except GenfedError:  # missing, damaged or edited
            before = None
        if before is None and began.encoder in ("", fingerprint_encoder(encoder)):
            write_encoder(encoder, self.encoder)
        elif before != encoder:
            raise GenfedError(f"{self}: {_ENCODED_OTHERWISE}")

    def run_id(self) -> str:
        """Returns a name of the run; a later run with the same config has another one. "new": it has not begun."""
        if not self.started.exists():
            return "new"
        return hashlib.blake2b(self.started.read_bytes(), digest_size=8).hexdigest()

    def _read_start(self) -> RunStart:
        try:
            return pydantic.TypeAdapter(RunStart).validate_json(self.started.read_bytes())
        except pydantic.ValidationError:
            raise GenfedError(f"{self.started} is damaged; {PUT_BACK}") from None

    def begin(self, now: RunStart) -> RunStart:
        """Returns how the run began: as its file says, else `now`, which is then written there.

        Raises:
            GenfedError: the file is damaged, or it is missing though rounds were done.
        """
        if self.started.exists():
            began = self._read_start()
            for module, digest in now.code.items():
                if began.code.get(module, digest) != digest:
                    log.warning("the file of module %s has changed since the run began: %s", module, _MIXED)
            return began
        if any(self.path.glob("trials/*/*/state.safetensors")):
            raise GenfedError(f"{self.started} is missing; {PUT_BACK}")
        write_file(self.started, pydantic.TypeAdapter(RunStart).dump_json(now) + b"\n", durable=True)
        return now

    def check_existing(self, on_existing: OnExisting) -> None:
        """Refuses a folder that holds something else, or a run that is neither to be resumed nor replaced.

        Raises:
            GenfedError: it does.
        """
        if self.config.exists():
            if on_existing == "refuse":
                raise GenfedError(f"{self} holds a run: go on with --resume, delete it with --fresh, or change --out")
        elif not holds_nothing(self.path):
            raise GenfedError(f"{self} holds files that are no run of genfed; choose another --out")

    @contextlib.contextmanager
    def claim(self, config: Config, on_existing: OnExisting) -> Iterator[None]:
        """Holds the folder for a run of `config`; it is made where it is missing.

        Raises:
            GenfedError: it holds something else, a run that must not be touched or had other settings, or another
                process writes to it.
        """
        self.check_existing(on_existing)
        self.check_settings(config, on_existing)
        if on_existing == "resume" and not self.config.exists():
            log.warning("nothing to resume in %s: starting", self)
        make_folder(self.path)
        with self.lock():
            if on_existing == "replace":
                self._clear()
            remove_parts(self.path)
            write_file(self.config, to_toml(config), durable=True)
            yield

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing to the folder, for the block.

        Raises:
            GenfedError: another process does.
        """
        busy = f"{self} is being written by another process; wait for it or choose another folder"
        return exclusive_lock(self.path / ".lock", busy=busy)

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """Sends what genfed logs to run.log."""
        file = open_file(self.path / "run.log", "a")
        handler = logging.StreamHandler(file)
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("genfed")
        logger.addHandler(handler)
        before, logger.propagate = logger.propagate, False
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = before
            logger.setLevel(level)
            handler.close()
            file.close()

    def check_settings(self, config: Config, on_existing: OnExisting) -> None:
        """Refuses to resume a run that was started with settings of another outcome.

        Raises:
            GenfedError: a setting differs, or the folder holds a run that cannot be read.
        """
        if on_existing != "resume" or not self.config.exists():
            return
        try:
            before = decisive_settings(read_config(self.path))
        except GenfedError as error:
            raise GenfedError(f"{self.config}: {error}; this run cannot be resumed, use --fresh") from None
        now = decisive_settings(config)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise GenfedError(
                    f"{self} was started with {key} = {before.get(key)!r}, not {now.get(key)!r}: "
                    "resume it as it was, start anew with --fresh, or use --out"
                )

    def _clear(self) -> None:
        """Deletes all but the lock. The config goes last: killed before that, the folder is still that of a run."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.config):
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def digest_code(config: Config) -> dict[str, str]:
    """Returns a digest of the file of each imported module that the config names as "package.module:Class"."""
    modules = sorted(set(_OWN_CLASS.findall(to_toml(config))))
    files = {module: getattr(sys.modules.get(module), "__file__", None) for module in modules}
    return {
        module: hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
        for module, file in files.items()
        if file is not None and Path(file).is_file()
    }


def default_folder(source: object, name: str) -> RunFolder:
    """Returns where the results of a run go by default: the folder that `source` names, else runs/NAME."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return RunFolder(Path(source))
    return RunFolder(Path("runs") / name)
