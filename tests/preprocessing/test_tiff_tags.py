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


def bands(*extra: int, colors: int = 3, more: int = 1) -> bytes:
    """Returns a TIFF of 2 × 2 pixels of bytes with more bands than those of colours, of kinds `extra`."""
    n, width, height = colors + more, 2, 2
    data = bytes(range(n * width * height))
    at = 8 + len(data) + len(data) % 2
    bits, kinds = struct.pack(f"<{n}H", *[8] * n), struct.pack("<2H", *(*extra, 0, 0)[:2])

    def short(tag: int, count: int, value: bytes, place: int) -> bytes:
        return struct.pack("<HHI", tag, 3, count) + (value.ljust(4, b"\0") if count <= 2 else struct.pack("<I", place))

    entries = [short(256, 1, b"\2\0", 0), short(257, 1, b"\2\0", 0), short(258, n, bits, at), short(259, 1, b"\1\0", 0)]
    entries += [short(262, 1, b"\2\0" if colors == 3 else b"\1\0", 0), struct.pack("<HHII", 273, 4, 1, 8)]
    entries += [short(277, 1, bytes([n, 0]), 0), short(278, 1, b"\2\0", 0), struct.pack("<HHII", 279, 4, 1, len(data))]
    entries += [short(338, len(extra), kinds, 0)] if extra else []
    written = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", at + len(bits)) + data.ljust(at - 8, b"\0") + bits + written


@pytest.mark.parametrize(
    "content",
    [bands(0), bands(0, 0, more=2), bands(2, 0, more=2), bands(), bands(0, colors=1)],
    ids=["near infrared", "two bands", "transparency and a band", "no kind", "grey and a band"],
)
def test_bands_that_would_be_left_out_are_refused(content: bytes) -> None:
    n = dict(Image.open(BytesIO(content)).tag_v2)[277]  # type: ignore[attr-defined]
    said = (
        rf"^a\.tif: {n} bands, of which one is neither colour nor transparency; put all bands into an array \[n, H, W"
    )
    with pytest.raises(GenfedError, match=said):
        read(content)


def test_transparency_is_no_further_band() -> None:
    for content in (bands(2), bands(1), bands(2, colors=1)):
        assert decode_image("a.tif", content, "white").transparent
    for mode, channels in (
        ("RGB", 3),
        ("CMYK", 3),
        ("YCbCr", 3),
        ("LAB", 3),
        ("P", 3),
        ("1", 1),
        ("RGBA", 3),
        ("LA", 1),
    ):
        file = BytesIO()
        Image.new(mode, (2, 2)).save(file, "TIFF")
        assert decode_image("a.tif", file.getvalue(), "white").pixels.shape == (channels, 2, 2)


def test_a_band_of_jpeg_2000_must_be_said_to_be_transparency() -> None:
    file = BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 99)).save(file, "JPEG2000")
    assert decode_image("a.jp2", file.getvalue(), "white").transparent
    head, mark, box = file.getvalue().partition(b"cdef")
    kinds = [struct.unpack_from(">H", box, 4 + 6 * i)[0] for i in range(4)]
    assert kinds == [0, 0, 0, 1]
    other = head + mark + box[:22] + b"\xff\xff" + box[24:]
    for content in (other, head + b"free" + box):
        with pytest.raises(GenfedError, match=r"^a\.jp2: 4 bands, of which one is neither colour nor transparency"):
            decode_image("a.jp2", content, "white")
