"""Folders inside the class folders: patients that must stay together, or the classes themselves, a level too low."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.data.folder import Folder

SHADES = iter(range(10**6))


def write(root: Path, *folders: str, n: int = 5) -> str:
    """Writes n images, each of its own, in each of these folders."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = np.random.default_rng(next(SHADES)).integers(0, 255, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return str(root)


def test_classes_without_sub_folders_are_not_told_of(tmp_path: Path) -> None:
    data = Folder(path=write(tmp_path, "a", "b", n=10)).load()
    assert data.summary.warnings == ()
    assert dict(data.columns) == {}


@pytest.mark.parametrize("above", [("fold1", "fold2"), ("images", "masks"), ("train/2020", "train/2021")])
def test_a_path_one_level_too_high_is_told_of(above: tuple[str, str], tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{folder}/{label}" for folder in above for label in ("dog", "cat")), n=10)
    (line,) = Folder(path=path).load().summary.warnings
    first, second = (Path(folder).name for folder in above)
    assert line.startswith(
        f"{first}/, {second}/ have sub-folders of equal names (cat, dog): if these are the classes, name one of the "
        "folders above them in data.path"
    )
    assert Folder(path=str(tmp_path / above[0])).load().summary.warnings == ()


def test_folders_of_patients_are_told_of_and_can_be_kept_together(tmp_path: Path) -> None:
    patients = [f"{label}/p{i}" for label, some in (("ill", range(12)), ("well", range(6, 24))) for i in some]
    path = write(tmp_path, *patients)
    (line,) = Folder(path=path).load().summary.warnings
    assert line.startswith("ill/, well/ have sub-folders of equal names (p10, p11, p6 … and 3 more): if these are")
    assert line.endswith('if they are patients or the like, set data.group = "folder" to keep each in one part')
    data = Folder(path=path, group="folder").load()
    assert data.summary.warnings == ()
    parts = [set(columns["folder"]) for columns in (data.columns, data.validation_columns, data.test_columns)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    assert all(parts)


def test_folders_of_one_class_each_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, "ill/p1", "ill/p2", "ill/p3", "well/p4/day1", "well/p4/day2", "well/p5", "well/p6")
    (line,) = Folder(path=path).load().summary.warnings
    assert line == (
        "class folders have sub-folders (p1/, p2/, p3/ … and 3 more): if each is one patient or the like, set "
        'data.group = "folder" to keep it in one part'
    )
    data = Folder(path=path, group="folder").load()
    named = [*data.columns["folder"], *data.validation_columns["folder"], *data.test_columns["folder"]]
    assert named.count("p4") == 10


def test_given_parts_must_not_share_a_patient(tmp_path: Path) -> None:
    path = write(tmp_path, *(f"train/{label}/p{i}" for label in "ab" for i in range(6)), "test/a/p9", "test/b/p9")
    assert Folder(path=path, group="folder").load().summary.warnings == ()
    write(tmp_path, "test/b/p3")
    with pytest.raises(GenfedError, match="group 'folder': 'p3' is in the given train and test parts"):
        Folder(path=path, group="folder").load()


def test_images_beside_sub_folders_have_no_group(tmp_path: Path) -> None:
    path = write(tmp_path, "a", "a/p1", "a/p2", "b/p3", "b/p4")
    (line,) = Folder(path=path).load().summary.warnings
    assert line.startswith("class folders have sub-folders (p1/, p2/, p3/")
    with pytest.raises(GenfedError, match=r"a/0\.png: it lies in no sub-folder of its class; group = 'folder' needs"):
        Folder(path=path, group="folder").load()
    with pytest.raises(GenfedError, match="natural column of the train part 'patient' is not there"):
        Folder(path=path, group="patient").load()
