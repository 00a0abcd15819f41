from pathlib import Path

import pytest
import torch
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.data.dataset import Dataset, Source
from genfed.data.folder import Folder
from genfed.data.images import list_images


def write(folder: Path, shades: range, size: tuple[int, int] = (4, 3), mode: str = "L") -> None:
    folder.mkdir(parents=True)
    for shade in shades:
        Image.new(mode, size, shade).save(folder / f"{shade:03}.png")


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path / "dog", range(100, 110))
    write(tmp_path / "cat", range(10))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("passed over")
    data = Folder(path=str(tmp_path)).load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("image", (1, 3, 4), ("cat", "dog"))
    shades = [sorted(part.x[:, 0, 0, 0].tolist()) for part in (data.train, data.validation, data.test)]
    assert list(map(len, shades)) == [14, 2, 4]
    assert sorted([*shades[0], *shades[1], *shades[2]]) == [*range(10), *range(100, 110)]
    assert data.train.y.tolist() == [int(shade >= 100) for shade in data.train.x[:, 0, 0, 0].tolist()]


def test_its_own_parts_are_kept(tmp_path: Path) -> None:
    for part, n in (("train", 10), ("test", 3)):
        write(tmp_path / part / "a", range(n))
        write(tmp_path / part / "b", range(50, 50 + n))
    data = Folder(path=str(tmp_path), size=8, channels=3).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    assert data.test.x.shape == (6, 3, 8, 8)
    for label in "ab":
        write(tmp_path / "validation" / label, range(2))
    data = Folder(path=str(tmp_path)).load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 4, 6]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path / "train", range(5))
    write(tmp_path / "plane", range(5))
    assert Folder(path=str(tmp_path)).load().task.classes == ("plane", "train")


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write(tmp_path / "a", range(5))
    write(tmp_path / "b", range(5), size=(6, 6))
    with pytest.raises(GenfedError, match=r"000.png is 4 × 3 pixels and .*000.png 6 × 6; set size"):
        Folder(path=str(tmp_path)).load()
    assert Folder(path=str(tmp_path), size=5).load().task.shape == (1, 5, 5)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="none: no such file or folder"):
        Folder(path=str(tmp_path / "none")).load()
    (tmp_path / "file").write_text("")
    with pytest.raises(GenfedError, match="file: not a folder"):
        Folder(path=str(tmp_path / "file")).load()
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(GenfedError, match="root: there are no images; one sub-folder per class"):
        Folder(path=str(root)).load()
    write(root / "a", range(5))
    with pytest.raises(GenfedError, match=r"there is one class only \(a\)"):
        Folder(path=str(root)).load()
    (root / "b").mkdir()
    with pytest.raises(GenfedError, match=r"b: there are no images; \.png, "):
        Folder(path=str(root)).load()
    Image.new("L", (4, 3)).save(root / "b" / "0.png")
    with pytest.raises(GenfedError, match="class 'b' has 1 examples: too few"):
        Folder(path=str(root)).load()
    (root / "b" / "1.png").write_bytes(b"not an image")
    with pytest.raises(GenfedError, match=r"1.png: not a readable image"):
        Folder(path=str(root)).load()


def test_parts_must_be_named_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "test" / "a", range(5))
    with pytest.raises(GenfedError, match="there is test/ and no train/"):
        Folder(path=str(tmp_path)).load()
    write(tmp_path / "train" / "a", range(5))
    write(tmp_path / "val" / "a", range(5))
    with pytest.raises(GenfedError, match="val/ stands beside train/; train, validation, test are allowed"):
        Folder(path=str(tmp_path)).load()


def test_what_is_hidden_is_passed_over(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/.1.png", "a/.ipynb_checkpoints/0-checkpoint.png", "a/deep/2.png"):
        (tmp_path / ".home" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(tmp_path / ".home" / name)
    root = tmp_path / ".home"  # what is asked for may be hidden itself
    assert [file.relative_to(root).as_posix() for file in list_images(root)] == ["a/0.png", "a/deep/2.png"]


def test_new_images_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / "own" / name / f"{i}.png")
    source = Folder(path=str(tmp_path / "own"))
    monkeypatch.setattr("genfed.data.images._FILES_AT_ONCE", 7)
    pieces = list(source.read(str(tmp_path / "own"), source.load().task, None))
    assert [len(piece.x) for piece in pieces] == [7, 7, 6]
    assert [name for piece in pieces for name in piece.names] == [
        f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)
    ]
    assert torch.cat([piece.x for piece in pieces])[:, 0, 0, 0].tolist() == [*range(10), *range(10)]


def test_a_source_of_ones_own_may_read_nothing_new() -> None:
    class Own(Source):
        def load(self) -> Dataset:
            raise NotImplementedError

    with pytest.raises(GenfedError, match="Own reads no new examples: give it a method `read`"):
        Own().read("x.png", Task("image", (1, 4, 4), ("cat", "dog")), None)
