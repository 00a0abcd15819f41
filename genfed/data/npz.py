"""Arrays in one NumPy .npz file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.arrays import Array, read_arrays, to_examples
from genfed.data.cells import Cells, number_cells
from genfed.data.checks import check_fit, require_known, require_path
from genfed.data.copies import digest_examples
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder, read_schema
from genfed.data.features import TableSchema, fit_schema
from genfed.data.images import ImageSource, read_example_array
from genfed.data.labels import encode_labels
from genfed.data.numerals import PLAIN
from genfed.data.source_summary import SourceSummary, count_of, list_some
from genfed.data.split import PARTS


@settings
class Npz(ImageSource):
    """Arrays x_train, y_train and optionally x_validation, y_validation, x_test, y_test; or x and y.

    Whole numbers 0..255 of shape [n, H, W], [n, H, W, C] or [n, C, H, W] are images; two axes [n, features] are a
    table of numbers, scaled like those of a file. y [n] holds any integers or strings.
    """

    path: str
    """The .npz file."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their sorted labels; None: the labels themselves."""
    columns: tuple[str, ...] | None = None
    """Arrays of natural columns to partition by, such as ["subject"]: NAME_train or NAME, and NAME_validation and
    NAME_test if they exist. None: none."""
    split: str | None = None
    """Array that gives the part of each row of x: "train", "validation" or "test", or 0 (train) and 1 (test). None:
    there is none."""

    scale: Literal["standard", "range", "none"] = "standard"
    """Scaling of each column of x [n, features] over the training rows: to mean 0 and variance 1 ("standard"), to
    [−1, 1] ("range"), or unchanged ("none"). Images: not used."""
    encoder: str | None = None
    """File encoder.json of another run, whose scales of x [n, features] are used; all sites of a federation need the
    same. None: they are fitted to the training rows."""

    def load(self) -> Dataset:
        arrays = read_arrays(self.path, lambda names: set(filter(self._is_wanted, names)))
        given = self._read_parts(arrays)
        y, classes = encode_labels({part: labels for part, (_, labels) in given.items()}, self.classes, self.path)
        natural = {part: self._read_columns(arrays, part, len(labels)) for part, labels in y.items()}
        if given["train"][0].ndim == 2:
            return self._build_table({part: x for part, (x, _) in given.items()}, y, classes, natural)
        raw = {part: to_examples(x, self.layout, f"{self.path}: x of {part}") for part, (x, _) in given.items()}
        return self.build_from_arrays(raw, y, classes, natural, self.path, SourceSummary())

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads images like every source of images; the rows of a table from the array x of an .npz."""
        if task.kind != "table":
            yield from super().read(path, task, encoder)
            return
        if Path(path).suffix.lower() != ".npz":
            require_path(path)
            raise GenfedError(f"{path}: the run's examples are a table; an .npz with an array x is allowed")
        name, raw = read_example_array(path)
        x = to_matrix(raw, f"{path}: {name}")
        check_fit(tuple(x.shape[1:]), task, f"{path}: {name}")
        if not len(x):
            raise GenfedError(f"{path}: {name} holds no examples")
        if not isinstance(encoder, TableSchema):
            raise GenfedError(
                f"{path}: rows must be scaled like the training rows, but the run's folder has no encoder.json; "
                "resuming the run (--resume) writes it"
            )
        yield Examples(tuple(map(str, range(len(x)))), "row", encoder.encode(_name_columns(x), path).x)

    @property
    def natural_names(self) -> tuple[str, ...]:
        """The natural columns, the group among them."""
        return tuple(dict.fromkeys((*(self.columns or ()), *(() if self.group is None else (self.group,)))))

    def _build_table(
        self,
        given: Mapping[str, Array],
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        natural: Mapping[str, Mapping[str, Sequence[str]]],
    ) -> Dataset:
        matrices = {part: to_matrix(x, f"{self.path}: x of {part}") for part, x in given.items()}
        for part, x in matrices.items():
            if x.shape[1] != (width := matrices["train"].shape[1]):
                raise GenfedError(f"one example of train has shape ({width},), one of {part} ({x.shape[1]},)")
        cut = self.cut(y, classes, {part: digest_examples(x) for part, x in matrices.items()}, natural)
        train = matrices["train"][cut.rows["train"][1].numpy()]
        if self.encoder is None:
            numbers = {name: (cells, PLAIN) for name, cells in _name_columns(train).items()}
            schema = fit_schema(numbers, {}, self.scale, self.path)
        else:
            schema = read_schema(self.encoder)
            if list(schema.numbers) != [str(i) for i in range(train.shape[1])]:
                raise GenfedError(f"{self.encoder}: it is not of an .npz with {train.shape[1]} features")
        data = {
            part: Data(schema.encode(_name_columns(x), f"{self.path}: x of {part}").x, y[part])
            for part, x in matrices.items()
        }
        said = _describe_matrix(self.path, matrices["train"], train, self.encoder or self.scale)
        return self.build_dataset("table", data, classes, natural["train"], schema, natural, said, cut)

    def _is_wanted(self, name: str) -> bool:
        stems = ["x", "y", *self.natural_names]
        return name == self.split or name in stems or name in [f"{stem}_{part}" for stem in stems for part in PARTS]

    def _read_parts(self, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        """Returns (x, y) of each part in the file."""
        own = [part for part in PARTS if f"x_{part}" in arrays]
        names = {part: (f"x_{part}", f"y_{part}") for part in own} if own else {"train": ("x", "y")}
        if "train" not in names:
            raise GenfedError(f"{self.path}: there is x_{own[0]} and no x_train")
        for name in (name for pair in names.values() for name in pair):
            require_known(name, arrays, f"{self.path}: array")
        given = {part: (arrays[x], arrays[y]) for part, (x, y) in names.items()}
        for part, (x, y) in given.items():
            if x.shape[:1] != y.shape[:1]:
                raise GenfedError(f"{self.path}: {names[part][0]} has shape {x.shape}, {names[part][1]} {y.shape}")
        return given if self.split is None else self._divide(*given["train"], arrays)

    def _divide(self, x: Array, y: Array, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        assert self.split is not None
        marks = arrays[require_known(self.split, arrays, f"{self.path}: array")]
        if marks.shape != (len(x),) or "x" not in arrays:
            raise GenfedError(f"{self.path}: {self.split} has shape {marks.shape}; one mark per row of x is allowed")
        parts = _name_parts(marks)
        if len(other := np.setdiff1d(parts, PARTS)):
            raise GenfedError(
                f"{self.path}: {self.split} holds {str(other[0])!r}; {', '.join(PARTS)}, 0, 1 are allowed"
            )
        if "train" not in parts:
            raise GenfedError(f"{self.path}: {self.split} has no row of train")
        return {part: (x[parts == part], y[parts == part]) for part in PARTS if part in parts}

    def _read_columns(self, arrays: Mapping[str, Array], part: str, n: int) -> dict[str, list[str]]:
        """Returns the natural columns of a part's n examples; only "train" must have all of them."""
        found = {}
        for name in self.natural_names:
            stored = f"{name}_{part}" if f"{name}_{part}" in arrays else name
            marks = None if self.split is None else arrays[self.split]
            divided = marks is not None and stored in arrays and len(arrays[stored]) == len(marks)
            if part != "train" and stored == name and not divided:
                continue
            values = arrays[require_known(stored, arrays, f"{self.path}: array")]
            if marks is not None and divided:
                values = values[_name_parts(marks) == part]
            if values.shape != (n,):
                raise GenfedError(f"{self.path}: {stored} has shape {values.shape}; the examples have ({n},)")
            found[name] = [str(value) for value in values]
        return found


