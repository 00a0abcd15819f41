"""Image files: which of a folder are read, and how one is decoded."""

import fnmatch
import functools
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genfed.core.errors import GenfedError, first_line
from genfed.preprocessing.arrays import Array
from genfed.preprocessing.pixel_depth import DEEP, check_bands, check_depth, find_maxval, read_deep
from genfed.preprocessing.pixel_scale import Ground
from genfed.preprocessing.source_summary import count_of, list_some, show

_READ = (
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .bmp .dib .gif .webp .avif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .jpx "
    ".jpf .tga .pcx .ico .qoi .sgi .ras"
)
_KNOWN = ".txt .csv .tsv .json .jsonl .xml .md .rst .html .yaml .yml .toml .db .ini .log .pdf .py .ipynb .sh"
# By their content. None of Pillow's readers that start other programs (EPS) or read documents.
_FORMATS = "PNG JPEG MPO BMP DIB GIF WEBP AVIF TIFF PPM JPEG2000 TGA PCX ICO QOI SGI SUN"
SUFFIXES = tuple(_READ.split())
_BESIDE = tuple(_KNOWN.split())
"""Suffixes of files that are known to stand beside images."""
_EXCLUDED = "excluded"
_BEGINS = re.compile(r"(?=[ _.-]+[A-Za-z])|(?<=\d)(?=[A-Za-z])")
"""Where what is added to the name of an image may begin: x_mask, 7mask."""
_COMPANIONS = (5, 0.1)
"""Fewest files that are named as another one with one addition, in number and as a share of all."""
_READ_ANYWAY = "links to folders that are read anyway"
_GRAY = ("1", "L", "LA")
_COLOR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass
class FolderContent:
    """The image files in a folder and its sub-folders, and what was passed over."""

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of files by suffix, in small letters; hidden ones and broken links by these words."""
    links: int = 0
    """Number of links to folders that were followed."""

    def add(self, other: "FolderContent") -> None:
        """Counts another folder's content too."""
        self.files += other.files
        self.passed_over.update(other.passed_over)
        self.links += other.links

    def describe(self) -> str:
        """Returns a fact: the numbers of files that are read and passed over, and of links that were followed."""
        said = count_of(len(self.files), "image file")
        if self.links:
            said += f", {count_of(self.links, 'link')} to folders followed"
        if self.passed_over:
            kinds = list_some(f"{show(kind)} {n:,}" for kind, n in self.passed_over.most_common())
            said += f"; {self.passed_over.total():,} passed over: {kinds}"
        return said

    def find_doubts(self) -> Iterator[str]:
        """Yields what looks wrong in what was passed over."""
        known = (*_BESIDE, "hidden", _READ_ANYWAY, _EXCLUDED)
        strange = {kind: n for kind, n in self.passed_over.most_common() if kind not in known}
        if strange:
            kinds = list_some(f"{show(kind)} {n:,}" for kind, n in strange.items())
            yield f"files that are no images for genfed are passed over: {kinds}; convert them to .png if they are"
        for addition, files in find_companions(self.files).items():
            if len(files) >= _COMPANIONS[0] and len(files) >= _COMPANIONS[1] * len(self.files):
                yield (
                    f"{len(files):,} images are named as another one with {show(addition)!r} after it, such as "
                    f"{show(files[0].name)}: if they are masks or the like, set data.exclude = "
                    f'["*{show(addition)}*"] to leave them out'
                )


def find_images(folder: Path, exclude: Sequence[str] = ()) -> FolderContent:
    """Finds the image files in a folder and its sub-folders, sorted; see `walk_folder`.

    Args:
        folder: The folder.
        exclude: Patterns of the names of files that are left out.

    Raises:
        GenfedError: a folder cannot be listed.
    """
    found = FolderContent()
    for entry, kind in walk_folder(folder):
        if kind == "link":
            found.links += 1
        elif kind == "image" and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in exclude):
            found.passed_over[_EXCLUDED] += 1
        elif kind == "image":
            found.files.append(entry)
        else:
            found.passed_over[kind] += 1
    found.files.sort()
    return found


