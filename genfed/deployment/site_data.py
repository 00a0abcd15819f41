"""A site's data: read, checked, and stored as tensors."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from genfed._version import __version__
from genfed.config.architectures import Architectures
from genfed.core.errors import GenfedError, RecordError
from genfed.core.files import make_folder, remove_parts
from genfed.core.record import digest, load, pack, save
from genfed.core.task import Data, Task
from genfed.data.dataset import Dataset
from genfed.data.encoder import digest_encoder
from genfed.data.fitted import describe_fitted
from genfed.data.table import Table
from genfed.deployment.site_schema import agreed_content, agreed_schema
from genfed.deployment.site_settings import LocatedSite
from genfed.engines.client_storage import lock_folder
from genfed.experiment import checks
from genfed.experiment.inputs import PATHS, load_source, locate_source
from genfed.preprocessing.image_files import walk_folder
from genfed.preprocessing.source_summary import SourceSummary

DATA = "data.safetensors"
"""File name of the data as tensors, in the folder of the site."""


class UnreadableDataError(GenfedError):
    """A site's data cannot be read. The text may quote them, so it stays at the site."""


@dataclass(frozen=True)
class SiteHoldings:
    """A site's data."""

    task: Task
    train: Data
    held_out: Data
    source: str
    """Fingerprint of the files and settings that the data were read from (`fingerprint_source`)."""
    content: str
    """Fingerprint of the examples and their classes. It changes only if they do, and never leaves the site."""
    encoder: str
    """Digest of how raw examples become x. Empty: they are used as they are."""
    fitted: str
    """What of the encoding was computed from the examples (`describe_fitted`). Empty: nothing."""
    split_off: tuple[str, ...]
    """Parts that were split off from the training examples."""


def load_site_data(site: LocatedSite, tell: Callable[[SourceSummary], None] = lambda summary: None) -> SiteHoldings:
    """Reads the site's data, checks that its model fits them, and stores them as tensors, which later work maps.

    Args:
        site: The site.
        tell: Called with what was read.

    Raises:
        GenfedError: the data cannot be read, or the model does not fit them.
    """
    config = site.config
    checks.check_device(config.device)
    source = fingerprint_source(site)  # before it is read: a change while it is read is seen the next time
    try:
        dataset = _load(site)
    except GenfedError as error:
        raise UnreadableDataError(str(error)) from error
    task, train = dataset.task, dataset.train
    held_out = dataset.test if config.part == "test" else dataset.validation
    if not len(held_out):
        raise GenfedError(f"part = {config.part!r}: the data have no such part")
    if config.classes is not None:
        if lacking := [name for name in task.classes if name not in config.classes]:
            raise GenfedError(f"classes: the data have a class {lacking[0]!r}, which the list lacks")
        place = torch.tensor([config.classes.index(name) for name in task.classes])
        task = replace(task, classes=config.classes)
        train, held_out = Data(train.x, place[train.y]), Data(held_out.x, place[held_out.y])
    content, encoder = _fingerprint_examples(task, train, held_out), digest_encoder(dataset.encoder, task.kind)
    fitted = describe_fitted(config.data, dataset)
    holding = SiteHoldings(task, train, held_out, source, content, encoder, fitted, dataset.split_off)
    _check_apart(site, holding)
    checks.check_architecture(config.architecture, task, train, Architectures().new)
    tell(dataset.summary)
    make_folder(site.folder)
    with lock_folder(site.folder):
        remove_parts(site.folder, f"{DATA}.*")
        save(holding, site.folder / DATA)
    return holding


def _load(site: LocatedSite) -> Dataset:
    """Reads the site's data by the schema that the sites agreed on, if there is one."""
    data, agreed = site.config.data, agreed_schema(site)
    if agreed is None or not isinstance(data, Table):
        return load_source(data, str(site.root))
    return locate_source(data, str(site.root)).load_by(agreed)


def describe_holdings(site: LocatedSite) -> SiteHoldings:
    """Returns what `load_site_data` stored; reads the data again where it is missing or the data have changed.

    Raises:
        GenfedError: see `load_site_data`.
    """
    with contextlib.suppress(RecordError):
        if (stored := load(SiteHoldings, site.folder / DATA)).source == fingerprint_source(site):
            _check_apart(site, stored)
            return stored
    return load_site_data(site)


def _check_apart(site: LocatedSite, holding: SiteHoldings) -> None:
    """Refuses an encoder that was fitted to the examples, where the site demands differential privacy: one example
    would change all others, and no budget counts it. Under `[privacy]` it refuses parts that were split off too: the
    split is stratified by class, so one label decides about many others whether they are trained on.
    """
    demands = {"[privacy]": site.config.privacy, "[client_privacy]": site.config.client_privacy}
    for table, demand in demands.items():
        if demand is not None and holding.fitted:
            raise GenfedError(f"{table} does not cover how examples are encoded: {holding.fitted}")
    if site.config.privacy is not None and getattr(site.config.data, "deduplicate", False):
        raise GenfedError(
            "[privacy] does not cover data.deduplicate: one example would decide whether others are trained on; remove "
            "the copies from the data yourself"
        )
    if site.config.privacy is not None and holding.split_off:
        parts = " and ".join(holding.split_off)
        unset = "; or set data.validation = 0" if holding.split_off == ("validation",) else ""
        raise GenfedError(
            f"[privacy] does not cover which examples are trained on: genfed would split {parts} off from all of them; "
            f"give the data these parts{unset}"
        )


def size_of_data(site: LocatedSite) -> int:
    """Returns the size in bytes of the data as tensors. 0: they are not stored yet."""
    file = site.folder / DATA
    return file.stat().st_size if file.exists() else 0


def _fingerprint_examples(task: Task, train: Data, held_out: Data) -> str:
    return " ".join(digest(pack(part)) for part in (task, train, held_out))


def fingerprint_source(site: LocatedSite) -> str:
    """Returns a hash of the settings of a site's data, and of the size and time of each file. Links to folders are
    followed as sources follow them (`walk_folder`).

    Raises:
        UnreadableDataError: a folder cannot be listed.
    """
    config, hashed = site.config, hashlib.blake2b(digest_size=16)
    hashed.update(f"{__version__} {config.data!r} {config.classes!r} {config.part}".encode())
    hashed.update(agreed_content(site))
    for name in PATHS:
        given = getattr(config.data, name, None)
        for path in given if isinstance(given, tuple) else (given,) if isinstance(given, str) else ():
            root = site.root / path
            for file in _list_files(root, site.folder.resolve()) if root.is_dir() else [root]:
                if file.is_file():
                    about = file.stat()
                    hashed.update(f"{file} {about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def _list_files(root: Path, own: Path) -> list[Path]:
    """Returns what lies below a folder, at any depth, sorted: hidden files too, and nothing that lies in `own`.

    Raises:
        UnreadableDataError: a folder cannot be listed.
    """
    try:
        found = {*root.rglob("*"), *(entry for entry, _ in walk_folder(root))}
    except GenfedError as error:
        raise UnreadableDataError(str(error)) from error
    resolve = functools.cache(Path.resolve)
    return sorted(file for file in found if not resolve(file.parent).is_relative_to(own))
