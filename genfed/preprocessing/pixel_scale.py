"""The scale of pixels: which stored value is black and which is white, fitted once to the training part."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.preprocessing.arrays import Array

Ground = Literal["white", "black"]


def _check_order(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"black is {low:g} and white {high:g}; black is the smaller number")
    return ends


Range = Annotated[tuple[float, float], AfterValidator(_check_order)]
"""Black and white. Where it is read from a file, black is the smaller one."""
BYTES: Range = (0.0, 255.0)
UNIT: Range = (0.0, 1.0)
_SIGNED: tuple[Range, ...] = ((-1.0, 1.0), (-0.5, 0.5))
_USUAL = (BYTES, UNIT, *_SIGNED)
"""Scales that are recognized by the pixels themselves."""
_SLACK = 0.05
"""Share of a scale. Floats that were resized or filtered may exceed their scale by it."""
_NARROW = 0.25
"""Share of a scale. Of pixels that fill less of it, it is said that they may be dark."""
_AT_ONCE = 2**22  # numbers converted at once: 32 MB as float64


@dataclass(frozen=True)
class PixelRange:
    """The smallest and the largest of some pixels, and how they were stored."""

    low: float
    high: float
    whole: bool
    """Whether all are whole numbers."""
    stored: Literal["bytes", "bits", "integers", "floats"]
    """Bytes: whole numbers from 0 to 255; bits: truth values; integers: others; floats, even if all are whole."""

    def __str__(self) -> str:
        kind = {"bits": "truth values", "integers": "whole numbers"}.get(self.stored, self.stored)
        return f"{kind} from {_format(self.low)} to {_format(self.high)}"

    def __or__(self, other: "PixelRange") -> "PixelRange":
        """Returns the range of both; what is stored in several ways counts as the widest of them."""
        order = ("bits", "bytes", "integers", "floats")
        return PixelRange(
            min(self.low, other.low),
            max(self.high, other.high),
            self.whole and other.whole,
            max(self.stored, other.stored, key=order.index),
        )


def measure_pixels(x: Array, rows: Tensor | None = None) -> PixelRange:
    """Returns the range of finite numbers [n, ...], n ≥ 1; of these rows only, unless None."""
    parts = _chunks(x) if rows is None else (x[some.numpy()] for some in torch.split(rows, _rows_at_once(x)))
    return functools.reduce(PixelRange.__or__, map(_measure, parts))


def _measure(x: Array) -> PixelRange:
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind == "f":
        return PixelRange(low, high, bool(np.all(x == np.rint(x))), "floats")
    if x.dtype.kind == "b":
        return PixelRange(low, high, True, "bits")
    return PixelRange(low, high, True, "bytes" if low >= 0 and high <= 255 else "integers")


@dataclass(frozen=True)
class PixelScale:
    """Which stored value becomes −1 (black) and which 1 (white). It is fitted to the training part, stored with the run
    and every exported model, and applied to whatever is read later, so that one image gives the same numbers anywhere.

    >>> import numpy as np
    >>> from genfed.preprocessing.pixel_scale import PixelScale
    >>> scale = PixelScale(numbers=(0.0, 1.0))
    >>> scale.encode(np.array([[0.0, 1.0]]), "a.npz: x").tolist()  # what is a byte on this scale is stored as one
    [[0, 255]]
    >>> scale.encode(np.array([[0.125, 1.0]]), "a.npz: x").tolist()
    [[-0.75, 1.0]]
    """

    kind: Literal["pixels"] = "pixels"
    numbers: Range = BYTES
    """Black and white of pixels stored as floats or as whole numbers beyond 255."""
    bytes: Range | None = BYTES
    """Black and white of pixels stored as whole numbers from 0 to 255. None: they cannot be put on this scale."""
    ground: Ground = "white"
    """Colour behind transparent pixels."""

    @property
    def meaning(self) -> str:
        """What −1 and 1 mean, in words."""
        if self.bytes is not None:
            return f"−1 is black and 1 is white, transparent pixels lie on {self.ground}"
        return f"−1 is {_format(self.numbers[0])} and 1 is {_format(self.numbers[1])} of the data's own numbers"

    @property
    def identity(self) -> str:
        """A text that is the same for two scales only if they give the same numbers for the same image, however it is
        stored. The usual scales all do.
        """
        ranges = {"bytes": self.bytes, "other numbers": self.numbers}
        unusual = [f"{kind} {r[0]:.17g} {r[1]:.17g}" for kind, r in ranges.items() if r and r not in _USUAL]
        return " ".join([self.meaning, *unusual])

    @property
    def formula(self) -> str:
        """How a network's input follows from stored pixels, in words."""
        known = {"bytes": self.bytes, "other numbers": self.numbers}
        if self.bytes == self.numbers:
            known = {"pixels": self.numbers}
        given = [
            f"of {kind} from {_format(r[0])} to {_format(r[1])} it is {_write(*r)}" for kind, r in known.items() if r
        ]
        return f"{self.meaning}; {'; '.join(given)}"

    def decode(self, x: Tensor) -> Tensor:
        """Puts floats on the scale of networks, in [−1, 1], back on the data's own scale of numbers."""
        low, high = self.numbers
        return (x.float() + 1) * ((high - low) / 2) + low

    def encode(self, x: Array, where: str, file: bool = False) -> Tensor:
        """Returns pixels [n, ...] on the scale of networks: uint8, where 0 is black and 255 is white, if all are bytes
        on this scale; else float32, where −1 is black and 1 is white.

        Args:
            x: Finite numbers or truth values.
            where: Text that begins an error message, such as "data.npz: x of test".
            file: Whether x is the content of an image file.

        Raises:
            GenfedError: the pixels are on another scale.
        """
        if not x.size:
            return torch.zeros(x.shape, dtype=torch.uint8)
        low, high = self._choose(self.measure(x), where, file)
        if (pixels := to_bytes(x, low, high)) is not None:
            return torch.from_numpy(pixels)
        out = np.empty(x.shape, np.float32)
        for part, target in zip(_chunks(x), _chunks(out), strict=True):
            target[:] = part if (low, high) == (-1, 1) else (part.astype(np.float64) - low) * (2 / (high - low)) - 1
        return torch.from_numpy(out)

    def doubt(self, seen: PixelRange, file: bool = False) -> str | None:
        """Returns what looks wrong in new pixels that were encoded, or in those of image files. None: nothing does."""
        low, high = self._find_ends(seen, file)
        if seen.stored == "bits" or seen.high - seen.low >= _NARROW * (high - low):
            return None
        return f"holds {seen}; the training pixels are {self._describe((low, high))}"

    def measure(self, x: Array, rows: Tensor | None = None) -> PixelRange:
        """Returns the range of pixels like `measure_pixels`. On a scale beyond bytes, whole numbers of more than 8 bits
        are no bytes, however small they are: dark images of 12 bits are among the others.
        """
        seen = measure_pixels(x, rows)
        wide = seen.stored == "bytes" and x.dtype.itemsize > 1 and self.numbers[1] > BYTES[1]
        return replace(seen, stored="integers") if wide else seen

    def _choose(self, seen: PixelRange, where: str, file: bool) -> Range:
        """Returns black and white for these pixels, which must fit them."""
        if seen.stored not in ("bits", "bytes") and self.numbers == BYTES and not seen.whole and seen.high <= 1:
            raise GenfedError(f"{where} holds {seen}; the training pixels are from 0 to 255: multiply by 255")
        if seen.stored == "bytes" and self.bytes is None and file:
            raise GenfedError(f"{where} holds {seen}; the training pixels are {self._describe(self.numbers)}")
        return self._check(seen, self._find_ends(seen, file), where)

    def _find_ends(self, seen: PixelRange, file: bool) -> Range:
        """Returns black and white of pixels that are stored like these."""
        if seen.stored == "bits" and self.bytes is not None:
            return UNIT
        if seen.stored != "bytes" or self.bytes is None:
            return self.numbers
        if self.bytes == UNIT and seen.high > 1:
            return BYTES  # black and white in a mask whose white is 255, not 1
        if self.numbers == UNIT and seen.high <= 1 and not file:
            return UNIT  # black and white as whole numbers beside floats
        return self.bytes

    def _check(self, seen: PixelRange, scale: Range, where: str) -> Range:
        low, high = scale
        if seen.low < low - (high - low) / 2 or seen.high > high + (high - low) / 2:
            raise GenfedError(f"{where} holds {seen}; the training pixels are {self._describe(scale)}")
        return scale

    def _describe(self, scale: Range) -> str:
        return f"from {_format(scale[0])} to {_format(scale[1])}"


