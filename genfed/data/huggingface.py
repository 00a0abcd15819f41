"""Data sets from the Hugging Face hub, or on disk in its format."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.huggingface_paths import check_image_path, check_named_files, check_resolved_files, is_saved
from genfed.data.images import ImageFiles, ImageSource, Natural
from genfed.data.labels import doubt_classes, encode_labels
from genfed.data.table import Table
from genfed.data.table_source import RawTable, TableSource, read_natural
from genfed.preprocessing.arrays import to_examples
from genfed.preprocessing.checks import require_known
from genfed.preprocessing.part_names import PARTS, find_parts
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show


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
        splits, summary = self._choose_splits()
        for name in (self.label, *self.natural_names, *(self.features or ()), *(self.numeric or ())):
            require_known(name, splits["train"].column_names, f"{self.path}: column")
        labels, said = self._read_labels(splits)
        summary += said
        y, classes = encode_labels(labels, None, self.path)
        if (names := _class_names(splits["train"], self.label)) is not None:
            classes = tuple(names[int(value)] for value in classes)
        summary += doubt_classes(classes, self.not_missing or (), "data.not_missing")
        splits = {part: splits[part] for part in labels}
        image = self._find_image_column(splits["train"])
        needed = None if image is None else self.natural_names
        tables = {
            part: RawTable(f"{self.path} ({part})", _read_columns(split, needed), True, self.missing_words())
            for part, split in splits.items()
        }
        natural = read_natural(tables, self.natural_names)
        if image is not None:
            if self.encoder is not None:
                raise GenfedError(
                    f"encoder = {self.encoder!r}: {self.path} holds images, whose scale is set by pixels and background"
                )
            return self._build_images(splits, image, y, classes, natural, summary)
        table = self.build_table(tables, y, classes, self.label, natural)
        return replace(table, summary=summary + table.summary)

    def _build_images(
        self,
        splits: Mapping[str, Any],
        image: str,
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        natural: Natural,
        summary: SourceSummary,
    ) -> Dataset:
        import datasets

        if isinstance(splits["train"].features[image], datasets.Image):
            files: dict[str, ImageFiles] = {
                part: functools.partial(self._iterate_images, split, image, part) for part, split in splits.items()
            }
            return self.build_from_files(files, y, classes, natural, self.path, summary)
        arrays = {
            part: to_examples(self._read_arrays(split, image, part), self.layout, f"{self.path}: {image} of {part}")
            for part, split in splits.items()
        }
        return self.build_from_arrays(arrays, y, classes, natural, self.path, summary)

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads images like every source of images, or a table's rows from a CSV or Parquet file."""
        if task.kind == "table":
            table = Table(path=path, label=self.label, missing=self.missing, not_missing=self.not_missing)
            return table.read(path, task, encoder)
        return super().read(path, task, encoder)

    def _choose_splits(self) -> tuple[dict[str, Any], SourceSummary]:
        """Returns the data set's splits by part, and what is said of them."""
        found = self._load()
        named = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
        spelled = {part: name for name, part in find_parts(found, self.path).items()}
        names = {}
        for part in PARTS:
            wanted = named[part]
            if wanted is None or (wanted == part and part not in found):
                wanted = part if part in found else spelled.get(part, wanted)
            if wanted is not None:
                names[part] = require_known(wanted, found, f"{self.path}: split")
        sizes = ", ".join(f"{show(name)} {len(found[name]):,}" for name in names.values())
        unread = list_some(f"{show(name)} {len(found[name]):,}" for name in found if name not in names.values())
        doubt = f"splits that are not read: {unread}; name them in validation_split, test_split or train_split"
        summary = SourceSummary((f"{self.path}: splits {sizes}",), (doubt,) if unread else ())
        return {part: found[name] for part, name in names.items()}, summary

    def _load(self) -> dict[str, Any]:
        require("datasets", extra="huggingface", what='data.kind = "huggingface"')
        import datasets

        folder = Path(self.path)
        try:
            if folder.is_dir():
                check_named_files(folder)
            if is_saved(folder):
                found = datasets.load_from_disk(self.path)
            else:
                builder = datasets.load_dataset_builder(self.path, self.subset, revision=self.revision)
                if not folder.is_dir():
                    check_resolved_files(builder.config.data_files, self.path)
                builder.download_and_prepare()
                found = builder.as_dataset()
        except GenfedError:
            raise
        except Exception as error:  # the library raises anything on damaged files
            about = first_line(error) or type(error).__name__
            raise GenfedError(f"{self.path}: cannot be loaded ({about})") from None
        return dict(found) if isinstance(found, datasets.DatasetDict) else {self.train_split: found}

    def _read_labels(self, splits: Mapping[str, Any]) -> tuple[dict[str, Any], SourceSummary]:
        """Returns the labels [n] by part, without parts whose labels are withheld. Where "train" names classes, labels
        are its numbers.

        Raises:
            GenfedError: the training part or some examples of another have no label, or a class is not in "train".
        """
        found, warnings = dict[str, Any](), list[str]()
        names = _class_names(splits["train"], self.label)
        for part, split in splits.items():
            values = list(split[require_known(self.label, split.column_names, f"{self.path}: column")])
            own = _class_names(split, self.label)
            # −1 on the hub: the label of a test example is withheld. It is a class where others are numbers beside it.
            minus = sum(value == -1 for value in values)
            withheld = minus == len(values) and not (own is None and -1 in found.get("train", ()))
            missing = values.count(None) + (minus if withheld or own is not None else 0)
            if missing == len(values) and part != "train":
                warnings.append(f"the {part} split has no labels: not used")
                continue
            if missing:
                raise GenfedError(f"{self.path}: {missing} examples of {part} have no label")
            if minus and own is None and len(set(values)) > 2:
                warnings.append(f"label -1 of {count_of(minus, f'{part} example')} is taken for a class")
            texts = values if own is None else [own[value] for value in values]
            found[part] = np.array(texts if names is None else [self._number(text, names, part) for text in texts])
        return found, SourceSummary((), tuple(warnings))

    def _number(self, label: Any, names: Sequence[str], part: str) -> Any:
        """Returns the number of a class that is given by its name; a number stays."""
        if not isinstance(label, str):
            return label
        if label not in names:
            raise GenfedError(f"{self.path}: class {label!r} is in the {part} part and not in train")
        return names.index(label)

    def _find_image_column(self, split: Any) -> str | None:
        import datasets

        files = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
        arrays = [name for name, feature in split.features.items() if name != self.label and _is_array(feature)]
        if self.image is not None:
            return require_known(self.image, files + arrays, f"{self.path}: image column")
        found = files or [name for name in arrays if name not in self.natural_names]
        if len(found) > 1:
            raise GenfedError(f"{self.path}: there are several image columns, {', '.join(found)}; set image")
        is_table = any(named is not None for named in (self.features, self.numeric, self.categorical))
        return found[0] if found and not is_table else None

    def _read_arrays(self, split: Any, column: str, part: str) -> Any:
        """Returns a column of arrays as one [n, ...]."""
        rows = split.select_columns([column])
        try:
            return np.stack([np.asarray(row[column]) for row in rows.with_format("numpy")])
        except (ValueError, TypeError) as error:
            where = f"{self.path}: {column} of {part}"
            raise GenfedError(f"{where}: arrays of one shape are allowed ({first_line(error)})") from None

    def _iterate_images(self, split: Any, column: str, part: str) -> Iterator[tuple[str, Path | bytes]]:
        """Yields each image's name for messages, and its file or undecoded bytes.

        Raises:
            GenfedError: an image is named that is no file of the data set.
        """
        import datasets

        rows = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        for i, row in enumerate(rows):
            stored = row[column] or {"bytes": b"", "path": None}
            name, source = f"{self.path}: image {i} of {part}", stored["bytes"]
            yield name, check_image_path(stored["path"] or "", self.path, name) if source is None else source


