import shutil
from pathlib import Path

import numpy as np
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


def write_parts(root: Path, *parts: str, classes: str = "ab", inner: str = "") -> None:
    """A folder of each part has 5 images more than the one before it, of other shades in each."""
    for i, part in enumerate(parts):
        for c, label in enumerate(classes):
            write(root / part / inner / label, range(50 * i + 10 * c, 50 * i + 10 * c + 9 - 2 * i))


def sizes(data: Dataset) -> list[int]:
    return [len(part) for part in (data.train, data.validation, data.test)]


@pytest.mark.parametrize(
    "parts",
    [
        ("Training", "Validation", "Testing"),
        ("train_set", "valid_set", "test_set"),
        ("seg_train", "seg_dev", "seg_test"),
        ("TRAIN", "VAL", "TEST"),
        ("train-images", "val-images", "test-images"),
        ("trainset", "devset", "testset"),
        ("flowers_train", "flowers_validation", "flowers_test"),
        ("Training Data", "Development Data", "Test Data"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_spellings_of_parts_are_read(tmp_path: Path, parts: tuple[str, ...]) -> None:
    write_parts(tmp_path, *parts)
    data = Folder(path=str(tmp_path)).load()
    assert (data.task.classes, sizes(data)) == (("a", "b"), [18, 14, 10])
    assert any(f"{parts[0]}/ is train" in line for line in data.summary.facts)


def test_folders_around_everything_are_entered(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive" / "data", "train", "test")
    data = Folder(path=str(tmp_path)).load()
    assert len(data.test) == 14
    assert any("read from archive/data/ below it" in line for line in data.summary.facts)
    for part in ("seg_train", "seg_test"):  # a part within a folder of its name
        write_parts(tmp_path / "twice" / part, part)
    assert sizes(Folder(path=str(tmp_path / "twice")).load()) == [16, 2, 18]


def test_parts_below_each_class_are_parts(tmp_path: Path) -> None:
    for label in "ab":
        write(tmp_path / label / "train", range(8))
        write(tmp_path / label / "test", range(50, 53))
    data = Folder(path=str(tmp_path), validation=0.0).load()
    assert (data.task.classes, sizes(data)) == (("a", "b"), [16, 0, 6])
    write(tmp_path / "c", range(8))
    with pytest.raises(GenfedError, match="a/ has folders of parts, as test/, and c/ not"):
        Folder(path=str(tmp_path)).load()


def test_ambiguous_parts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test" / "a", range(5))
    with pytest.raises(GenfedError, match="there is test/ and no train/"):
        Folder(path=str(tmp_path)).load()
    write_parts(tmp_path, "train", "val")
    write(tmp_path / "other" / "a", range(5))
    with pytest.raises(GenfedError, match="other/ stands beside train/; train, validation, test are allowed"):
        Folder(path=str(tmp_path)).load()
    shutil.rmtree(tmp_path / "other")
    write(tmp_path / "valid" / "a", range(5))
    with pytest.raises(GenfedError, match="val and valid both look like the validation part; keep one"):
        Folder(path=str(tmp_path)).load()


def test_images_of_parts_without_classes_are_no_classes(tmp_path: Path) -> None:
    for names in (("train", "test"), ("Training", "Testing"), ("train_images", "test_images"), ("train", "eval")):
        root = tmp_path / "-".join(names)
        for name in names:
            write(root / name, range(9))
        with pytest.raises(GenfedError, match="has images and no sub-folders, so no class is known"):
            Folder(path=str(root)).load()


def test_parts_without_labels_are_passed_over_and_told(tmp_path: Path) -> None:
    for name in ("flat", "unknown"):
        write_parts(tmp_path / name, "train")
    write(tmp_path / "flat" / "test", range(9))
    write(tmp_path / "unknown" / "test" / "unknown", range(9))
    for name in ("flat", "unknown"):
        data = Folder(path=str(tmp_path / name)).load()
        assert sizes(data) == [12, 2, 4]
        (line,) = [line for line in data.summary.warnings if line.startswith("test/")]
        assert "test/ has no class folders: not used" in line
        assert "genfed predict RUN test/" in line
    (tmp_path / "flat" / "annotations").mkdir()
    (tmp_path / "flat" / "annotations" / "a.xml").write_text("")
    write_parts(tmp_path / "flat", "eval")
    assert any("not read: eval/" in line for line in Folder(path=str(tmp_path / "flat")).load().summary.warnings)


def test_what_was_read_is_told(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test")
    (tmp_path / "train" / "a" / "x.heic").write_bytes(b"")
    (tmp_path / "train" / "b" / "x.txt").write_bytes(b"")
    summary = Folder(path=str(tmp_path)).load().summary
    assert summary.facts[0].endswith(": 32 image files; 2 passed over: .heic 1, .txt 1")
    assert "images: 4 × 3 pixels, grey" in summary.facts
    assert any(line.startswith("pixels: bytes from 0 to 18; black is 0, white is 255") for line in summary.facts)
    assert any(".heic 1" in line for line in summary.warnings)
    assert any("fill little of 0 to 255" in line for line in summary.warnings)
    write(tmp_path / "loose" / "a", range(100, 250, 10))
    write(tmp_path / "loose" / "b", range(100, 250, 10))
    Image.new("L", (4, 3)).save(tmp_path / "loose" / "c.png")
    warnings = Folder(path=str(tmp_path / "loose")).load().summary.warnings
    assert "1 image beside the class folders: not used, no class is known" in warnings


def test_one_image_under_two_labels_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", range(100, 250, 10))
    write(tmp_path / "b", range(230, 256))
    (line,) = [line for line in Folder(path=str(tmp_path)).load().summary.warnings if "several classes" in line]
    assert line == "2 images of several classes: the same pixels stand under different labels"


def test_masks_of_0_and_1_are_black_and_white(tmp_path: Path) -> None:
    for c, label in enumerate("ab"):
        (tmp_path / label).mkdir()
        for i in range(9):
            mask = Image.new("L", (4, 4), 0)
            mask.putpixel((i % 4, c), 1)
            mask.save(tmp_path / label / f"{i}.png")
    source = Folder(path=str(tmp_path))
    data = source.load()
    assert data.train.x.unique(sorted=True).tolist() == [0, 255]  # type: ignore[no-untyped-call]
    assert any("0 and 1 only, taken for black and white" in line for line in data.summary.warnings)
    (found,) = source.read(str(tmp_path), data.task, data.encoder)
    assert found.x.unique(sorted=True).tolist() == [0, 255]  # type: ignore[no-untyped-call]
    grey = Folder(path=str(tmp_path), pixels=(0, 255)).load()
    assert int(grey.train.x.max()) == 1


def test_transparent_images_lie_on_a_stated_ground(tmp_path: Path) -> None:
    for c, label in enumerate("ab"):
        (tmp_path / label).mkdir()
        for i in range(12):
            ink = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
            ink.putpixel((i % 4, c + i // 4), (0, 0, 0, 255))
            ink.save(tmp_path / label / f"{i}.png")
    source = Folder(path=str(tmp_path), deduplicate=False)
    data = source.load()
    assert data.train.x.float().mean() == pytest.approx(255 * 15 / 16)
    assert "24 images with transparent pixels: laid on white (background)" in data.summary.facts
    assert not any("of one colour" in line for line in data.summary.warnings)
    (found,) = source.read(str(tmp_path), data.task, data.encoder)
    assert found.x.float().mean() == pytest.approx(255 * 15 / 16)
    black = Folder(path=str(tmp_path), background="black").load()
    assert int(black.train.x.max()) == 0
    (line,) = [line for line in black.summary.warnings if "of one colour" in line]
    assert line.startswith('24 of 24 transparent images are of one colour on black; set data.background = "white"')


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


def test_classes_that_differ_in_capitals_are_told_of(tmp_path: Path) -> None:
    write(tmp_path / "cat", range(10))
    (tmp_path / "probe").mkdir()
    if (tmp_path / "PROBE").exists():
        pytest.skip("this disk takes capitals for small letters")
    (tmp_path / "probe").rmdir()
    write(tmp_path / "Cat", range(240, 250))
    data = Folder(path=str(tmp_path)).load()
    assert data.task.classes == ("Cat", "cat")
    assert data.summary.warnings == ("classes differ only in capitals or spaces; write them alike",)


def test_masks_beside_images_are_warned_of_and_left_out(tmp_path: Path) -> None:
    for label in "ab":
        write(tmp_path / "in" / label, range(12))
        for file in sorted((tmp_path / "in" / label).iterdir()):
            shutil.copy(file, file.with_stem(f"{file.stem}_mask"))
        shutil.copy(file, file.with_stem(f"{file.stem}_mask_1"))
    (line,) = [w for w in Folder(path=str(tmp_path / "in")).load().summary.warnings if "named as another" in w]
    assert line.startswith("26 images are named as another one with '_mask' after it, such as ")
    assert line.endswith('set data.exclude = ["*_mask*"] to leave them out')
    source = Folder(path=str(tmp_path / "in"), exclude=("*_mask*",))
    data = source.load()
    assert sum(map(len, (data.train, data.validation, data.test))) == 24
    assert not any("named as another" in line for line in data.summary.warnings)
    assert "26 passed over: excluded 26" in data.summary.facts[0]
    assert len(next(iter(source.read(str(tmp_path / "in"), data.task, data.encoder))).x) == 24


def test_images_that_are_named_by_numbers_are_no_masks(tmp_path: Path) -> None:
    for label in "ab":
        write(tmp_path / label, range(120))
    assert not any("named as another" in line for line in Folder(path=str(tmp_path)).load().summary.warnings)


def test_new_files_that_are_darker_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genfed.data.images._FILES_AT_ONCE", 7)
    for name in ("own/a", "own/b", "masks"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("L", (4, 4), i)
            image.putpixel((0, 0), 1 if name == "masks" else 255)
            image.point(lambda v, name=name: v > 0 if name == "masks" else v).save(tmp_path / name / f"{i}.png")
    source = Folder(path=str(tmp_path / "own"))
    data = source.load()

    def warned(path: str) -> list[str]:
        return [line for part in source.read(str(tmp_path / path), data.task, data.encoder) for line in part.warnings]

    said = "holds bytes from 0 to 1; the training pixels are from 0 to 255"
    assert warned("masks") == [f"{tmp_path / 'masks'} {said}"]  # once, whatever the number of pieces
    assert warned("masks/0.png") == [f"{tmp_path / 'masks/0.png'} {said}"]
    assert warned("own") == []
    np.savez(tmp_path / "new.npz", x=np.eye(4, dtype=np.uint8)[None])
    assert warned("new.npz") == [f"{tmp_path / 'new.npz'}: x {said}"]
