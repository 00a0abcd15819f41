"""Labelled synthetic images: from a run's generator, or of the set that its server keeps."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from genfed.artifacts.trained_model import SelectedTrial, select_trial
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.store import FolderStore
from genfed.core.task import Task
from genfed.experiment import generator_quality, sample_grids
from genfed.experiment.checks import check_device
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_server
from genfed.training.pixels import denormalize_pixels
from genfed.training.synthetic_dataset import SyntheticDataset, choose_in_turn

AT_ONCE = 1000
"""Examples that are drawn, or read, and held at once."""


def write_samples(
    run: Path,
    out: Path,
    n: int,
    method: str | None = None,
    seed: int | None = None,
    draw: int = 0,
    form: Literal["png", "npz"] | None = None,
    notify: Callable[[int], None] = lambda done: None,
) -> int:
    """Writes n examples, classes in turn: PNG files in one folder per class, or an npz with x, y [n] and classes; x is
    uint8 [n, H, W, C] (grey: [n, H, W]), or of a table float32 [n, features]. The run's last checkpoint is used,
    finished or not, on its device, or on the CPU where that is not there; `notify` is told how many are done. The same
    n and `draw` give the same examples.

    Where the server keeps a synthetic set instead, they are n of it, every class and client in turn, or all if there
    are fewer: a PNG's name tells row and client, grid.png shows the first of each class (down) and client (across), and
    an npz has also client (−1: none), condition and seed [n]. Returns how many were written.

    Raises:
        GenfedError: no such run or trial, a method with neither, examples that are no PNG, `out` exists.
    """
    folder, config = RunFolder(run), read_config(run)
    able = [label for label in config.labels if generator_quality.has_samples(config.method[label])]
    if not able:
        raise GenfedError(f"{run}: none of its methods has a generator to sample from, or keeps a synthetic set")
    chosen = select_trial(folder, config, method, seed, able, "methods with a generator or a synthetic set")
    if chosen.label not in able:
        raise GenfedError(f"{chosen.label} has no generator to sample from, and keeps no synthetic set")
    task = chosen.at.task
    form = form or ("npz" if out.suffix == ".npz" else "png")
    if form == "png" and (task.kind != "image" or task.shape[0] not in (1, 3)):
        raise GenfedError(f"examples of shape {task.shape} are no PNG, which has 1 or 3 channels: use --format npz")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GenfedError(f"{out} exists already; give another --out")
    if config.method[chosen.label].generates:
        return _write(_drawn(chosen, n, draw), task, out, form, notify)
    server, synthetic = _server(chosen, "sample"), chosen.at.state.synthetic
    if not len(synthetic):
        raise GenfedError(f"{run}: the server of {chosen.label} has made no image yet")
    count = _write(_kept(chosen, server, n, draw), task, out, form, notify)
    if form == "png":
        Image.fromarray(
            _pixels(sample_grids.join_images(sample_grids.synthetic_grid(chosen.label, synthetic, server))[None])[0]
        ).save(out / "grid.png")
    return count


@dataclass(frozen=True)
class SampleChunk:
    """Some of the images that are written."""

    x: Tensor
    """As a generator gives them, or uint8."""
    y: Tensor
    names: Sequence[str]
    """Of files, without what comes after the dot."""
    more: Mapping[str, Tensor]
    """What else is known of each, for an npz."""


def _drawn(chosen: SelectedTrial, n: int, draw: int) -> Iterator[SampleChunk]:
    """Fresh ones of the generator, the classes in turn."""
    for start in range(0, n, AT_ONCE):
        y = torch.arange(start, min(start + AT_ONCE, n)) % len(chosen.at.task.classes)
        server = _server(chosen, *(("sample", draw) if start == 0 else ("sample", draw, start)))
        with torch.inference_mode():
            x = chosen.config.method[chosen.label].generate(server, chosen.at.state, y)
        yield SampleChunk(x, y, [f"{i:06d}" for i in range(start, start + len(y))], {})


def _kept(chosen: SelectedTrial, server: Server, n: int, draw: int) -> Iterator[SampleChunk]:
    """Those of the set that the server keeps, every class and client in turn; in the set's order."""
    synthetic: SyntheticDataset = chosen.at.state.synthetic
    rows = choose_in_turn(synthetic.requested(server), n, stream(chosen.seed, "sample", draw)).sort().values
    for some in torch.split(rows, AT_ONCE):
        made = synthetic.read(server, some)
        clients = made.wanted.clients
        names = [
            f"{i:06d}" + (f"-client-{client}" if client >= 0 else "")
            for i, client in zip(some.tolist(), clients.tolist(), strict=True)
        ]
        more = {"client": clients, "condition": made.wanted.conditions, "seed": made.seeds}
        yield SampleChunk(made.images, made.wanted.labels, names, more)


def _server(chosen: SelectedTrial, *path: str | int) -> Server:
    """Of the trial, on its device, or on the CPU where that is not there: it was trained on another machine."""
    compute = chosen.config.compute
    try:
        check_device(compute.device)
    except GenfedError:
        compute = replace(compute, device="cpu")
    store = FolderStore(chosen.run.trial(chosen.label, chosen.seed))
    return new_server(chosen.at.task, (), compute, Architectures().new, chosen.seed, 0, *path, store=store)


def _write(
    pieces: Iterable[SampleChunk], task: Task, out: Path, form: Literal["png", "npz"], notify: Callable[[int], None]
) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    folders = [out / name for name in folder_names(task.classes)]
    columns: dict[str, list[NDArray[Any]]] = defaultdict(list)
    count = 0
    for piece in pieces:
        x = _presented(piece.x, task)
        if form == "npz":
            for name, column in {"x": x, "y": piece.y.numpy(), **{k: v.numpy() for k, v in piece.more.items()}}.items():
                columns[name].append(column)
        else:
            for image, label, name in zip(x, piece.y.tolist(), piece.names, strict=True):
                folders[label].mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folders[label] / f"{name}.png")
        count += len(piece.y)
        notify(count)
    if form == "npz":
        arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
        with out.open("wb") as file:
            np.savez_compressed(file, **arrays, classes=np.array(task.classes))  # type: ignore[arg-type]
    return count


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for every class: its own where it can be one. Where two would be alike (a/b and a_b, or A and a
    where capitals do not count), all begin with the class's number.
    """
    plain = [re.sub(r"[/\\\0]", "_", name) for name in classes]
    names = [f"class-{c}" if not name or name.startswith(".") else name for c, name in enumerate(plain)]
    alike = len({name.casefold() for name in names}) < len(names)
    return [f"{c}-{name}" for c, name in enumerate(names)] if alike else names


def _presented(x: Tensor, task: Task) -> NDArray[Any]:
    """On the CPU: a table as it is, images as pixels."""
    if task.kind != "image":
        return x.float().cpu().numpy()
    return _pixels(x if x.dtype == torch.uint8 else denormalize_pixels(x))


def _pixels(x: Tensor) -> NDArray[Any]:
    """uint8 [n, C, H, W] → the channels last, or left out where there is one."""
    pixels = x.cpu().permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
