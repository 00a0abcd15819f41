"""Arrays in one NumPy .npz file."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.method import Data
from genfed.core.settings import settings
from genfed.data.checks import existing, known, reason
from genfed.data.dataset import Dataset
from genfed.data.images import ImageSource
from genfed.data.labels import encode
from genfed.data.split import PARTS

Array = NDArray[Any]


@settings
class Npz(ImageSource):
    """Arrays x_train, y_train and, where there are any, x_validation, y_validation, x_test, y_test; or x and y.

    x of whole numbers 0..255, [n, H, W], [n, H, W, C] or [n, C, H, W], are images; of two axes, [n, features], a
    table; images of floats are used as they are and should lie in [−1, 1]. y [n] holds any integers or strings.
    """

    path: str
    """The file."""
    layout: Literal["NHWC", "NCHW"] | None = None
    """Where the channels of four axes stand; None: the axis of size 1 or 3, last or second."""
    classes: tuple[str, ...] | None = None
    """The names of the classes, in the order of their sorted labels; None: the labels themselves."""
    columns: tuple[str, ...] | None = None
    """Arrays of natural columns, e.g. ["subject"], to partition by: NAME_train or NAME; None: none."""
    split: str | None = None
    """The array that says of each row of x which part it is in: "train", "validation" or "test", or 0 (train) and
    1 (test). None: there is none."""

    def load(self) -> Dataset:
        arrays = _read(self.path, self._wanted)
        given = self._parts(arrays)
        y, classes = encode({part: labels for part, (_, labels) in given.items()}, self.classes, self.path)
        images = {part: self._tensor(x, f"{self.path}: x of {part}") for part, (x, _) in given.items()}
        data = {part: Data(x, y[part]) for part, x in images.items()}
        kind: Literal["image", "table"] = "table" if images["train"].ndim == 2 else "image"
        return self.dataset(kind, data, classes, self._columns(arrays, len(y["train"])))

    def _wanted(self, name: str) -> bool:
        stems = ["x", "y", *(self.columns or [])]
        return name == self.split or name in stems or name in [f"{stem}_{part}" for stem in stems for part in PARTS]

    def _parts(self, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        """(x, y) of each part that the file brings."""
        own = [part for part in PARTS if f"x_{part}" in arrays]
        names = {part: (f"x_{part}", f"y_{part}") for part in own} if own else {"train": ("x", "y")}
        if "train" not in names:
            raise GenfedError(f"{self.path}: there is x_{own[0]} and no x_train")
        for name in (name for pair in names.values() for name in pair):
            known(name, arrays, f"{self.path}: array")
        given = {part: (arrays[x], arrays[y]) for part, (x, y) in names.items()}
        for part, (x, y) in given.items():
            if x.shape[:1] != y.shape[:1]:
                raise GenfedError(f"{self.path}: {names[part][0]} has shape {x.shape}, {names[part][1]} {y.shape}")
        return given if self.split is None else self._divided(*given["train"], arrays)

    def _divided(self, x: Array, y: Array, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        assert self.split is not None
        marks = arrays[known(self.split, arrays, f"{self.path}: array")]
        if marks.shape != (len(x),) or "x" not in arrays:
            raise GenfedError(f"{self.path}: {self.split} has shape {marks.shape}; one mark per row of x is allowed")
        parts = np.array([{"0": "train", "1": "test"}.get(str(mark), str(mark)) for mark in marks])
        if len(other := np.setdiff1d(parts, PARTS)):
            raise GenfedError(
                f"{self.path}: {self.split} holds {str(other[0])!r}; {', '.join(PARTS)}, 0, 1 are allowed"
            )
        if "train" not in parts:
            raise GenfedError(f"{self.path}: {self.split} has no row of train")
        return {part: (x[parts == part], y[parts == part]) for part in PARTS if part in parts}

    def _tensor(self, x: Array, where: str) -> Tensor:
        """float32 [n, features], or images uint8 or float32 [n, C, H, W]."""
        if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf":
            raise GenfedError(f"{where} is {x.dtype} {x.shape}; numbers [n, features], [n, H, W] or 4 axes are allowed")
        if x.ndim == 2 or x.dtype.kind == "f":
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
            if bad := x.size - int(np.isfinite(x).sum()):
                raise GenfedError(f"{where} holds {bad} values that are NaN or infinite")
            if x.ndim == 2:
                return torch.from_numpy(x)
        elif x.size and (x.min() < 0 or x.max() > 255):
            raise GenfedError(f"{where} holds whole numbers from {x.min()} to {x.max()}; pixels 0 to 255 are allowed")
        else:
            x = x.astype(np.uint8, copy=False)
        return self.converted(torch.from_numpy(self._channels_first(x, where)))

    def _channels_first(self, x: Array, where: str) -> Array:
        if x.ndim == 3:
            return x[:, None]
        last, first = x.shape[3] in (1, 3), x.shape[1] in (1, 3)
        if self.layout is None and last == first:
            raise GenfedError(f"{where} has shape {x.shape}: which axis is the channels'? Set layout to NHWC or NCHW")
        return x.transpose(0, 3, 1, 2) if self.layout == "NHWC" or (self.layout is None and last) else x

    def _columns(self, arrays: Mapping[str, Array], n: int) -> dict[str, list[str]]:
        """The values of the training examples."""
        found = {}
        for name in self.columns or []:
            stored = f"{name}_train" if f"{name}_train" in arrays else name
            values = arrays[known(stored, arrays, f"{self.path}: array")]
            if self.split is not None and len(values) == len(arrays[self.split]):
                values = values[np.isin(arrays[self.split].astype(str), ["train", "0"])]
            if values.shape != (n,):
                raise GenfedError(f"{self.path}: {stored} has shape {values.shape}; the examples have ({n},)")
            found[name] = [str(value) for value in values]
        return found


def _read(path: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """All arrays by name; those not wanted stay unread and are empty."""
    file = existing(path)
    try:
        # NumPy leaves a file that it opened itself open when that turns out to be damaged
        with file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise GenfedError(f"{path}: one array; an .npz file of named arrays is allowed (np.savez)")
            return {name: arrays[name] if wanted(name) else np.empty(0) for name in arrays.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise GenfedError(f"{path}: not a readable .npz file ({reason(error)})") from None
