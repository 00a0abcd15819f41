import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.preprocessing.image_files import SUFFIXES, decode_image, find_images
from genfed.preprocessing.pixel_scale import Ground


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find_images(folder).files]


def test_what_pillow_reads_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jfif", "b.jpe", "c.avif", "d.JPEG", "e.tga", "deep/f.jp2")
    touch(
        tmp_path,
        "g.heic",
        "h.HEIC",
        "i.dcm",
        "notes.txt",
        "README",
        ".DS_Store",
        "._a.png",
        ".git/g.png",
        "__MACOSX/a.png",
    )
    found = find_images(tmp_path)
    assert names(tmp_path) == ["a.jfif", "b.jpe", "c.avif", "d.JPEG", "deep/f.jp2", "e.tga"]
    assert found.passed_over == {"hidden": 4, ".heic": 2, ".dcm": 1, ".txt": 1, "no suffix": 1}
    assert found.describe().startswith("6 image files; 9 passed over: hidden 4, .heic 2, ")
    (line,) = found.find_doubts()
    assert ".heic 2" in line
    assert ".txt" not in line
    touch(tmp_path / "clean", "a.png", "labels.csv", ".hidden")
    assert not list(find_images(tmp_path / "clean").find_doubts())
    assert find_images(tmp_path / "clean").passed_over.total() == 2


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/0.png", "root/a/deep/1.png", "root/b/2.png", "more/3.png", "more/inner/4.png")
    a = tmp_path / "root" / "a"
    (a / "more").symlink_to(tmp_path / "more", target_is_directory=True)
    (a / "again").symlink_to(tmp_path / "more", target_is_directory=True)
    (a / "self").symlink_to(a, target_is_directory=True)
    (a / "up").symlink_to(tmp_path / "root", target_is_directory=True)
    (a / "deeper").symlink_to(a / "deep", target_is_directory=True)
    (tmp_path / "more" / "inner" / "back").symlink_to(a, target_is_directory=True)
    (a / "one.png").symlink_to(tmp_path / "root" / "b" / "2.png")
    (a / "broken.png").symlink_to(tmp_path / "none.png")
    (a / "ring").symlink_to(a / "ring")
    assert names(a) == ["0.png", "again/3.png", "again/inner/4.png", "deep/1.png", "one.png"]
    found = find_images(a)
    assert found.links == 1
    assert found.passed_over["links to folders that are read anyway"] == 5
    assert found.passed_over["broken links"] == 2
    assert "1 link to folders followed" in found.describe()
    (line,) = found.find_doubts()
    assert line.startswith("files that are no images for genfed are passed over: broken links 2;")


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    assert names(tmp_path) == ["a.png"]
    assert find_images(tmp_path).passed_over == {"special files": 1}


@pytest.mark.parametrize("ground", ["white", "black"])
def test_transparent_pixels_lie_on_the_ground(ground: Ground) -> None:
    paper = 255 if ground == "white" else 0
    ink = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    ink.putpixel((0, 0), (0, 0, 0, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), (0, 0, 0))
    keyed.putpixel((1, 0), (9, 9, 9))
    half = Image.new("LA", (2, 1), (100, 128))
    for content in (
        encoded(ink),
        encoded(palette, transparency=1),
        encoded(keyed, transparency=(9, 9, 9)),
        encoded(ink, "WEBP", lossless=True),
    ):
        found = decode_image("a", content, ground)
        assert found.pixels[:, 0].tolist() == [[0, paper]] * 3
        assert found.transparent
        assert found.vanished == (ground == "black")
    found = decode_image("a", encoded(half), ground)
    assert found.pixels.shape == (1, 1, 2)
    assert found.pixels[0, 0, 0] == pytest.approx(100 * 128 / 255 + paper * 127 / 255, abs=1)
    for whole in (Image.new("RGBA", (2, 1), (7, 8, 9, 255)), Image.new("RGB", (2, 1), (7, 8, 9))):
        found = decode_image("a", encoded(whole), ground)
        assert (found.pixels[:, 0, 0].tolist(), found.transparent, found.vanished) == ([7, 8, 9], False, False)