def find_companions(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files that are named as another one in their folder with an addition, as x_mask.png and x_mask_1.png
    beside x.png, by that addition, without a number at its end.
    """
    stems = {(file.parent, file.stem) for file in files}
    found = dict[str, list[Path]]()
    for file in files:
        for begin in (match.start() for match in _BEGINS.finditer(file.stem)):
            if (file.parent, file.stem[:begin]) in stems:
                addition = re.sub(r"[ _.-]*\d+$", "", file.stem[begin:])
                found.setdefault(addition, []).append(file)
                break
    return found


def walk_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields what lies in a folder and its sub-folders, with its kind (see `_kind`), but for the sub-folders. Links to
    folders are followed, but none to a folder that is read already or that contains this one. Hidden folders are
    passed over.

    Raises:
        GenfedError: a folder cannot be listed.
    """
    read = {_identity(place) for place in (folder, *folder.resolve().parents)}
    waiting, links = [folder], list[Path]()
    while waiting or links:
        if not waiting:  # what a link leads to comes last, so that a folder is read under its own name
            link = links.pop(0)
            if (who := _identity(link)) in read:
                yield link, _READ_ANYWAY
                continue
            read.add(who)
            yield link, "link"
            waiting.append(link)
        for entry in _list(waiting.pop()):
            kind = _kind(entry)
            if kind == "folder":
                read.add(_identity(entry))
                waiting.append(entry)
            elif kind == "link":
                links.append(entry)
            else:
                yield entry, kind


def is_hidden(entry: Path) -> bool:
    """Returns whether a file or folder is passed over by its name: hidden, or what systems leave beside files."""
    return entry.name.startswith(".") or entry.name in ("__MACOSX", "@eaDir", "__pycache__", "lost+found")


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise GenfedError(f"{folder}: cannot be listed ({error.strerror})") from None


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _kind(entry: Path) -> str:
    """Returns "folder", "link" to a folder, "image", or the word by which a file that is passed over is counted."""
    if is_hidden(entry):
        return "hidden"
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "special files"
    except OSError:
        return "broken links"
    suffix = entry.suffix.lower()
    return "image" if suffix in SUFFIXES else suffix or "no suffix"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that this version of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS.split() if name in Image.OPEN)


@dataclass(frozen=True)
class DecodedImage:
    """One image as it is stored."""

    pixels: Array
    """[1 or 3, H, W]: uint8, or numbers of more than 8 bits."""
    transparent: bool
    """Whether any pixel was."""
    vanished: bool
    """Whether a transparent image is of one colour on its ground."""
    several: bool
    """Whether the file holds further images or frames, which are not read."""


def decode_image(name: str, source: Path | bytes, ground: Ground, deep: bool = False) -> DecodedImage:
    """Decodes one image: upright, transparent pixels laid on the ground, the first frame of an animation.

    Args:
        name: Name that begins an error message.
        source: A file, or its content.
        ground: Colour behind transparent pixels.
        deep: Whether pixels of more than 8 bits are allowed.

    Raises:
        GenfedError: it is not a readable image, or of a kind that is not allowed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of images that are large but allowed
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
                check_bands(image, name)
                check_depth(image, name, deep)
                if image.mode not in _GRAY + _COLOR + DEEP:
                    raise GenfedError(f"{name}: pixels of mode {image.mode}; grey and colour are allowed")
                return _decode_upright(image, ground, name)
    except GenfedError:
        raise
    except Exception as error:  # Pillow's readers raise anything on damaged files
        about = first_line(error) or type(error).__name__
        raise GenfedError(f"{name}: not a readable image ({about})") from None


def _decode_upright(stored: Image.Image, ground: Ground, name: str) -> DecodedImage:
    several = getattr(stored, "is_animated", False)
    tags, white = getattr(stored, "tag_v2", {}), find_maxval(stored)
    image = ImageOps.exif_transpose(stored)
    gray, transparent = image.mode in _GRAY, False
    if image.mode in DEEP:
        pixels = read_deep(np.array(image), tags, white, name)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            low, _ = image.getchannel("A").getextrema()
            transparent = low != 255
            image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        pixels = np.array(image.convert("L" if gray else "RGB"))
    vanished = transparent and bool((pixels == pixels[0, 0]).all())
    return DecodedImage(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1), transparent, vanished, several)
