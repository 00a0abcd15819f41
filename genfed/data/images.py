"""Sources of images: uint8 [n, C, H, W], of one size and one number of channels."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError, first_line
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.arrays import Array, Layout, read_arrays, to_examples
from genfed.data.checks import check_fit, require_known, require_path
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.split import SplitSource

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_AT_ONCE = 2**24  # numbers in a chunk: 64 MB as float32, however large the data set
_FILES_AT_ONCE = 500  # images of a folder read in one chunk
_GRAY = ("1", "L", "LA")
_COLOR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


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

    @abstractmethod
    def load(self) -> Dataset: ...

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads the images in a folder and its sub-folders, one image file, or the array x of an .npz file."""
        if Path(path).suffix.lower() == ".npz":
            arrays = read_arrays(path, lambda name: name == "x")
            x = self.to_tensor(arrays[require_known("x", arrays, f"{path}: array")], f"{path}: x")
            check_fit(tuple(x.shape[1:]), task, f"{path}: x")
            if not len(x):
                raise GenfedError(f"{path}: x holds no examples")
            yield Examples(tuple(map(str, range(len(x)))), "row", x)
            return
        root = require_path(path)
        if task.kind != "image":
            raise GenfedError(f"{path}: the run's examples are a table; an .npz with an array x is allowed")
        files, top = (list_images(root), root) if root.is_dir() else ([root], root.parent)
        for start in range(0, len(files), _FILES_AT_ONCE):
            piece = files[start : start + _FILES_AT_ONCE]
            x = torch.empty(len(piece), *task.shape, dtype=torch.uint8)
            for i, file in enumerate(piece):
                image = self.convert(_decode(str(file), file)[None])[0]
                check_fit(tuple(image.shape), task, str(file))
                x[i] = image
            yield Examples(tuple(file.relative_to(top).as_posix() for file in piece), "file", x)

    def to_tensor(self, x: Array, where: str, layout: Layout | None = None) -> Tensor:
        """Converts an array to float32 [n, features], or to images as `convert` returns them.

        Args:
            x: The array, see `genfed.data.arrays.to_examples`.
            where: Text that begins an error message.
            layout: Order of the four axes; None: found from the axis of size 1 or 3.

        Raises:
            GenfedError: the array cannot be used.
        """
        examples = to_examples(x, layout, where)
        return examples if examples.ndim == 2 else self.convert(examples)

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

    def decode_all(self, images: Iterable[tuple[str, Path | bytes]], n: int) -> Tensor:
        """Decodes n image files, each a pair (name, file or its bytes), one at a time, to uint8 [n, C, H, W].

        Raises:
            GenfedError: an image is unreadable, or the sizes or channels differ and no setting makes them equal.
        """
        out, first = torch.empty(0), ""
        for i, (name, source) in enumerate(images):
            x = self.convert(_decode(name, source)[None])[0]
            if i == 0:
                out, first = torch.empty(n, *x.shape, dtype=torch.uint8), name
            if x.shape[0] != out.shape[1]:
                raise GenfedError(f"{first} has {out.shape[1]} channels and {name} has {x.shape[0]}; set channels")
            if x.shape[1:] != out.shape[2:]:
                raise GenfedError(f"{first} is {_format_size(out[0])} pixels and {name} {_format_size(x)}; set size")
            out[i] = x
        return out


def list_images(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its sub-folders, sorted; hidden files and folders are ignored.

    Raises:
        GenfedError: there are none.
    """
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    if not files:
        raise GenfedError(f"{folder}: there are no images; {', '.join(SUFFIXES)} are allowed")
    return files


def _decode(name: str, source: Path | bytes) -> Tensor:
    """Decodes one image to uint8 [1 or 3, H, W]: upright, without transparency, the first frame of an animation."""
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode not in _GRAY + _COLOR:
                raise GenfedError(f"{name}: pixels of mode {image.mode}; 8-bit grey and colour are allowed")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("P", "PA"):
                upright = upright.convert("RGBA")  # Pillow warns of a palette with transparency otherwise
            pixels = np.array(upright.convert("L" if upright.mode in _GRAY else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise GenfedError(f"{name}: not a readable image ({first_line(error)})") from None
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _format_size(x: Tensor) -> str:
    return f"{x.shape[2]} × {x.shape[1]}"
