"""Image files in folders, one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.checks import require_path
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource, images_below
from genfed.data.labels import encode_labels
from genfed.data.split import PARTS


@settings
class Folder(ImageSource):
    """PATH/CLASS/image.png, or PATH/train/CLASS/image.png with validation/ and test/ beside train/.

    Files of other kinds are passed over, and so is what begins with a dot.
    """

    path: str
    """The folder."""

    def load(self) -> Dataset:
        root = require_path(self.path)
        if not root.is_dir():
            raise GenfedError(f"{self.path}: not a folder; one sub-folder per class is allowed")
        found = {part: _images(folder) for part, folder in self._parts(root).items()}
        labels = {part: np.array([label for label, _ in files], np.str_) for part, files in found.items()}
        y, classes = encode_labels(labels, None, self.path)
        data = {
            part: Data(self.stacked(((str(file), file) for _, file in files), len(files)), y[part])
            for part, files in found.items()
        }
        return self.dataset("image", data, classes, {})

    def _parts(self, root: Path) -> dict[str, Path]:
        """The folders that hold the class folders."""
        folders = {folder.name: folder for folder in _folders(root)}
        own = {part: folders[part] for part in PARTS if part in folders and _folders(folders[part])}
        if not own:
            return {"train": root}
        if "train" not in own:
            raise GenfedError(f"{self.path}: there is {next(iter(own))}/ and no train/")
        if other := sorted(folders.keys() - own.keys()):
            raise GenfedError(f"{self.path}: {other[0]}/ stands beside train/; {', '.join(PARTS)} are allowed there")
        return own


def _images(folder: Path) -> Sequence[tuple[str, Path]]:
    """(class, file), sorted: the order of a directory differs from disk to disk."""
    found = []
    for label in _folders(folder):
        found += [(label.name, file) for file in images_below(label)]
    if not found:
        raise GenfedError(f"{folder}: there are no images; one sub-folder per class is allowed")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
