"""Each depth of pixels is read as the file stores it, or refused: Pillow stretches, shifts and cuts some of them."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.preprocessing.image_files import decode_image

DEEP = np.arange(64).reshape(8, 8) * 60
"""Pixels of 12 bits."""
BYTES = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
KINDS = {"gray": (0, 1), "color": (2, 3), "gray and alpha": (4, 2), "color and alpha": (6, 4)}


def png(kind: str) -> bytes:
    color, channels = KINDS[kind]
    rows = np.random.default_rng(0).integers(0, 4096, (8, 8 * channels)).astype(">u2")
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 8, 8, 16, color, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_only_gray_images_have_more_than_8_bits(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(kind))
    if kind == "gray":
        decode_image("a.png", file, "white", deep=True)
        return
    with pytest.raises(GenfedError, match=r"a\.png: more than 8 bits for each of several channels"):
        decode_image("a.png", file, "white", deep=True)


def read(content: bytes, deep: bool = True) -> np.ndarray[Any, Any]:
    return decode_image("a", content, "white", deep=deep).pixels


def saved(pixels: np.ndarray[Any, Any], form: str, mode: str | None = None, **options: Any) -> bytes:
    image, file = Image.fromarray(pixels), BytesIO()
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def tiff(data: bytes, bits: int, *, white: int = 1, kind: int = 1, order: str = "<") -> bytes:
    """A TIFF of 8×8 pixels of one channel. `white`: PhotometricInterpretation; `kind`: SampleFormat."""
    numbers = {256: 8, 257: 8, 258: bits, 259: 1, 262: white, 277: 1, 278: 8, 279: len(data), 339: kind}
    numbers[273] = 8 + 2 + 12 * (len(numbers) + 1) + 4
    tags = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(numbers.items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(numbers))
    return head + tags + bytes(4) + data


def packed(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels of 12 bits, two in three bytes."""
    pairs = pixels.reshape(-1, 2).tolist()
    return b"".join((first << 12 | second).to_bytes(3, "big") for first, second in pairs)


def pgm(white: int, plain: bool = False, colors: int = 1) -> bytes:
    numbers = np.repeat(np.minimum(DEEP, white).flatten(), colors)
    magic = {(False, 1): 5, (True, 1): 2, (False, 3): 6, (True, 3): 3}[plain, colors]
    head = f"P{magic}\n# a comment\n8 8\n{white}\n".encode()
    return head + (
        " ".join(map(str, numbers)).encode() if plain else numbers.astype(">u2" if white > 255 else "u1").tobytes()
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("white", [256, 1023, 4095, 65534, 65535])
def test_a_pgm_is_read_as_its_numbers(white: int, plain: bool) -> None:
    assert read(pgm(white, plain)).tolist() == [np.minimum(DEEP, white).tolist()]


def test_a_pgm_of_bytes_is_read_as_its_bytes() -> None:
    assert read(pgm(255), deep=False).tolist() == [np.minimum(DEEP, 255).tolist()]
    assert read(saved(BYTES > 99, "PPM"), deep=False).tolist() == [np.where(BYTES > 99, 255, 0).tolist()]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pgm(4095, colors=3), "a: more than 8 bits for each of several channels"),
        (pgm(65535, plain=True, colors=3), "a: more than 8 bits for each of several channels"),
        (pgm(100), r"a: white is 100 \(maxval\), which would become 255; store it with maxval 255"),
        (pgm(15, plain=True, colors=3), r"a: white is 15 \(maxval\)"),
        (saved(BYTES, "SGI", bpc=2), "a: more than 8 bits, of which the lower would be lost"),
        (saved(BYTES, "SGI", "RGB", bpc=2), "a: more than 8 bits for each of several channels"),
    ],
)
def test_numbers_that_would_be_replaced_are_refused(content: bytes, says: str) -> None:
    with pytest.raises(GenfedError, match=f"^{says}"):
        read(content)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (tiff(packed(DEEP), 12), DEEP),
        (tiff(DEEP.astype("<u2").tobytes(), 16), DEEP),
        (tiff(DEEP.astype(">u2").tobytes(), 16, order=">"), DEEP),
        (tiff(DEEP.astype("<u2").tobytes(), 16, white=0), 65535 - DEEP),
        (tiff((DEEP - 2000).astype("<i2").tobytes(), 16, kind=2), DEEP - 2000),
        (tiff((DEEP / 7).astype("<f4").tobytes(), 32, kind=3), (DEEP / 7).astype(np.float32)),
        (tiff((DEEP / 7).astype(">f4").tobytes(), 32, kind=3, order=">"), (DEEP / 7).astype(np.float32)),
        (saved(DEEP.astype(np.uint16), "PNG"), DEEP),
        (saved(DEEP.astype(np.uint16), "TIFF", compression="tiff_lzw"), DEEP),
        (saved(DEEP.astype(np.uint16), "JPEG2000", irreversible=False), DEEP),
    ],
    ids=["12", "16", "16B", "white 0", "signed", "float", "floatB", "png", "lzw", "jpeg 2000"],
)
def test_deep_gray_is_read_as_its_numbers(content: bytes, pixels: np.ndarray[Any, Any]) -> None:
    assert read(content).tolist() == [pixels.tolist()]
    with pytest.raises(GenfedError, match="of more than 8 bits; set pixels to the numbers of black and white"):
        read(content, deep=False)


@pytest.mark.parametrize(("bits", "sign"), [(12, 0), (16, 0x80), (9, 0), (4, 0), (8, 0x80)])
def test_jpeg_2000_of_other_bits_is_refused(bits: int, sign: int) -> None:
    """Pillow shifts 12 bits to 16: the image would be 16 times too bright on a scale from 0 to 4095."""
    content = bytearray(saved(DEEP.astype(np.uint16) if bits > 9 else BYTES, "JPEG2000"))
    content[content.find(b"\xff\x4f\xff\x51") + 42] = bits - 1 | sign
    with pytest.raises(GenfedError, match=r"^a: (JPEG 2000 of|more than 8 bits, of which)"):
        read(bytes(content))


def test_shallow_pixels_are_bytes_from_black_to_white() -> None:
    gray = np.arange(64).reshape(8, 8) % 4 * 85
    image = Image.fromarray((gray // 85).astype(np.uint8)).convert("P")
    image.putpalette([level for number in range(4) for level in [85 * number] * 3])
    file = BytesIO()
    image.save(file, "PNG", bits=2)
    assert read(file.getvalue(), deep=False).tolist() == [gray.tolist()] * 3  # a palette is colour
    black_and_white = np.where(gray > 99, 255, 0)
    for form in ("PNG", "TIFF", "BMP"):
        assert read(saved(gray > 99, form), deep=False).tolist() == [black_and_white.tolist()]
    assert read(saved(BYTES, "TIFF", "CMYK"), deep=False).tolist() == [BYTES.tolist()] * 3
    alpha = np.stack([BYTES, np.full_like(BYTES, 255)], 2)
    alpha[0, :, 1] = 0
    assert read(saved(alpha, "PNG"), deep=False).tolist() == [np.vstack([np.full((1, 8), 255), BYTES[1:]]).tolist()]


def test_a_deep_image_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90° clockwise
    assert read(saved(DEEP.astype(np.uint16), "PNG", exif=exif)).tolist() == [np.rot90(DEEP, -1).tolist()]


def test_a_transparent_number_among_deep_ones_is_refused() -> None:
    with pytest.raises(GenfedError, match=r"^a: a transparent number in pixels of more than 8 bits"):
        read(saved(DEEP.astype(np.uint16), "PNG", transparency=60))
