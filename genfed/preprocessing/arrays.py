"""Arrays of an .npz file and their conversion to examples."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from genfed.core.errors import GenfedError, first_line
from genfed.preprocessing.checks import require_path

Array = NDArray[Any]
Layout = Literal["NHWC", "NCHW"]


def read_arrays(path: str, choose: Callable[[Sequence[str]], Collection[str]]) -> dict[str, Array]:
    """Returns all arrays of an .npz file by name; an array that `choose` leaves out is not read and is empty.

    Args:
        path: The file.
        choose: All names → the names of the arrays to read.

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
            chosen = choose(arrays.files)
            return {name: np.asarray(arrays[name]) if name in chosen else np.empty(0) for name in arrays.files}
    except GenfedError:
        raise
    except Exception as error:  # NumPy and zipfile raise anything on damaged files, MemoryError for a huge shape
        about = first_line(error) or type(error).__name__
        raise GenfedError(f"{path}: not a readable .npz file ({about})") from None


def to_examples(x: Array, layout: Layout | None, where: str) -> Array:
    """Checks an array, and returns its examples: float32 [n, features], or pixels as they are stored [n, C, H, W].

    Args:
        x: Numbers [n, features], [n, H, W], [n, H, W, C] or [n, C, H, W].
        layout: Order of the four axes; None: found from the axis of size 1 or 3.
        where: Text that begins an error message, such as "data.npz: x".

    Raises:
        GenfedError: the axes or the type are not allowed, a number is not finite, or the axis of the channels is
            ambiguous.
    """
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf":
        raise GenfedError(f"{where} is {x.dtype} {x.shape}; numbers [n, features], [n, H, W] or 4 axes are allowed")
    if len(x) and not x.size:
        raise GenfedError(f"{where} has shape {x.shape}; an example without numbers is not allowed")
    if x.ndim == 2:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    if x.dtype.kind == "f" and (invalid := x.size - sum(int(np.isfinite(row).sum()) for row in x)):
        raise GenfedError(f"{where} holds {invalid} values that are NaN or infinite")
    return x if x.ndim == 2 else _move_channels_first(x, layout, where)


def read_texts(values: Array, encoding: str, where: str) -> Array:
    """Returns the values [n] as texts; bytes are decoded.

    Raises:
        GenfedError: the bytes are of another encoding.
    """
    if values.dtype.kind != "S":
        return values.astype(np.str_)
    try:
        return np.char.decode(values, encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise GenfedError(
            f"{where}: texts are stored as bytes that are not {encoding} ({first_line(error)}); set encoding, such as "
            '"latin-1"'
        ) from None


def _move_channels_first(x: Array, layout: Layout | None, where: str) -> Array:
    if x.ndim == 3:
        return x[:, None]
    last, first = x.shape[3] in (1, 3), x.shape[1] in (1, 3)
    if layout is None and last == first:
        raise GenfedError(f"{where} has shape {x.shape}: which axis is the channels'? Set layout to NHWC or NCHW")
    return x.transpose(0, 3, 1, 2) if layout == "NHWC" or (layout is None and last) else x
