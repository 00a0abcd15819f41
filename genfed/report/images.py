"""Grids of generated images in a report."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from genfed.core.text import NAME, one_line

CLASSES, CLIENTS = 20, 10
"""Largest number of rows and of columns of a sample grid."""


@dataclass(frozen=True)
class Grid:
    """Images that a generator drew, or pictures of series, by class."""

    method: str
    images: Tensor
    """uint8 [classes, per_class, C, H, W]; three channels are a color image, any other number is averaged to gray."""
    real: Tensor | None = None
    """Real held-out ones to show beside them, of the same shape; None: none."""


@dataclass(frozen=True)
class SetGrid:
    """Synthetic images that a server stores, by class and client."""

    method: str
    size: int
    """Number of images in the set."""
    clients: tuple[int, ...]
    """Clients that have images in the set; −1 stands for images of no client."""
    cells: Mapping[tuple[int, int], Tensor]
    """(class, client) → uint8 [k, C, H, W]; a pair without images has no entry."""
    real: Tensor | None = None
    """Real held-out images to show beside them, uint8 [classes, k, C, H, W]; None: none."""

    @property
    def shown(self) -> tuple[int, ...]:
        """The clients that are shown."""
        return self.clients[:CLIENTS]


class Strip(NamedTuple):
    """One class of a grid: data URLs of PNGs, and the width at which they are shown, in CSS pixels."""

    label: str
    generated: str
    real: str | None
    width: int


class PictureCell(NamedTuple):
    """Images of one class: a data URL of a PNG, the width at which it is shown in CSS pixels, and what it shows."""

    source: str
    width: int
    alt: str


def build_strips(grid: Grid, classes: Sequence[str]) -> list[Strip]:
    """Returns one strip per class, for the first classes."""
    width = measure_width(grid.images[0])
    return [
        Strip(name, encode_png(grid.images[k]), None if grid.real is None else encode_png(grid.real[k]), width)
        for k, name in enumerate(map(_shorten_class, classes[:CLASSES]))
    ]


def build_set_rows(grid: SetGrid, classes: Sequence[str]) -> list[tuple[str, list[PictureCell | None]]]:
    """Returns one row per class: its name, a cell per client, and one of real images where there are any."""

    def cell(images: Tensor | None, alt: str) -> PictureCell | None:
        return None if images is None else PictureCell(encode_png(images), measure_width(images), alt)

    rows = []
    for k, name in enumerate(map(_shorten_class, classes[:CLASSES])):
        row = [cell(grid.cells.get((k, c)), f"Images of class {name} for {name_client(c)}") for c in grid.shown]
        rows.append((name, row if grid.real is None else [*row, cell(grid.real[k], f"Real images of class {name}")]))
    return rows


def _shorten_class(name: str) -> str:
    return one_line(name, NAME)


def name_client(client: int) -> str:
    """Returns the heading of a client's column."""
    return "no client" if client < 0 else f"client {client}"


def measure_width(images: Tensor) -> int:
    """Returns the width in CSS pixels at which images [n, C, H, W] side by side are shown."""
    count, _, height, width = images.shape
    return count * width * max(1, round(36 / height))


def encode_png(images: Tensor) -> str:
    """Returns images [n, C, H, W] side by side, a transparent pixel between them, as the data URL of a PNG."""
    if images.shape[1] != 3:
        images = images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    opaque = torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)
    row = torch.nn.functional.pad(opaque, (0, 1)).permute(2, 0, 3, 1).flatten(1, 2)[:, :-1]  # [H, n·(W + 1) − 1, 4]
    file = io.BytesIO()
    Image.fromarray(row.contiguous().cpu().numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
