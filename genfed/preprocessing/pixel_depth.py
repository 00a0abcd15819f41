"""Bits and bands of image files: what Pillow would scale, shift, cut or leave out is read as stored, or refused."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.preprocessing.arrays import Array

DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
"""Pillow's modes of pixels of more than 8 bits, all of one channel."""
_BITS, _PHOTOMETRIC, _BANDS, _EXTRA, _SAMPLE_FORMAT = 258, 262, 277, 338, 339  # tags of TIFF 6.0
_WHITE_IS_0, _UNSIGNED, _SIGNED = 0, 1, 2
_ALPHA = (1, 2)  # kinds of an extra band, in TIFF 6.0 and in the channels of JPEG 2000: transparency
_TRANSPARENT = ("LA", "PA", "RGBA", "RGBX")
"""Pillow's modes whose last band is taken for transparency, or for nothing."""
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: the markers SOC and SIZ, ISO/IEC 15444-1 A.5.1
_CHANNELS = b"cdef"  # its box of channel definitions, I.5.3.6


def check_depth(image: Image.Image, name: str, deep: bool) -> None:
    """Refuses an image whose pixels Pillow does not give as they are stored. Nothing is decoded yet.

    Args:
        image: The opened image.
        name: Name that begins an error message.
        deep: Whether pixels of more than 8 bits are allowed.

    Raises:
        GenfedError: it has more than 8 bits where they are not allowed or where Pillow keeps 8, a transparent number of
            more than 8 bits, a sign, or another number for white than 255 or 65535 that Pillow would replace.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode in DEEP and not deep:
        raise GenfedError(
            f"{name}: pixels of mode {image.mode}, of more than 8 bits; set pixels to the numbers of black and white, "
            "such as [0, 65535]"
        )
    if image.mode in DEEP and image.has_transparency_data:
        raise GenfedError(f"{name}: a transparent number in pixels of more than 8 bits; store it without transparency")
    if image.mode not in DEEP and _count_bits(image) > 8:
        if image.mode in ("1", "L"):
            raise GenfedError(f"{name}: more than 8 bits, of which the lower would be lost; store it as PNG or TIFF")
        raise GenfedError(
            f"{name}: more than 8 bits for each of several channels, of which the lower would be lost; "
            "allowed are grey images of more bits, or colours of 8"
        )
    if image.mode not in DEEP and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise GenfedError(f"{name}: pixels of bytes with a sign; bytes from 0 to 255 are allowed")
    if (white := find_maxval(image)) is not None and white < 255:
        raise GenfedError(f"{name}: white is {white} (maxval), which would become 255; store it with maxval 255")
    for bits, signed in _find_components(image):
        if signed or bits not in ((16,) if image.mode in DEEP else (8,)):
            raise GenfedError(
                f"{name}: JPEG 2000 of {bits} bits{' with a sign' if signed else ''}, which would be shifted; store 8 "
                "or 16 bits, or PNG or TIFF"
            )


def check_bands(image: Image.Image, name: str) -> None:
    """Refuses an image with bands that are neither colours nor transparency, such as near infrared: Pillow would leave
    them out or take them for transparency. Nothing is decoded yet.

    Raises:
        GenfedError: there are such bands, or a band beside the colours is not said to be transparency.
    """
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bands, extra = int(tags.get(_BANDS, 1)), tuple(tags.get(_EXTRA, ()))
    elif image.format == "JPEG2000":
        bands, extra = len(_find_components(image)), _find_channel_kinds(image)
    else:
        return
    known = len(image.getbands())
    if bands > known or (image.mode in _TRANSPARENT and not set(_ALPHA) & set(extra)):
        raise GenfedError(
            f"{name}: {bands} bands, of which one is neither colour nor transparency; put all bands into an array "
            '[n, H, W, C] of an .npz with layout = "NHWC", or store the colours alone'
        )


def _count_bits(image: Image.Image) -> int:
    """Returns 16 if the file has more than 8 bits per channel, of which Pillow would keep 8; else at most 8."""
    if image.format == "TIFF":
        bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(_BITS, (8,))
        return max(bits)
    if max((bits for bits, _ in _find_components(image)), default=8) > 8 or (find_maxval(image) or 0) > 255:
        return 16
    for tile in getattr(image, "tile", ()):
        # PNG and SGI name the type of stored pixels: "RGB;16B".
        stored = [str(part) for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
        if tile[0] == "SGI16" or (image.format in ("PNG", "SGI") and any(";16" in part for part in stored)):
            return 16
    return 8


def find_maxval(image: Image.Image) -> int | None:
    """Returns the number of white in a PGM or PPM file that is not decoded yet. None: another file, or one without."""
    if image.format != "PPM" or not (tiles := getattr(image, "tile", ())):
        return None
    match tiles[0][3]:
        case (str(), int(white)):
            return white
    return None


def _find_components(image: Image.Image) -> list[tuple[int, bool]]:
    """Returns the number of bits of each channel of a JPEG 2000 file and whether they have a sign. []: another file."""
    _, _, size = _read_jpeg2000(image).partition(_CODESTREAM)
    if not size:
        return []
    (channels,) = struct.unpack_from(">H", size, 36)
    return [((size[38 + 3 * i] & 0x7F) + 1, bool(size[38 + 3 * i] & 0x80)) for i in range(channels)]


def _find_channel_kinds(image: Image.Image) -> tuple[int, ...]:
    """Returns the kinds of the channels that a JPEG 2000 file names: 0 is a colour, 1 and 2 are transparency."""
    head, _, _ = _read_jpeg2000(image).partition(_CODESTREAM)
    _, found, box = head.partition(_CHANNELS)
    channels = struct.unpack_from(">H", box)[0] if found else 0
    return tuple(struct.unpack_from(">H", box, 4 + 6 * i)[0] for i in range(channels))


def _read_jpeg2000(image: Image.Image) -> bytes:
    """Returns the content of an opened JPEG 2000 file. Empty: another file."""
    file = getattr(image, "fp", None)
    if image.format != "JPEG2000" or file is None:
        return b""
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


def read_deep(pixels: Array, tags: Mapping[int, Any], white: int | None, name: str) -> Array:
    """Returns pixels of more than 8 bits as the file stores them. In a PGM, Pillow stretches them to 65535. In a TIFF
    it passes over that white is 0, and over the missing sign of 32 bits.

    Args:
        pixels: What Pillow gives.
        tags: Tags of a TIFF. {}: another file.
        white: What `find_maxval` gives.
        name: Name that begins an error message.

    Raises:
        GenfedError: white is 0 and no number is known for black.
    """
    if white is not None:
        # Exact: different numbers are stretched to numbers that are further apart than rounding moves them.
        return np.rint(pixels.astype(np.float64) * (white / 65535)).astype(pixels.dtype)
    bits, kind = tags.get(_BITS, (0,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if kind == _UNSIGNED and bits == 32 and pixels.dtype == np.int32:
        pixels = pixels.view(np.uint32)
    if tags.get(_PHOTOMETRIC) != _WHITE_IS_0:
        return pixels
    if kind != _UNSIGNED:
        raise GenfedError(f"{name}: white is 0 in numbers with a sign or a point; store black as the smaller number")
    black = 2 ** int(bits) - 1
    inverted: Array = (black - pixels.astype(np.int64)).astype(pixels.dtype)
    return inverted