def test_frames_beyond_the_first_are_noticed() -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (10, 200)]
    for form in ("GIF", "TIFF", "PNG"):
        found = decode_image("a", encoded(frames[0], form, save_all=True, append_images=frames[1:]), "white")
        assert found.several
        assert found.pixels.flat[0] == 10
        assert not decode_image("a", encoded(frames[0], form), "white").several


def test_deep_pixels_are_read_if_asked_for() -> None:
    deep = Image.fromarray(np.array([[0, 40000]], np.uint16))
    with pytest.raises(
        GenfedError, match=r"a: pixels of mode I;16, of more than 8 bits; set pixels .* such as \[0, 65535\]"
    ):
        decode_image("a", encoded(deep), "white")
    assert decode_image("a", encoded(deep), "white", deep=True).pixels.tolist() == [[[0, 40000]]]
    floats = Image.fromarray(np.array([[0.5, -2]], np.float32))
    assert decode_image("a", encoded(floats, "TIFF"), "white", deep=True).pixels.tolist() == [[[0.5, -2]]]


def test_no_format_that_starts_another_program_is_read() -> None:
    with pytest.raises(GenfedError, match="a: not a readable image"):
        decode_image("a", encoded(Image.new("L", (4, 4)), "EPS"), "white")
    assert not {".eps", ".ps", ".pdf", ".svg", ".wmf"} & set(SUFFIXES)


@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "ICO", "AVIF", "PCX", "SGI"]
)
def test_damaged_images_give_one_line(form: str) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    whole = encoded(picture, form)
    for i in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole) if i % 2 else min(len(whole), 64), 4):
            damaged[place] = rng.integers(256)
        content = bytes(damaged[: rng.integers(0, len(whole))]) if i % 3 == 0 else bytes(damaged)
        said = "a: "
        try:
            decode_image("a", content, "white", deep=True)
        except GenfedError as error:
            said = str(error)
        assert said.startswith("a: ")
        assert "\n" not in said


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[0, 255], [0, 0], [0, 0]]),
        (2, [[255, 0], [0, 0], [0, 0]]),
        (3, [[0, 0], [0, 0], [255, 0]]),
        (6, [[0, 0, 0], [0, 0, 255]]),
        (8, [[255, 0, 0], [0, 0, 0]]),
    ],
)
def test_images_are_turned_upright_as_their_exif_says(orientation: int, upright: list[list[int]], form: str) -> None:
    stored = np.kron(np.array([[0, 255], [0, 0], [0, 0]], np.uint8), np.ones((8, 8), np.uint8))
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[274] = orientation
    options: dict[str, object] = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    pixels = decode_image("a", encoded(image, form, exif=exif, **options), "white").pixels
    assert np.abs(pixels[0, 4::8, 4::8] - np.array(upright)).max() <= 2


@pytest.mark.parametrize(("form", "near"), [("TIFF", 0), ("JPEG", 3)])
def test_four_printing_inks_become_rgb(form: str, near: int) -> None:
    for inks, color in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ):
        found = decode_image("a", encoded(Image.new("CMYK", (16, 16), inks), form), "white")
        assert (found.pixels.shape, found.transparent) == ((3, 16, 16), False)
        assert np.abs(found.pixels[:, 8, 8] - np.array(color)).max() <= near


def test_thumbnails_of_windows_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/Thumbs.db", "a/desktop.ini", "b/2.png", "b/THUMBS.DB", "b/.DS_Store")
    found = find_images(tmp_path)
    assert names(tmp_path) == ["a/1.png", "b/2.png"]
    assert dict(found.passed_over) == {".db": 2, ".ini": 1, "hidden": 1}
    assert list(found.find_doubts()) == []


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_of_very_many_pixels_is_refused_before_they_are_made(size: tuple[int, int]) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(
        GenfedError, match=r"^a\.png: not a readable image \(Image size \(\d+ pixels\) exceeds limit of"
    ):
        decode_image("a.png", content, "white")
