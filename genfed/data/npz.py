"""Arrays in one NumPy .npz file."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.arrays import Array, Layout, read_arrays
from genfed.data.checks import require_known
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.data.labels import encode_labels
from genfed.data.split import PARTS


@settings
class Npz(ImageSource):
    """Arrays x_train, y_train and optionally x_validation, y_validation, x_test, y_test; or x and y.

    Whole numbers 0..255 of shape [n, H, W], [n, H, W, C] or [n, C, H, W] are images; two axes [n, features] are a
    table. Images of floats are used unchanged and should lie in [−1, 1]. y [n] holds any integers or strings.
    """

    path: str
    """The .npz file."""
    layout: Layout | None = None
    """Order of the four axes of images; None: the channels are the axis of size 1 or 3, last or second."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their sorted labels; None: the labels themselves."""
    columns: tuple[str, ...] | None = None
    """Arrays of natural columns to partition by, such as ["subject"]: NAME_train or NAME, and NAME_validation and
    NAME_test if they exist. None: none."""
    split: str | None = None
    """Array that gives the part of each row of x: "train", "validation" or "test", or 0 (train) and 1 (test). None:
    there is none."""

    def load(self) -> Dataset:
        arrays = read_arrays(self.path, self._is_wanted)
        given = self._read_parts(arrays)
        y, classes = encode_labels({part: labels for part, (_, labels) in given.items()}, self.classes, self.path)
        images = {part: self.to_tensor(x, f"{self.path}: x of {part}") for part, (x, _) in given.items()}
        data = {part: Data(x, y[part]) for part, x in images.items()}
        kind: Literal["image", "table"] = "table" if images["train"].ndim == 2 else "image"
        natural = {part: self._read_columns(arrays, part, len(labels)) for part, labels in y.items()}
        return self.build_dataset(kind, data, classes, natural["train"], None, natural)

    def _is_wanted(self, name: str) -> bool:
        stems = ["x", "y", *(self.columns or [])]
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

    def to_tensor(self, x: Array, where: str, layout: Layout | None = None) -> Tensor:
        return super().to_tensor(x, where, layout or self.layout)

    def _read_columns(self, arrays: Mapping[str, Array], part: str, n: int) -> dict[str, list[str]]:
        """Returns the natural columns of a part's n examples; only "train" must have all of them."""
        found = {}
        for name in self.columns or []:
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


def _name_parts(marks: Array) -> Array:
    """Returns the name of each row's part."""
    return np.array([{"0": "train", "1": "test"}.get(str(mark), str(mark)) for mark in marks])
