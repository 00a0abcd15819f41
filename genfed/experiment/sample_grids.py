"""Small pictures of the images or series that a trial generates or stores, for its report and for `genfed sample`."""

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genfed.core.client import Server
from genfed.core.federated_data import FederatedData
from genfed.core.task import Task
from genfed.experiment.trial import Trial, trial_server
from genfed.report.images import CLASSES, CLIENTS, Grid, SetGrid
from genfed.report.series_pictures import draw_windows
from genfed.training.pixels import denormalize_pixels, normalize_pixels
from genfed.training.synthetic_dataset import SyntheticDataset, keeps_synthetic_dataset

SIDE = 64
"""Largest side, in pixels, of a picture of a stored image."""


def sample_picture(trial: Trial, state: Any) -> Grid | SetGrid | None:
    """Returns samples of the trial's generator, or of the set that its server stores. None: it has neither, or its
    examples are neither images nor series.
    """
    kind = trial.shards.task.kind
    if trial.method.generates and kind in ("image", "series"):
        return generator_grid(trial, state)
    if keeps_synthetic_dataset(trial.method) and kind == "image":
        return synthetic_grid(trial.label, state.synthetic, trial_server(trial, 0, "grid"), trial.shards)
    return None


def generator_grid(trial: Trial, state: Any, each: int = 10) -> Grid:
    """Returns `each` generated and `each` held-out examples of every class."""
    classes = len(trial.shards.task.classes)
    y = torch.arange(classes).repeat_interleave(each)
    made = trial.method.generate(trial_server(trial, 0, "grid"), state, y)
    real = _held_out_images(trial.shards, each)
    images = _draw(trial.shards.task, made)
    return Grid(trial.label, images.reshape(classes, each, *images.shape[1:]), real)


def synthetic_grid(
    label: str, synthetic: SyntheticDataset, server: Server, shards: FederatedData | None = None, each: int = 5
) -> SetGrid:
    """Returns the first `each` images of every class and client, and as many held-out ones of `shards`.

    Args:
        label: label of the method.
        synthetic: the set that the server stores.
        server: reads the set.
        shards: clients with held-out examples. None: without these.
        each: number of images of each class and client.
    """
    found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for batch in synthetic.chunks(server):
        pairs = zip(batch.request.labels.tolist(), batch.request.clients.tolist(), strict=True)
        for image, pair in zip(batch.images, pairs, strict=True):
            if len(found[pair]) < each:
                found[pair].append(_shrink(image[None])[0])
    clients = tuple(sorted({client for _, client in found}))
    cells = {pair: torch.stack(images) for pair, images in found.items()}
    shown = {pair: x for pair, x in cells.items() if pair[0] < CLASSES and pair[1] in clients[:CLIENTS]}
    real = None if shards is None else _held_out_images(shards, each)
    small = None if real is None else torch.stack([_shrink(images) for images in real])
    return SetGrid(label, len(synthetic), clients, shown, small)


def join_images(grid: SetGrid, each: int = 5) -> Tensor:
    """Returns one picture [C, H, W]: a row per class, `each` images per client side by side, white where an image is
    missing.
    """
    c, h, w = next(iter(grid.cells.values())).shape[1:]
    rows = sorted({label for label, _ in grid.cells})
    canvas = torch.full((c, len(rows) * (h + 1), len(grid.shown) * (each * (w + 1) + 4)), 255, dtype=torch.uint8)
    for (label, client), images in grid.cells.items():
        top, left = rows.index(label) * (h + 1), grid.shown.index(client) * (each * (w + 1) + 4)
        for i, image in enumerate(images):
            canvas[:, top : top + h, left + i * (w + 1) : left + i * (w + 1) + w] = image
    return canvas


def _held_out_images(shards: FederatedData, each: int) -> Tensor | None:
    held_out = shards.held_out
    rows = [torch.nonzero(held_out.y == c).flatten()[:each] for c in range(len(shards.task.classes))]
    enough = all(len(r) == each for r in rows)
    return torch.stack([_draw(shards.task, held_out.x[r]) for r in rows]) if enough else None


def _draw(task: Task, x: Tensor) -> Tensor:
    """Returns examples as images, uint8 [n, C, H, W] on the CPU."""
    return draw_windows(x) if task.kind == "series" else denormalize_pixels(normalize_pixels(x)).cpu()


def _shrink(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return images.clone()
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)
