"""Arrays in one NumPy .npz file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.cells import Cells, number_cells, spell_number
from genfed.data.copies import describe_torn, digest_examples
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder, read_schema
from genfed.data.features import TableSchema, fit_schema, gather_misfits
from genfed.data.images import ImageSource, read_example_array
from genfed.data.npz_source import LabelledArrays, NpzSource
from genfed.data.numerals import PLAIN
from genfed.data.sentinels import find_sentinels
from genfed.preprocessing.arrays import Array, to_examples
from genfed.preprocessing.checks import check_fit, require_path
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some


@settings
class Npz(NpzSource, ImageSource):
    """Arrays x_train, y_train and optionally x_validation, y_validation, x_test, y_test; or x and y.

    Other common names are read too, such as X_train, trainX, train_images with train_labels, or x_val. Numbers of shape
    [n, H, W], [n, H, W, C] or [n, C, H, W] are images; two axes [n, features] are a table of numbers, scaled like those
    of a file. y [n] holds any integers or strings.
    """

    scale: Literal["standard", "range", "none"] = "standard"
    """Scaling of each column of x [n, features] over the training rows: to mean 0 and variance 1 ("standard"), to
    [−1, 1] ("range"), or unchanged ("none"). Images: not used."""
    encoder: str | None = None
    """File encoder.json of another run, whose scales of x [n, features] are used; all sites of a federation need the
    same. None: they are fitted to the training rows."""

    def load(self) -> Dataset:
        found = self.read_file()
        if found.x["train"].ndim == 2:
            return self._build_table(found)
        if self.encoder is not None:
            raise GenfedError(
                f"encoder = {self.encoder!r}: {self.path} holds images, whose scale is set by pixels and background"
            )
        raw = {part: to_examples(x, self.layout, f"{self.path}: x of {part}") for part, x in found.x.items()}
        return self.build_from_arrays(raw, found.y, found.classes, found.natural, self.path, found.summary)

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
        found = encoder.encode(_name_columns(x), f"{path}: {name}")
        yield Examples(tuple(map(str, range(len(x)))), "row", found.x, found.misfits)

    def _build_table(self, given: LabelledArrays) -> Dataset:
        matrices = {part: to_matrix(x, f"{self.path}: x of {part}") for part, x in given.x.items()}
        for part, x in matrices.items():
            if x.shape[1] != (width := matrices["train"].shape[1]):
                raise GenfedError(f"one example of train has shape ({width},), one of {part} ({x.shape[1]},)")
        keys = {part: digest_examples(x) for part, x in matrices.items()}
        cut = self.cut(given.y, given.classes, keys, given.natural)
        train = matrices["train"][cut.rows["train"][1].numpy()]
        if self.encoder is None:
            numbers = {name: (cells, PLAIN) for name, cells in _name_columns(train).items()}
            schema = fit_schema(numbers, {}, self.scale, self.path)
        else:
            schema = read_schema(self.encoder)
            if self.scale != "standard":
                raise GenfedError(
                    f"scale = {self.scale!r}: {self.encoder} has the scales; remove one of them from [data]"
                )
            if list(schema.numbers) != [str(i) for i in range(train.shape[1])]:
                raise GenfedError(f"{self.encoder}: it is not of an .npz with {train.shape[1]} features")
        encoded = {part: schema.encode(_name_columns(x), f"{self.path}: x of {part}") for part, x in matrices.items()}
        data = {part: Data(found.x, given.y[part]) for part, found in encoded.items()}
        summary = _describe_matrix(self.path, matrices["train"], train, self.encoder or self.scale) + given.summary
        summary += gather_misfits(encoded.values()) + describe_torn(given.y, keys, "row", "values")
        natural = given.natural
        return self.build_dataset("table", data, given.classes, natural["train"], schema, natural, summary, cut)


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
    marks = {i: find_sentinels(train[:, i]) for i in range(width)}
    if far := [f"{spell_number(value)} in feature {i}" for i, values in marks.items() for value in values]:
        warnings.append(f"{list_some(far)} stands far from the other numbers; if it means missing, fill it in")
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
