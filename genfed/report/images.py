"""Grids of images in a report."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

CLASSES, CLIENTS = 20, 10
"""Rows and columns of a sample grid that are shown."""


@dataclass(frozen=True)
class Grid:
    """What a generator draws, by class."""

    method: str
    images: Tensor
    """uint8 [classes, per_class, C, H, W]; three channels are colours, others are averaged to grey."""
    real: Tensor | None = None
    """Training images to show beside them, of the same shape; None: none."""


@dataclass(frozen=True)
class SetGrid:
    """What a server keeps of synthetic images, by class and client."""

    method: str
    size: int
    """Images in the set."""
    clients: tuple[int, ...]
    """For which there are any; −1: for nobody."""
    cells: Mapping[tuple[int, int], Tensor]
    """(class, client) → uint8 [k, C, H, W]; those without an image are left out."""
    real: Tensor | None = None
    """Held-out images to show beside them, uint8 [classes, k, C, H, W]; None: none."""

    @property
    def shown(self) -> tuple[int, ...]:
        """The clients that have a column."""
        return self.clients[:CLIENTS]


def client_name(client: int) -> str:
    """How a column of a set is called."""
    return "nobody" if client < 0 else f"client {client}"


def _width(images: Tensor) -> int:
    """At which a strip of images [n, C, H, W] is shown."""
    count, _, height, width = images.shape
    return count * width * max(1, round(36 / height))


def encode_png(images: Tensor) -> str:
    """Images [n, C, H, W] side by side, a transparent pixel between them, as a data URL."""
    if images.shape[1] != 3:
        images = images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    opaque = torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)
    row = torch.nn.functional.pad(opaque, (0, 1)).permute(2, 0, 3, 1).flatten(1, 2)[:, :-1]  # [H, n·(W + 1) − 1, 4]
    file = io.BytesIO()
    Image.fromarray(row.contiguous().cpu().numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
