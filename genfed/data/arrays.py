"""Arrays of an .npz file and their conversion to examples."""

import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError, first_line
from genfed.data.checks import require_path

Array = NDArray[Any]
Layout = Literal["NHWC", "NCHW"]


def read_arrays(path: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """Returns all arrays of an .npz file by name; an array for whose name `wanted` is false is not read and is empty.

    Raises:
        GenfedError: there is no such file, or it is not a readable .npz.
    """
    file = require_path(path)
    try:
        # NumPy does not close a damaged file that it opened itself.
        with file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise GenfedError(f"{path}: one array; an .npz file of named arrays is allowed (np.savez)")
            return {name: arrays[name] if wanted(name) else np.empty(0) for name in arrays.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise GenfedError(f"{path}: not a readable .npz file ({first_line(error)})") from None


def to_examples(x: Array, layout: Layout | None, where: str) -> Tensor:
    """Converts an array to examples: float32 [n, features], or images uint8 or float32 [n, C, H, W].

    Args:
        x: Numbers [n, features], [n, H, W], [n, H, W, C] or [n, C, H, W]; whole numbers with 3 or 4 axes are pixels.
        layout: Order of the four axes; None: found from the axis of size 1 or 3.
        where: Text that begins an error message, such as "data.npz: x".

    Raises:
        GenfedError: the axes or the type are not allowed, a number is not finite, a pixel is not in 0..255, or the axis
            of the channels is ambiguous.
    """
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf":
        raise GenfedError(f"{where} is {x.dtype} {x.shape}; numbers [n, features], [n, H, W] or 4 axes are allowed")
    if x.ndim == 2 or x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if invalid := x.size - int(np.isfinite(x).sum()):
            raise GenfedError(f"{where} holds {invalid} values that are NaN or infinite")
        if x.ndim == 2:
            return torch.from_numpy(x)
    elif x.size and (x.min() < 0 or x.max() > 255):
        raise GenfedError(f"{where} holds whole numbers from {x.min()} to {x.max()}; pixels 0 to 255 are allowed")
    else:
        x = x.astype(np.uint8, copy=False)
    return torch.from_numpy(_move_channels_first(x, layout, where))


def _move_channels_first(x: Array, layout: Layout | None, where: str) -> Array:
    if x.ndim == 3:
        return x[:, None]
    last, first = x.shape[3] in (1, 3), x.shape[1] in (1, 3)
    if layout is None and last == first:
        raise GenfedError(f"{where} has shape {x.shape}: which axis is the channels'? Set layout to NHWC or NCHW")
    return x.transpose(0, 3, 1, 2) if layout == "NHWC" or (layout is None and last) else x