def _read_columns(split: Any, wanted: Sequence[str] | None) -> Any:
    """Returns those of the columns that a split has as a pyarrow table, a ClassLabel by its names, which other splits
    may number otherwise. None: all columns.
    """
    import datasets
    import pyarrow

    if wanted is not None:
        split = split.select_columns([name for name in wanted if name in split.column_names])
    table = split.with_format("arrow")[:]
    for place, (name, feature) in enumerate(split.features.items()):
        if isinstance(feature, datasets.ClassLabel):
            names = [None if i is None or i < 0 else feature.names[i] for i in table.column(name).to_pylist()]
            table = table.set_column(place, name, pyarrow.array(names, pyarrow.string()))
    return table


def _is_number(feature: Any) -> bool:
    return not _is_array(feature) and str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))


def _is_array(feature: Any) -> bool:
    """Returns whether a column holds arrays of two or three axes, also as lists of lists."""
    import datasets

    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return True
    depth = 0
    while (inner := getattr(feature, "feature", None)) is not None and not isinstance(inner, dict):
        feature, depth = inner, depth + 1
    return depth in (2, 3) and _is_number(feature)


def _class_names(split: Any, column: str) -> list[str] | None:
    """Returns the names of a ClassLabel. None: the column is another kind."""
    names = getattr(split.features[column], "names", None)
    return None if names is None else list(names)
