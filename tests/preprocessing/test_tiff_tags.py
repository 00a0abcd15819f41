"""TIFF files by the numbers in their tags: which number is white, and whether numbers have a sign."""

import struct
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.preprocessing.image_files import decode_image

WHITE_IS_0, BLACK_IS_0 = 0, 1
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(pixels: NDArray[np.generic], kind: int, photometric: int) -> bytes:
    """Returns a TIFF of one strip of pixels [H, W]."""
    height, width = pixels.shape
    data, bits = pixels.tobytes(), 8 * pixels.itemsize
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(data)), (339, kind)]
    written = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + written + b"\0" * 4


def read(content: bytes) -> list[float]:
    found: list[float] = decode_image("a.tif", content, "white", deep=True).pixels.ravel().tolist()
    return found


SHADES = np.array([[0, 1, 200]])


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_white_may_be_0(dtype: type[np.generic], most: int) -> None:
    assert read(tiff(SHADES.astype(dtype), UNSIGNED, BLACK_IS_0)) == [0, 1, 200]
    assert read(tiff(SHADES.astype(dtype), UNSIGNED, WHITE_IS_0)) == [most, most - 1, most - 200]
    file = BytesIO()
    Image.fromarray(SHADES.astype(dtype)).save(file, "TIFF", tiffinfo={262: WHITE_IS_0})
    stored = np.array(Image.open(file))
    assert read(file.getvalue()) == ([0, 1, 200] if most == 255 else (most - stored).ravel().tolist())


def test_numbers_of_32_bits_keep_their_size() -> None:
    assert read(tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32), UNSIGNED, BLACK_IS_0)) == [0, 2**31, 2**32 - 1]
    assert read(tiff(np.array([[-5, 0, 2**31 - 1]], np.int32), SIGNED, BLACK_IS_0)) == [-5, 0, 2**31 - 1]
    assert read(tiff(np.array([[-5, 0, 300]], np.int16), SIGNED, BLACK_IS_0)) == [-5, 0, 300]


def test_what_has_no_known_black_is_refused() -> None:
    with pytest.raises(GenfedError, match=r"^a\.tif: pixels of bytes with a sign; bytes from 0 to 255 are allowed$"):
        read(tiff(np.array([[-5, 0, 100]], np.int8), SIGNED, BLACK_IS_0))
    with pytest.raises(GenfedError, match=r"^a\.tif: white is 0 in numbers with a sign or a point; store black as"):
        read(tiff(SHADES.astype(np.float32), FLOAT, WHITE_IS_0))
