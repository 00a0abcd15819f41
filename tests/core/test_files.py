"""Files that are written whole or not at all, and locks."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from genfed.core.errors import GenfedError
from genfed.core.files import (
    atomic_write,
    exclusive_lock,
    holds_nothing,
    open_file,
    refuse_links,
    sync_file_system,
)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    with atomic_write(file, durable=durable) as part:
        part.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_kill_before_the_first_file_leaves_is_nothing(tmp_path: Path) -> None:
    assert holds_nothing(tmp_path / "missing")
    assert holds_nothing(tmp_path)
    for name in (".lock", ".config.toml.10096.part"):
        (tmp_path / name).touch()
    assert holds_nothing(tmp_path)
    (tmp_path / "notes.part").touch()
    assert not holds_nothing(tmp_path)


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")

    def fail() -> None:
        with atomic_write(file) as part:
            part.write_text("ha")
            raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_held_until_the_end_of_the_block(tmp_path: Path) -> None:
    def take() -> None:
        with exclusive_lock(tmp_path / ".lock", busy="in use"):
            pass

    with exclusive_lock(tmp_path / ".lock"), pytest.raises(GenfedError, match="in use"):
        take()
    take()


def make_special(path: Path, kind: str) -> None:
    """Makes a link to a file or a folder with one file beside `path`, or a pipe."""
    outside = path.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": outside / "file", "folder": outside, "broken": outside / "none"}[kind])


@pytest.mark.parametrize("kind", ["link", "broken", "pipe"])
def test_nothing_is_written_through_a_link_or_a_pipe(tmp_path: Path, kind: str) -> None:
    make_special(path := tmp_path / "special", kind)
    for open_it in (lambda: open_file(path, "w"), lambda: open_file(path, "ab"), lambda: exclusive_lock(path)):
        with pytest.raises(GenfedError, match=r"special is a link, a pipe or a device"), open_it():
            pass
    assert [file.name for file in (tmp_path / "outside").iterdir()] == ["file"]
    assert (tmp_path / "outside" / "file").read_text() == "precious"


def test_a_lock_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    with exclusive_lock(tmp_path / "notes"):
        pass
    assert (tmp_path / "notes").read_text() == "precious"


@pytest.mark.parametrize("kind", ["link", "folder", "broken", "pipe"])
def test_a_folder_with_a_link_or_a_pipe_is_refused(tmp_path: Path, kind: str) -> None:
    (inner := tmp_path / "run" / "trials" / "a").mkdir(parents=True)
    (inner / "file").touch()
    refuse_links(tmp_path / "run")
    refuse_links(tmp_path / "none")
    make_special(tmp_path / "special", kind)
    (tmp_path / "special").rename(inner / "special")
    (tmp_path / "here").symlink_to(tmp_path / "run")
    for folder in ("run", "here"):
        with pytest.raises(GenfedError, match=rf"{folder}/trials/a/special is a link, a pipe or a device"):
            refuse_links(tmp_path / folder)


@pytest.mark.parametrize("system", ["Linux", "another"])
def test_a_file_system_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    waited: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: waited.append("all"))
    if system == "another":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    sync_file_system(tmp_path)
    assert waited == ([] if hasattr(ctypes.CDLL(None), "syncfs") else ["all"])


def test_a_disk_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def syncfs(self, handle: int) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Full())
    with pytest.raises(OSError, match="No space left on device"):
        sync_file_system(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_file_system(tmp_path / "none")
