"""Files that are written whole or not at all, and locks between processes."""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from genfed.core.errors import GenfedError

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Permission bits of what a run writes: its owner reads and writes it, and nobody else."""


def make_folder(folder: Path) -> None:
    """Makes a folder where it is missing, and those above it, for its owner alone. They are on the disk when this
    returns. One that is there stays as it is, also if another process makes it at the same time.

    Raises:
        NotADirectoryError: a file has its name, or that of a folder above it.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except FileExistsError:
        if not folder.is_dir():  # else another process has made it meanwhile
            raise NotADirectoryError(
                f"{folder} is a file, and a folder of that name is needed: move it, or delete it"
            ) from None
    sync(folder.parent)


@overload
def open_file(path: Path, mode: Literal["w", "a"]) -> TextIO: ...


@overload
def open_file(path: Path, mode: Literal["wb", "ab", "xb"]) -> BinaryIO: ...


def open_file(path: Path, mode: Literal["w", "a", "wb", "ab", "xb"]) -> IO[Any]:
    """Opens a file to write to, text in UTF-8. Where it is missing, it is made for its owner alone; else it keeps its
    permission bits. ("xb": it must be missing.)

    Raises:
        GenfedError: it is a link, a pipe or a device: what is written would go elsewhere.
    """

    def make(name: str, flags: int) -> int:
        try:  # without waiting for the reader of a pipe
            handle = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE_FILE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _explain_special(name) from None
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _explain_special(name)
        return handle

    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=make)


def _explain_special(path: str) -> GenfedError:
    return GenfedError(f"{path} is a link, a pipe or a device, which may lead anywhere: not used; remove it")


def refuse_links(folder: Path) -> None:
    """Refuses a folder with anything else than files and folders, at any depth: who made it could have this user's
    other files read, written or deleted. The folder itself may be a link. Nothing is refused where there is no folder.

    Raises:
        GenfedError: there is a link, a pipe or a device, which is named.
    """
    left = [os.fspath(folder)]
    while left:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):  # not deleted meanwhile
                    raise _explain_special(entry.path)


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` at the end of the block. If the block fails, `path`
    keeps what it held. With `durable` the file also survives a power cut, once the block has ended.

    The file is its owner's alone; one that was there keeps its permission bits, which the owner may have widened.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() else PRIVATE_FILE
    try:
        open_file(part, "xb").close()
        yield part
        part.chmod(mode)  # of a file that a library has put in its place, too
        if durable:
            sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync(path.parent)  # the rename too


def holds_nothing(folder: Path) -> bool:
    """Returns whether a folder is missing or empty, but for a lock and temporary files of `atomic_write`: a process may
    have been killed before it wrote its first file.
    """
    if not folder.exists():
        return True
    names = {entry.name for entry in folder.iterdir()} - {".lock"}
    return all(name.startswith(".") and name.endswith(".part") for name in names)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Deletes the temporary files of `atomic_write` that killed processes left, in a folder and in those below it. No
    other process may be writing them. `name`: pattern of the names of the files that were to be written.
    """
    for left in folder.rglob(f".{name}.part"):
        if left.is_file():
            left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file_system(path: Path) -> None:
    """Returns once all that any process has written to the file system of `path` is on the disk. On systems other than
    Linux, of all file systems, and without a wait for the disk where the system does not wait.

    Raises:
        OSError: the disk is full or not writable.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if library.syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


def write_file(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file whole or not at all, text in UTF-8; see `atomic_write`."""
    with atomic_write(path, durable=durable) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def keep_directory() -> Iterator[None]:
    """Restores the working directory after the block: a user's own code may change it, and relative paths with it."""
    try:
        before = Path.cwd()
    except OSError:  # it was deleted, so that no relative path is left to protect
        yield
        return
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def exclusive_lock(file: Path, *, busy: str | None = None) -> Iterator[None]:
    """Holds the lock of `file` for the block; the file is made where it is missing. `busy`: the text of the error where
    another process holds the lock. None: waits for it.

    Raises:
        GenfedError: another process holds the lock, and `busy` is given; or the file is a link, a pipe or a device.
    """
    with open_file(file, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise GenfedError(busy) from None
        yield