def set_pixel_scale(asked: Range, stored: np.dtype[Any] | None, ground: Ground) -> PixelScale:
    """Returns the scale of pixels that a user has set. It depends on the setting and the type of the pixels alone: no
    example changes how others are encoded.

    Args:
        asked: Black and white.
        stored: Type of the array with the training pixels. None: they are image files.
        ground: Colour behind transparent pixels.
    """
    low, high = asked
    black = low == 0 or asked in _SIGNED  # whether the smallest number is what others call black
    if stored is None:
        own = not (high > BYTES[1] or asked in _SIGNED)
        return PixelScale(numbers=asked, bytes=BYTES if black and not own else asked, ground=ground)
    if stored == np.uint8 or (stored.kind in "iu" and low >= 0 and high <= BYTES[1]):
        return PixelScale(numbers=asked, bytes=asked, ground=ground)
    negative = stored.kind in "iu" and low < 0  # then small numbers are no bytes
    return PixelScale(numbers=asked, bytes=BYTES if black and not negative else None, ground=ground)


def fit_pixel_scale(train: PixelRange, ground: Ground, where: str) -> PixelScale:
    """Finds the scale of the training pixels from their range.

    Args:
        train: Their range.
        ground: Colour behind transparent pixels.
        where: Text that begins an error message.

    Raises:
        GenfedError: whole numbers that are no bytes.
    """
    low, high = train.low, train.high
    if train.stored == "integers" and not (low >= -1 and high <= 1):
        top = next((2.0**bits - 1 for bits in (10, 12, 14, 16) if low >= 0 and high < 2**bits), high)
        raise GenfedError(
            f"{where} holds {train}; set pixels to the numbers of black and white, such as "
            f"[{_format(min(low, 0))}, {_format(top)}]"
        )
    if train.stored == "bits" or (train.whole and low >= 0 and high == 1):
        return PixelScale(numbers=UNIT, bytes=UNIT if train.stored == "bytes" else BYTES, ground=ground)
    if train.stored == "bytes":
        return PixelScale(ground=ground)
    if (known := _find_known(low, high)) is not None:
        return PixelScale(numbers=known, ground=ground)
    return PixelScale(numbers=(low, high) if low < high else (low - 0.5, low + 0.5), bytes=None, ground=ground)


