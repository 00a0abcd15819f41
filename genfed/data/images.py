"""Sources of images: [n, C, H, W], of one size, one number of channels and one scale of pixels."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.copies import describe_torn, digest_examples, digest_images
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.split import SplitSource
from genfed.preprocessing.array_names import choose_examples
from genfed.preprocessing.arrays import Array, Layout, read_arrays, to_examples
from genfed.preprocessing.checks import check_fit, require_path
from genfed.preprocessing.image_files import SUFFIXES, decode_image, find_images
from genfed.preprocessing.pixel_scale import (
    BYTES,
    Ground,
    PixelRange,
    PixelScale,
    describe_pixels,
    find_doubts,
    find_unlike_parts,
    fit_pixel_scale,
    measure_pixels,
    set_pixel_scale,
)
from genfed.preprocessing.source_summary import SourceSummary, count_of

ImageFiles = Callable[[], Iterable[tuple[str, Path | bytes]]]
"""Returns images anew at each call: the name of each for messages, and its file or the content of one."""
Natural = Mapping[str, Mapping[str, Sequence[str]]]
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_AT_ONCE = 2**24  # numbers in a chunk: 64 MB as float32, however large the data set
_FITTED = "the scale of the pixels is chosen by all training images; set data.pixels, such as [0, 255]"
_FILES_AT_ONCE = 500  # images of a folder read in one chunk


@dataclass
class DecodedPart:
    """The images of one part, and how they were stored."""

    x: Tensor
    ranges: list[PixelRange]
    """Range of the pixels of each image, before it was resized."""
    transparent: int = 0
    """Number of images with transparent pixels."""
    vanished: int = 0
    """Number of those that are of one colour on their ground."""
    several: int = 0
    """Number of files with further images or frames, which are not read."""


@settings
class ImageSource(SplitSource):
    """A source that can hold images."""

    size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Height and width in pixels to which images are resized (bilinear); None: unchanged, all the same.",
    )
    channels: Literal[1, 3] | None = Field(
        default=None,
        description="Number of channels to which images are converted. 1: grey; 3: RGB; None: unchanged, all the same.",
    )
    pixels: tuple[float, float] | None = Field(
        default=None,
        description="Stored numbers that are black and white, such as [0, 1] or [0, 4095]. None: found from the "
        "training part: 0 and 255 for bytes; 0 and 1, 0 and 255, −1 and 1 for floats that fit; else its smallest and "
        "largest.",
    )
    background: Ground = Field(default="white", description="Colour behind transparent pixels.")
    layout: Layout | None = Field(
        default=None,
        description="Order of the four axes of arrays of images; None: the channels are the axis of size 1 or 3, last "
        "or second.",
    )

    def __post_init__(self) -> None:
        SplitSource.__post_init__(self)
        if self.pixels is not None and not self.pixels[0] < self.pixels[1]:
            raise GenfedError(f"pixels = {list(self.pixels)}: black below white is allowed, such as [0, 255]")

    @abstractmethod
    def load(self) -> Dataset: ...

    @property
    def excluded_names(self) -> tuple[str, ...]:
        """Patterns of the names of image files that are left out."""
        return ()

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads the images in a folder and its sub-folders, one image file, or an array x of an .npz file."""
        scale = encoder if isinstance(encoder, PixelScale) else PixelScale(ground=self.background)
        if Path(path).suffix.lower() == ".npz":
            yield self._read_array(path, task, scale)
            return
        root = require_path(path)
        if task.kind != "image":
            raise GenfedError(f"{path}: the run's examples are a table; an .npz with an array x is allowed")
        files, top = (list_images(root, self.excluded_names), root) if root.is_dir() else ([root], root.parent)
        ranges = set[PixelRange]()
        for start in range(0, len(files), _FILES_AT_ONCE):
            piece = files[start : start + _FILES_AT_ONCE]
            found = self.decode_all(functools.partial(_name_files, piece), len(piece), scale, task)
            ranges.update(found.ranges)
            doubts = tuple(_find_dark(ranges, scale, path)) if start + len(piece) == len(files) else ()
            yield Examples(tuple(file.relative_to(top).as_posix() for file in piece), "file", found.x, doubts)

    def _read_array(self, path: str, task: Task, scale: PixelScale) -> Examples:
        name, stored = read_example_array(path)
        where = f"{path}: {name}"
        raw = to_examples(stored, self.layout, where)
        if not len(raw):
            raise GenfedError(f"{where} holds no examples")
        x = self._encode(raw, scale, where)
        check_fit(tuple(x.shape[1:]), task, where)
        doubt = scale.doubt(scale.measure(raw))
        return Examples(tuple(map(str, range(len(x)))), "row", x, () if doubt is None else (f"{where} {doubt}",))

    def build_from_arrays(
        self,
        arrays: Mapping[str, Array],
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        natural: Natural,
        where: str,
        summary: SourceSummary,
    ) -> Dataset:
        """Builds a data set of images from arrays. The scale of pixels is fitted to the training part, unless `pixels`
        is set.

        Args:
            arrays: Pixels as they are stored [n, C, H, W], by given part.
            y: The labels [n] by given part.
            classes: The names of the classes.
            natural: The natural columns by given part.
            where: Text that begins an error message, such as "data.npz".
            summary: What the source says of its reading.

        Raises:
            GenfedError: the pixels of a part are on another scale, or `SplitSource.build_dataset` refuses.
        """
        keys = {part: digest_examples(x) for part, x in arrays.items()} if self.deduplicate else None
        rows = self.cut(y, classes, keys, natural).rows["train"][1]
        train = measure_pixels(arrays["train"], rows)
        if self.pixels is None:
            scale = fit_pixel_scale(train, self.background, f"{where}: x of train")
        else:
            scale = set_pixel_scale(self.pixels, arrays["train"].dtype, self.background)
            train = scale.measure(arrays["train"], rows)
        data = {part: Data(self._encode(x, scale, f"{where}: x of {part}"), y[part]) for part, x in arrays.items()}
        ranges = {part: scale.measure(x) for part, x in arrays.items() if len(x)}
        said = self._describe(data["train"].x, train, scale, ranges)
        return self._build(data, classes, natural, scale, summary + said)

    def build_from_files(
        self,
        files: Mapping[str, ImageFiles],
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        natural: Natural,
        where: str,
        summary: SourceSummary,
    ) -> Dataset:
        """Builds a data set of images from files; see `build_from_arrays`."""
        first = PixelScale(ground=self.background)
        if self.pixels is not None:
            first = set_pixel_scale(self.pixels, None, self.background)
        found = {part: self.decode_all(images, len(y[part]), first) for part, images in files.items()}
        keys = {part: digest_images(decoded.x) for part, decoded in found.items()} if self.deduplicate else None
        rows = self.cut(y, classes, keys, natural).rows["train"][1]
        train = functools.reduce(PixelRange.__or__, (found["train"].ranges[row] for row in rows.tolist()))
        scale = first if self.pixels is not None else fit_pixel_scale(train, self.background, f"{where}: train")
        if scale != first:
            found = {part: self.decode_all(images, len(y[part]), scale) for part, images in files.items()}
        data = {part: Data(decoded.x, y[part]) for part, decoded in found.items()}
        ranges = {part: functools.reduce(PixelRange.__or__, decoded.ranges) for part, decoded in found.items()}
        said = self._describe(data["train"].x, train, scale, ranges) + _describe_files(found, self.background)
        return self._build(data, classes, natural, scale, summary + said)

    def _build(
        self,
        data: Mapping[str, Data],
        classes: tuple[str, ...],
        natural: Natural,
        scale: PixelScale,
        summary: SourceSummary,
    ) -> Dataset:
        keys = {part: digest_images(given.x) for part, given in data.items()}
        y = {part: given.y for part, given in data.items()}
        summary += describe_torn(y, keys, "image", "pixels")
        cut = self.cut(y, classes, keys, natural)
        made = self.build_dataset("image", data, classes, natural["train"], scale, natural, summary, cut)
        return made if self.pixels is not None else replace(made, fitted=_FITTED)

    def _describe(
        self, x: Tensor, train: PixelRange, scale: PixelScale, ranges: Mapping[str, PixelRange]
    ) -> SourceSummary:
        colors = {1: "grey", 3: "colour"}.get(x.shape[1], f"{x.shape[1]} channels")
        facts = (f"images: {_format_size(x[0])} pixels, {colors}", describe_pixels(train, scale))
        doubts = () if self.pixels is not None else tuple(find_doubts(train, scale))
        return SourceSummary(facts, doubts + tuple(find_unlike_parts(ranges, train, scale)))

    def _encode(self, x: Array, scale: PixelScale, where: str) -> Tensor:
        """Returns images as they are used, [n, C, H, W]. With `pixels` set each image is encoded by itself, so that
        what it becomes depends on no other one.
        """
        if self.pixels is None or not len(x) or (x.dtype == np.uint8 and scale.bytes == scale.numbers == BYTES):
            return self.convert(scale.encode(x, where))
        each = (x[i : i + 1] for i in range(len(x)))
        return _stack(((where, self.convert(scale.encode(one, where))[0]) for one in each), len(x))

    def convert(self, x: Tensor) -> Tensor:
        """Converts images x [n, C, H, W], uint8 or float, to the `channels` and `size` of the settings; the type stays.

        Raises:
            GenfedError: the images are neither grey nor RGB and must be converted.
        """
        n, have, height, width = x.shape
        channels, high, wide = self.channels or have, self.size or height, self.size or width
        if have != channels and have not in (1, 3):
            raise GenfedError(f"images have {have} channels: only 1 and 3 can be converted; leave channels unset")
        if (have, height, width) == (channels, high, wide):
            return x.contiguous()
        out = torch.empty(n, channels, high, wide, dtype=x.dtype)
        chunk = max(1, _AT_ONCE // (max(have, channels) * max(height * width, high * wide)))
        for start in range(0, n, chunk):
            part = x[start : start + chunk].float()
            if have > channels:
                part = torch.einsum("nchw,c->nhw", part, _LUMA)[:, None]
            if (height, width) != (high, wide):
                shrinks = high < height or wide < width
                part = F.interpolate(part, (high, wide), mode="bilinear", antialias=shrinks)
            # one channel is broadcast to three
            out[start : start + chunk] = part if out.is_floating_point() else part.round_()
        return out

    def decode_all(self, images: ImageFiles, n: int, scale: PixelScale, task: Task | None = None) -> DecodedPart:
        """Decodes n ≥ 1 image files, one at a time, to [n, C, H, W] on the scale of pixels: uint8, or float32 if any of
        them lies between bytes. With a task, each must fit it.

        Raises:
            GenfedError: an image is unreadable or does not fit, or the sizes or channels differ and no setting makes
                them equal.
        """
        found, known = DecodedPart(torch.empty(0), []), dict[PixelRange, PixelRange]()

        def decode() -> Iterator[tuple[str, Tensor]]:
            for name, source in images():
                image = decode_image(name, source, self.background, deep=self.pixels is not None)
                seen = scale.measure(image.pixels)
                found.ranges.append(known.setdefault(seen, seen))
                found.transparent += image.transparent
                found.vanished += image.vanished
                found.several += image.several
                x = self.convert(scale.encode(image.pixels[None], name, file=True))[0]
                if task is not None:
                    check_fit(tuple(x.shape), task, name)
                yield name, x

        found.x = _stack(decode(), n)
        return found


def read_example_array(path: str) -> tuple[str, Array]:
    """Reads the one array of examples of an .npz file; returns its name too.

    Raises:
        GenfedError: there is no such file, or none or several such arrays.
    """
    arrays = read_arrays(path, lambda names: [choose_examples(names, path)])
    name = choose_examples(list(arrays), path)
    return name, arrays[name]


def list_images(folder: Path, exclude: Sequence[str] = ()) -> list[Path]:
    """Returns the image files in a folder and its sub-folders, sorted; hidden files and folders are ignored.

    Args:
        folder: The folder.
        exclude: Patterns of the names of files that are left out.

    Raises:
        GenfedError: there are none.
    """
    files = find_images(folder, exclude).files
    if not files:
        raise GenfedError(f"{folder}: there are no images; {', '.join(SUFFIXES)} are allowed")
    return files


def _name_files(files: Sequence[Path]) -> list[tuple[str, Path | bytes]]:
    return [(str(file), file) for file in files]


def _find_dark(ranges: Iterable[PixelRange], scale: PixelScale, where: str) -> Iterator[str]:
    """Yields what looks wrong in the pixels of image files. Files are compared with those that are stored like them."""
    found: dict[str, PixelRange] = {}
    for seen in ranges:
        found[seen.stored] = found.get(seen.stored, seen) | seen
    for _, seen in sorted(found.items()):
        if doubt := scale.doubt(seen, file=True):
            yield f"{where} {doubt}"


def _stack(images: Iterable[tuple[str, Tensor]], n: int) -> Tensor:
    """Returns n ≥ 1 named images [C, H, W] as one tensor: uint8, or float32 if any of them is. The same image is the
    same numbers for networks in both.

    Raises:
        GenfedError: their sizes or channels differ.
    """
    found, first = torch.empty(0), ""
    for i, (name, x) in enumerate(images):
        if i == 0:
            found, first = torch.empty(n, *x.shape, dtype=x.dtype), name
        _check_alike(x, name, found[0], first)
        if x.dtype != found.dtype:
            x, found = _to_floats(x), _to_floats(found)
        found[i] = x
    return found


def _check_alike(x: Tensor, name: str, other: Tensor, first: str) -> None:
    if x.shape[0] != other.shape[0]:
        raise GenfedError(f"{first} has {other.shape[0]} channels and {name} has {x.shape[0]}; set channels")
    if x.shape[1:] != other.shape[1:]:
        raise GenfedError(f"{first} is {_format_size(other)} pixels and {name} {_format_size(x)}; set size")


def _to_floats(x: Tensor) -> Tensor:
    return x.float().mul_(2 / 255).sub_(1) if x.dtype == torch.uint8 else x


def _describe_files(found: Mapping[str, DecodedPart], ground: Ground) -> SourceSummary:
    """Describes what the files had beside pixels: transparency and further images."""
    transparent, vanished, several = (
        sum(getattr(part, name) for part in found.values()) for name in ("transparent", "vanished", "several")
    )
    facts, warnings = [], []
    if transparent:
        facts.append(f"{count_of(transparent, 'image')} with transparent pixels: laid on {ground} (background)")
    if vanished > 0.05 * transparent:
        other = "black" if ground == "white" else "white"
        warnings.append(
            f"{vanished:,} of {count_of(transparent, 'transparent image')} are of one colour on {ground}; set "
            f'data.background = "{other}" if what they show is {ground}'
        )
    if several:
        warnings.append(f"{count_of(several, 'file')} with several images or frames: only the first is read")
    return SourceSummary(tuple(facts), tuple(warnings))


def _format_size(x: Tensor) -> str:
    return f"{x.shape[2]} × {x.shape[1]}"
