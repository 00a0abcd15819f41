"""Colours of more than 8 bits, of which Pillow keeps the upper 8 without a word."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from genfed.core.errors import GenfedError
from genfed.preprocessing.image_files import decode_image

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