def _find_known(low: float, high: float) -> Range | None:
    """Returns the common scale of floats that fits their range. None: none does."""
    if low >= -_SLACK and high <= 1 + _SLACK:
        return UNIT
    if -0.5 - _SLACK <= low <= -0.4 and 0.4 <= high <= 0.5 + _SLACK:
        return (-0.5, 0.5)
    if low >= -1 - 2 * _SLACK and high <= 1 + 2 * _SLACK:
        return (-1.0, 1.0)
    if low >= -255 * _SLACK and 128 <= high <= 255 * (1 + _SLACK):
        return BYTES
    return None


def describe_pixels(train: PixelRange, scale: PixelScale) -> str:
    """Returns a fact about the training pixels: their range and type, black and white."""
    low, high = scale.bytes if train.stored == "bytes" and scale.bytes else scale.numbers
    names = ("black", "white") if scale.bytes is not None else ("−1", "1")
    return f"pixels: {train}; {names[0]} is {_format(low)}, {names[1]} is {_format(high)}"


def find_doubts(train: PixelRange, scale: PixelScale) -> Iterator[str]:
    """Yields what looks wrong in a scale that was found from the training pixels, with the setting that mends it."""
    low, high = scale.bytes if train.stored == "bytes" and scale.bytes else scale.numbers
    if scale.bytes is None:
        yield (
            f"pixels are {train}, on no known scale: scaled so that these become −1 and 1; set data.pixels to the "
            f"numbers of black and white, such as [{_format(low)}, {_format(high)}]"
        )
    elif train.stored == "bytes" and (low, high) == UNIT:
        yield "pixels are 0 and 1 only, taken for black and white; set data.pixels = [0, 255] if both are dark greys"
    elif train.high - train.low < _NARROW * (high - low):
        likely = [min(0.0, math.floor(train.low)), math.ceil(train.high)]
        yield (
            f"pixels from {_format(train.low)} to {_format(train.high)} fill little of {_format(low)} to "
            f"{_format(high)}; if they are no dark or pale images, set data.pixels to the numbers of black and white, "
            f"such as [{_format(likely[0])}, {_format(likely[1])}]"
        )


