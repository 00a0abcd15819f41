"""Files that are written whole or not at all, and locks."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from genfed.core.errors import GenfedError
from genfed.core.files import atomic_write, exclusive_lock, holds_nothing, sync_file_system


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