def to_matrix(x: Array, where: str) -> NDArray[np.float64]:
    """Returns an array as numbers [n, features].

    Raises:
        GenfedError: it has other axes, holds no numbers, or one of them is not finite in 32 bits.
    """
    if x.ndim != 2 or x.dtype.kind not in "biuf" or not x.shape[1]:
        raise GenfedError(f"{where} is {x.dtype} {x.shape}; numbers [n, features] are allowed")
    with np.errstate(over="ignore"):
        if invalid := x.size - int(np.isfinite(x.astype(np.float32)).sum()):
            raise GenfedError(f"{where} holds {invalid} values that are NaN or infinite")
    return x.astype(np.float64)


def _name_columns(x: NDArray[np.float64]) -> dict[str, Cells]:
    return {str(i): number_cells(x[:, i]) for i in range(x.shape[1])}


def _describe_matrix(path: str, given: NDArray[np.float64], train: NDArray[np.float64], scaled: str) -> SourceSummary:
    """Describes the features of a table in arrays: `given` as they stand in the file, `train` those of training."""
    n, width = given.shape
    facts = [f"{path}: {count_of(width, 'feature')}, {train.min():.6g} to {train.max():.6g}, scaling {scaled!r}"]
    warnings = []
    if same := np.flatnonzero(np.ptp(train, axis=0) == 0).tolist():
        facts.append(f"features with one value: {list_some(map(str, same))}")
    if n > 2 and len(running := np.flatnonzero((np.diff(given, axis=0) == 1).all(0)).tolist()):
        warnings.append(f"feature {list_some(map(str, running))} of x numbers the rows; leave it out of x")
    side = round(float(np.sqrt(width)))
    if (
        side > 3
        and side * side == width
        and given.min() >= 0
        and given.max() in range(16, 256)
        and (given % 1 == 0).all()
    ):
        warnings.append(f"x seems to hold images in rows; x of shape [n, {side}, {side}] is read as images")
    return SourceSummary(tuple(facts), tuple(warnings))


def _name_parts(marks: Array) -> Array:
    """Returns the name of each row's part."""
    known = {"0": "train", "1": "test", "False": "train", "True": "test"}
    texts = [mark.decode("utf-8", "replace") if isinstance(mark, bytes) else str(mark) for mark in marks.tolist()]
    return np.array([known.get(text, text) for text in texts])
