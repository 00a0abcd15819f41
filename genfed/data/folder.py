"""Image files in folders, one folder per class."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Dataset
from genfed.data.images import ImageFiles, ImageSource
from genfed.data.labels import encode_labels
from genfed.preprocessing.checks import require_path
from genfed.preprocessing.image_files import SUFFIXES, FolderContent, find_images, is_hidden
from genfed.preprocessing.part_names import PARTS, UNCLEAR, find_parts, read_part_name
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show

Places = dict[str, list[tuple[str, Path]]]
"""By part, pairs of a class and the folder of its images."""


@dataclass
class FolderLayout:
    """Which folders hold the images of each part and class."""

    places: Places
    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@settings
class Folder(ImageSource):
    """Image files PATH/CLASS/image.png, or PATH/train/CLASS/image.png with validation/ and test/ beside train/.

    Other spellings of the parts are read too, such as Training/, val/ or test_set/, and PATH/CLASS/train/image.png.
    Files of other kinds, and names that begin with a dot, are passed over and counted. Links to folders are followed.
    If each image lies in a sub-folder of its class (PATH/CLASS/PATIENT/image.png), the names of these are the natural
    column "folder", for `group` and for partitions.
    """

    path: str
    """The folder."""
    exclude: tuple[str, ...] | None = None
    """Names of image files to leave out, such as ["*_mask*"]; * stands for any characters. None: none."""

    @property
    def excluded_names(self) -> tuple[str, ...]:
        return self.exclude or ()

    def load(self) -> Dataset:
        root = require_path(self.path)
        if not root.is_dir():
            raise GenfedError(f"{self.path}: not a folder; one sub-folder per class is allowed")
        layout = _find_layout(root, self.path)
        content, found, inner = FolderContent(), dict[str, list[tuple[str, Path]]](), dict[str, list[str]]()
        for part, places in layout.places.items():
            found[part], inner[part] = [], []
            for label, folder in places:
                here = find_images(folder, self.excluded_names)
                if not here.files:
                    raise GenfedError(f"{folder}: there are no images; {', '.join(SUFFIXES)} are allowed")
                found[part] += [(label, file) for file in here.files]
                inner[part] += [_name_sub_folder(file, folder) for file in here.files]
                content.add(here)
        labels = {part: np.array([label for label, _ in files], np.str_) for part, files in found.items()}
        y, classes = encode_labels(labels, None, self.path)
        doubts = (*content.find_doubts(), *layout.warnings, *_find_sub_folder_doubts(labels, inner, self.group))
        summary = SourceSummary((f"{self.path}: {content.describe()}", *layout.facts), doubts)
        files = {part: [(str(file), file) for _, file in pairs] for part, pairs in found.items()}
        images: dict[str, ImageFiles] = {part: functools.partial(list, pairs) for part, pairs in files.items()}
        natural = {part: {"folder": names} if all(names) else {} for part, names in inner.items()}
        if self.group == "folder" and any(map(any, inner.values())) and not all(natural.values()):
            loose = next(
                file for part in inner for name, (_, file) in zip(inner[part], found[part], strict=True) if not name
            )
            raise GenfedError(
                f"{loose}: it lies in no sub-folder of its class; group = 'folder' needs one of each image"
            )
        return self.build_from_files(images, y, classes, natural, self.path, summary)


def _name_sub_folder(file: Path, folder: Path) -> str:
    """Returns the first folder between a class folder and an image in it; empty: there is none."""
    return parts[0] if len(parts := file.relative_to(folder).parts) > 1 else ""


def _find_sub_folder_doubts(
    labels: Mapping[str, NDArray[np.str_]], inner: Mapping[str, Sequence[str]], group: str | None
) -> Iterator[str]:
    """Yields a line if class folders have folders of images in them, which may be the classes, or patients.

    Args:
        labels: The class folder of each image, by part.
        inner: The sub-folder of each image, by part; empty: none.
        group: The setting.
    """
    homes = dict[str, set[str]]()
    for part, names in inner.items():
        for label, name in zip(labels[part].tolist(), names, strict=True):
            if name:
                homes.setdefault(name, set()).add(label)
    if not homes or group is not None:
        return
    if shared := [name for name, there in homes.items() if len(there) > 1]:
        above = list_some((f"{show(label)}/" for label in sorted(homes[shared[0]])), 3)
        names = list_some((show(name) for name in sorted(shared)), 3)
        yield (
            f"{above} have sub-folders of equal names ({names}): if these are the classes, name one of the folders "
            "above them in data.path; if they are patients or the like, set "
            'data.group = "folder" to keep each in one part'
        )
    else:
        shown = list_some((f"{show(name)}/" for name in sorted(homes)), 3)
        yield (
            f"class folders have sub-folders ({shown}): if each is one patient or the like, set data.group = "
            '"folder" to keep it in one part'
        )


def _find_layout(root: Path, name: str) -> FolderLayout:
    """Finds the parts and classes below a folder.

    Raises:
        GenfedError: there are no classes, or the parts are ambiguous.
    """
    facts: list[str] = []
    if not any(read_part_name(folder) for folder in _list_folders(root)):
        root, facts = _enter(root)
    folders = _list_folders(root)
    parts = _find_part_folders(folders, name)
    if parts:
        layout = _divide(folders, parts, name)
    elif (inner := _find_inner_parts(folders, name)) is not None:
        layout = FolderLayout(inner, [f"parts are the folders {', '.join(inner)} below each class"])
    else:
        layout = FolderLayout({"train": list(folders.items())})
    if not layout.places.get("train"):
        raise GenfedError(f"{name}: there are no images; one sub-folder per class is allowed")
    layout.facts = facts + layout.facts
    if loose := len(_list_loose(root)):
        layout.warnings.append(f"{count_of(loose, 'image')} beside the class folders: not used, no class is known")
    return layout


def _enter(root: Path) -> tuple[Path, list[str]]:
    """Returns the first folder below with several sub-folders: an archive often has one folder around everything."""
    inner = root
    while len(folders := _list_folders(inner)) == 1 and not _list_loose(inner):
        (only,) = folders.values()
        if not _list_folders(only):
            break
        inner = only
    return inner, [f"read from {inner.relative_to(root).as_posix()}/ below it"] if inner != root else []


def _find_part_folders(folders: Mapping[str, Path], name: str) -> dict[str, str]:
    """Returns the folders that are parts, with the part of each. Empty: none is.

    Raises:
        GenfedError: there is a part and no training part.
    """
    if parts := find_parts(folders, name):
        return parts
    read = {folder: part for folder in folders if (part := read_part_name(folder)) and not part.own}
    alone = {folder: part.part for folder, part in read.items() if _list_folders(folders[folder])}
    if "train" not in alone.values() and alone and len(alone) == len(folders):
        raise GenfedError(f"{name}: there is {next(iter(alone))}/ and no train/")
    return {folder: part for folder, part in alone.items() if part == "train"}


def _divide(folders: Mapping[str, Path], parts: Mapping[str, str], name: str) -> FolderLayout:
    """Returns the layout of folders that are parts."""
    layout = FolderLayout({})
    home = {part: folder for folder, part in parts.items() if part in PARTS}
    classes = {part: _list_folders(_enter(folders[home[part]])[0]) for part in PARTS if part in home}
    if not classes["train"]:
        raise GenfedError(
            f"{name}: {home['train']}/ has images and no sub-folders, so no class is known; labels in a table are not "
            "read: make one sub-folder per class"
        )
    spelled = {part: folder for part, folder in home.items() if part != folder}
    if spelled:
        layout.facts.append("parts: " + ", ".join(f"{show(folder)}/ is {part}" for part, folder in spelled.items()))
    for part, there in classes.items():
        known = there.keys() & classes["train"].keys()
        if part != "train" and not known and len(there) <= 1:
            layout.warnings.append(
                f"{show(home[part])}/ has no class folders: not used, since it has no labels; `genfed predict RUN "
                f"{show(home[part])}/` classifies its images"
            )
        else:
            layout.places[part] = list(there.items())
    unread = [folder for folder in folders if folder not in home.values() and find_images(folders[folder]).files]
    for folder in unread:
        word = read_part_name(folder)
        if word is None or word.part != UNCLEAR:
            raise GenfedError(f"{name}: {folder}/ stands beside {home['train']}/; {', '.join(PARTS)} are allowed there")
    if unread:
        shown = list_some(f"{show(folder)}/" for folder in unread)
        layout.warnings.append(f"not read: {shown}; name it validation/ or test/ if it is one of these parts")
    return layout


def _find_inner_parts(folders: Mapping[str, Path], name: str) -> Places | None:
    """Returns the layout of PATH/CLASS/PART/image.png. None: it is another one.

    Raises:
        GenfedError: some classes are divided into parts and some are not.
    """
    found = {label: find_parts(_list_folders(folder), str(folder)) for label, folder in folders.items()}
    divided = [label for label, parts in found.items() if parts]
    if not divided:
        return None
    if others := [label for label in folders if label not in divided]:
        raise GenfedError(
            f"{name}: {divided[0]}/ has folders of parts, as {next(iter(found[divided[0]]))}/, and {others[0]}/ not"
        )
    places: Places = {}
    for part in PARTS:
        for label, parts in found.items():
            for inner, which in parts.items():
                if which == part:
                    places.setdefault(part, []).append((label, folders[label] / inner))
    return places


def _list_folders(folder: Path) -> dict[str, Path]:
    """Returns the folders in a folder by name, sorted, since the order of a directory differs from disk to disk. A link
    to this folder or to one that contains it is passed over.
    """
    above = {folder.resolve(), *folder.resolve().parents}
    inner = sorted(f for f in folder.iterdir() if f.is_dir() and not is_hidden(f))
    return {f.name: f for f in inner if not (f.is_symlink() and f.resolve() in above)}


def _list_loose(folder: Path) -> list[Path]:
    """Returns the images that lie in a folder itself."""
    return [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not is_hidden(f) and f.is_file()]
