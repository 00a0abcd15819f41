"""Data sets from the Hugging Face hub, or on disk in its format."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.checks import require_known
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.images import ImageFiles, ImageSource
from genfed.data.labels import encode_labels
from genfed.data.source_summary import SourceSummary
from genfed.data.split import PARTS
from genfed.data.table import Table
from genfed.data.table_source import RawTable, TableSource


@settings
class HuggingFace(ImageSource, TableSource):
    """Images or a table from a data set that the `datasets` library can load."""

    path: str
    """Name on the hub, such as "ylecun/mnist", or a folder written by `save_to_disk` or holding data files."""
    subset: str | None = None
    """Configuration of the data set; None: its only one."""
    revision: str | None = None
    """Commit or tag of the hub's repository; None: the newest."""
    label: str = "label"
    """Column to predict: whole numbers, text or a ClassLabel."""
    image: str | None = None
    """Column of images; None: the only one, or a table if there is none."""
    train_split: str = "train"
    """Name of the split with the training examples."""
    validation_split: str | None = None
    """Name of the split with the validation examples; None: "validation" if it exists, else split off from training."""
    test_split: str | None = None
    """Name of the split with the test examples; None: "test" if it exists, else split off from training."""

    def load(self) -> Dataset:
        splits = self._choose_splits()
        for name in (self.label, *self.natural_names, *(self.numeric or [])):
            require_known(name, splits["train"].column_names, f"{self.path}: column")
        names = getattr(splits["train"].features[self.label], "names", None)  # of a ClassLabel
        y, classes = encode_labels(
            {part: self._read_labels(split, part) for part, split in splits.items()}, None, self.path
        )
        if names is not None:
            classes = tuple(names[int(value)] for value in classes)
        natural = {
            part: {
                name: [str(value) for value in split[name]] for name in self.natural_names if name in split.column_names
            }
            for part, split in splits.items()
        }
        if image := self._find_image_column(splits["train"]):
            files: dict[str, ImageFiles] = {
                part: functools.partial(self._iterate_images, split, image, part) for part, split in splits.items()
            }
            return self.build_from_files(files, y, classes, natural, self.path, SourceSummary())
        tables = {
            part: RawTable(f"{self.path} ({part})", _read_columns(split), True, self.missing_words)
            for part, split in splits.items()
        }
        return self.build_table(tables, y, classes, self.label, natural)

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads images like every source of images, or a table's rows from a CSV or Parquet file."""
        if task.kind == "table":
            return Table(path=path, label=self.label, missing=self.missing).read(path, task, encoder)
        return super().read(path, task, encoder)

    def _choose_splits(self) -> dict[str, Any]:
        """Returns the data set's splits by part."""
        found = self._load()
        names = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
        splits = {}
        for part in PARTS:
            if (name := names[part]) is not None or part in found:
                splits[part] = found[require_known(name or part, found, f"{self.path}: split")]
        return splits

    def _load(self) -> dict[str, Any]:
        require("datasets", extra="huggingface", what='data.kind = "huggingface"')
        import datasets

        folder = Path(self.path)
        try:
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                found = datasets.load_from_disk(self.path)
            else:
                found = datasets.load_dataset(self.path, self.subset, revision=self.revision)
        except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise GenfedError(f"{self.path}: cannot be loaded ({first_line(error)})") from None
        return dict(found) if isinstance(found, datasets.DatasetDict) else {self.train_split: found}

    def _read_labels(self, split: Any, part: str) -> Any:
        values = list(split[require_known(self.label, split.column_names, f"{self.path}: column")])
        # −1 on the hub: the label of a test example is withheld
        if missing := sum(value is None or value == -1 for value in values):
            raise GenfedError(f"{self.path}: {missing} examples of {part} have no label")
        return np.array(values)

    def _find_image_column(self, split: Any) -> str | None:
        import datasets

        found = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
        if self.image is not None:
            return require_known(self.image, found, f"{self.path}: image column")
        if len(found) > 1:
            raise GenfedError(f"{self.path}: there are several image columns, {', '.join(found)}; set image")
        return found[0] if found and self.numeric is None and self.categorical is None else None

    def _iterate_images(self, split: Any, column: str, part: str) -> Iterator[tuple[str, Path | bytes]]:
        """Yields each image's name for messages, and its file or undecoded bytes."""
        import datasets

        rows = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        for i, row in enumerate(rows):
            stored = row[column] or {"bytes": b"", "path": None}
            source = Path(stored["path"] or "") if stored["bytes"] is None else stored["bytes"]
            yield f"{self.path}: image {i} of {part}", source


def _read_columns(split: Any) -> Any:
    """Returns a split as a pyarrow table, a ClassLabel by its names."""
    import datasets
    import pyarrow

    table = split.with_format("arrow")[:]
    for place, (name, feature) in enumerate(split.features.items()):
        if isinstance(feature, datasets.ClassLabel):
            names = [None if i is None or i < 0 else feature.names[i] for i in table.column(name).to_pylist()]
            table = table.set_column(place, name, pyarrow.array(names, pyarrow.string()))
    return table