def find_unlike_parts(ranges: Mapping[str, PixelRange], train: PixelRange, scale: PixelScale) -> Iterator[str]:
    """Yields what looks wrong in the pixels of the parts: a range that is much smaller than the training part's. Pixels
    that are stored in another way are compared with the scale.
    """
    for part, seen in ranges.items():
        if seen.stored != train.stored:
            if doubt := scale.doubt(seen):
                yield f"{part} {doubt}"
        elif seen.high - seen.low < 0.6 * (train.high - train.low):
            yield f"pixels of {part} are {seen}, of train {train}: are both on one scale?"


def to_bytes(x: Array, low: float, high: float) -> Array | None:
    """Returns pixels as uint8, 0 black and 255 white. None: they lie between bytes, or beyond them."""
    if x.dtype == np.uint8 and (low, high) == BYTES:
        return np.ascontiguousarray(x)
    out = np.empty(x.shape, np.uint8)
    for part, target in zip(_chunks(x), _chunks(out), strict=True):
        level = (part.astype(np.float64) - low) * (255 / (high - low))
        near = np.rint(level)
        if near.min() < 0 or near.max() > 255 or np.abs(level - near).max() > _rounding(x.dtype, low, high):
            return None
        target[:] = near
    return out


def _rounding(dtype: np.dtype[Any], low: float, high: float) -> float:
    """Returns by how much the type's rounding may move a byte, in bytes; a few times that of float32, since there are
    several ways to compute x / 255.
    """
    if dtype.kind != "f":
        return 1e-9
    precision = float(np.finfo(np.float16).eps) / 2 if dtype == np.float16 else 8 * float(np.finfo(np.float32).eps)
    return min(0.13, precision * max(abs(low), abs(high)) * 255 / (high - low))


def _chunks(x: Array) -> Iterator[Array]:
    """Yields the rows of x, some at a time."""
    rows = _rows_at_once(x)
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def _rows_at_once(x: Array) -> int:
    return max(1, _AT_ONCE * len(x) // x.size)


def _write(low: float, high: float) -> str:
    if (low, high) == (-1, 1):
        return "the pixel itself"
    base = "pixel" if low == 0 else f"(pixel - {_format(low)})" if low > 0 else f"(pixel + {_format(-low)})"
    return f"{base} · 2/{_format(high - low)} − 1"


def _format(value: float) -> str:
    return f"{value:.4g}" if value != round(value) else f"{round(value)}"
