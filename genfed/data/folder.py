"""Image files in folders, one folder per class."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.checks import require_path
from genfed.data.dataset import Dataset
from genfed.data.images import ImageFiles, ImageSource, list_images
from genfed.data.labels import encode_labels
from genfed.data.source_summary import SourceSummary
from genfed.data.split import PARTS


@settings
class Folder(ImageSource):
    """Image files PATH/CLASS/image.png, or PATH/train/CLASS/image.png with validation/ and test/ beside train/.

    Files of other kinds, and names that begin with a dot, are ignored.
    """

    path: str
    """The folder."""

    def load(self) -> Dataset:
        root = require_path(self.path)
        if not root.is_dir():
            raise GenfedError(f"{self.path}: not a folder; one sub-folder per class is allowed")
        found = {part: _list_images(folder) for part, folder in self._find_parts(root).items()}
        labels = {part: np.array([label for label, _ in files], np.str_) for part, files in found.items()}
        y, classes = encode_labels(labels, None, self.path)
        images: dict[str, ImageFiles] = {
            part: functools.partial(list, [(str(file), file) for _, file in files]) for part, files in found.items()
        }
        return self.build_from_files(images, y, classes, {part: {} for part in y}, self.path, SourceSummary())

    def _find_parts(self, root: Path) -> dict[str, Path]:
        """Returns the folder of each part, which holds the class folders."""
        folders = {folder.name: folder for folder in _list_folders(root)}
        own = {part: folders[part] for part in PARTS if part in folders and _list_folders(folders[part])}
        if not own:
            return {"train": root}
        if "train" not in own:
            raise GenfedError(f"{self.path}: there is {next(iter(own))}/ and no train/")
        if other := sorted(folders.keys() - own.keys()):
            raise GenfedError(f"{self.path}: {other[0]}/ stands beside train/; {', '.join(PARTS)} are allowed there")
        return own


def _list_images(folder: Path) -> Sequence[tuple[str, Path]]:
    """Returns pairs (class, file), sorted, since the order of a directory differs from disk to disk."""
    found = []
    for label in _list_folders(folder):
        found += [(label.name, file) for file in list_images(label)]
    if not found:
        raise GenfedError(f"{folder}: there are no images; one sub-folder per class is allowed")
    return found


def _list_folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
