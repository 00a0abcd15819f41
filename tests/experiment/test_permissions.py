"""What a run writes is its owner's alone."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from genfed.artifacts.export import export
from genfed.artifacts.samples import write_samples
from genfed.core.files import atomic_write, make_folder, open_file, write_file
from tests.conftest import start, tiny


@pytest.fixture(autouse=True)
def _open_to_all() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The permission bits of all in a folder that are not its owner's alone, in octal."""
    found = [folder, *folder.rglob("*")]
    bits = {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in found}
    return {name: oct(mode) for name, mode in bits.items() if mode & 0o077}


@pytest.mark.usefixtures("in_pool")
def test_all_that_a_run_and_its_commands_write(tmp_path: Path) -> None:
    out, workers = tmp_path / "runs" / "tiny", {"workers": 2}
    start(tiny("gefl", compute=workers, audits=["membership_samples"], defaults={"rounds": 1}), out)
    export(out, tmp_path / "model")
    write_samples(out, tmp_path / "samples", 4)
    write_samples(out, tmp_path / "files" / "samples.npz", 4)
    assert list((out / "tensorboard").rglob("events*"))
    assert len(list(out.rglob("*.safetensors"))) > 1
    for folder in (tmp_path / "runs", tmp_path / "model", tmp_path / "samples", tmp_path / "files"):
        assert not modes(folder)


def test_what_its_owner_has_opened_stays_open(tmp_path: Path) -> None:
    shared, file = tmp_path / "shared", tmp_path / "shared" / "report.html"
    shared.mkdir(0o750)
    make_folder(shared)
    write_file(file, "one")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    write_file(file, "two")
    with open_file(file, "a") as opened:
        opened.write(" three")
    assert file.read_text() == "two three"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (shared, file)] == [0o750, 0o640]


def test_a_file_that_a_library_puts_in_place_of_the_part_is_the_owners(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x") as part:
        other = tmp_path / "other"
        other.write_text("all may read")
        other.replace(part)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_folders_above_a_folder_that_is_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert not modes(tmp_path / "a")
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            NotADirectoryError, match=f"^{tmp_path}/file is a file, and a folder of that name is needed"
        ):
            make_folder(where)


def test_a_folder_that_another_process_makes_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of one trial make the folder of its clients. It was missing when this one looked, and is there when this
    one looks again.
    """
    folder, is_dir = tmp_path / "clients", Path.is_dir

    def look(path: Path) -> bool:
        found = is_dir(path)
        if path == folder and not found:
            path.mkdir()
        return found

    monkeypatch.setattr(Path, "is_dir", look)
    make_folder(folder)
    assert is_dir(folder)
