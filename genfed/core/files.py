"""Files that are written whole or not at all, and locks between processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from genfed.core.errors import GenfedError


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` at the end of the block. If the block fails, `path`
    keeps what it held. With `durable` the file also survives a power cut, once the block has ended.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        if durable:
            sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync(path.parent)  # the rename too


def remove_parts(folder: Path, name: str = "*") -> None:
    """Deletes the temporary files of `atomic_write` that killed processes left, in a folder and in those below it. No
    other process may be writing them. `name`: pattern of the names of the files that were to be written.
    """
    for left in folder.rglob(f".{name}.part"):
        if left.is_file():
            left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it where they are missing. They are on the disk when this returns."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive_lock(file: Path, *, busy: str | None = None) -> Iterator[None]:
    """Holds the lock of `file` for the block; the file is made where it is missing. `busy`: the text of the error where
    another process holds the lock. None: waits for it.

    Raises:
        GenfedError: another process holds the lock, and `busy` is given.
    """
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise GenfedError(busy) from None
        yield
