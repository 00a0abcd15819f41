"""Labelled synthetic images from a run's generator."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from genfed.app.config import read
from genfed.app.federation import check_device
from genfed.app.trained import choose
from genfed.app.trial import new_server
from genfed.core.errors import GenfedError
from genfed.core.method import Task
from genfed.learn.fit import unscaled

AT_ONCE = 1000
"""Examples that are drawn, and held, at once."""


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
    n and `draw` give the same examples. Returns n.

    Raises:
        GenfedError: no such run or trial, a method without a generator, examples that are no PNG, `out` exists.
    """
    config = read(run)
    able = [label for label in config.labels if config.method[label].generates]
    if not able:
        raise GenfedError(f"{run}: none of its methods has a generator to sample from")
    chosen = choose(run, config, method, seed, able, "methods with a generator")
    if chosen.label not in able:
        raise GenfedError(f"{chosen.label} has no generator to sample from")
    task, compute = chosen.at.task, config.compute
    try:
        check_device(compute.device)
    except GenfedError:  # it was trained on another machine
        compute = replace(compute, device="cpu")
    form = form or ("npz" if out.suffix == ".npz" else "png")
    if form == "png" and (task.kind != "image" or task.shape[0] not in (1, 3)):
        raise GenfedError(f"examples of shape {task.shape} are no PNG, which has 1 or 3 channels: use --format npz")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GenfedError(f"{out} exists already; give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    folders, pieces = [out / name for name in folder_names(task.classes)], []
    for start in range(0, n, AT_ONCE):
        y = torch.arange(start, min(start + AT_ONCE, n)) % len(task.classes)
        path = ("sample", draw) if start == 0 else ("sample", draw, start)
        server = new_server(task, (), compute, chosen.seed, 0, *path)
        with torch.inference_mode():
            x = _presented(config.method[chosen.label].generate(server, chosen.at.state, y), task)
        if form == "npz":
            pieces.append(x)
        else:
            _write_pngs(x, y.tolist(), folders, start)
        notify(start + len(y))
    if form == "npz":
        labels = np.arange(n) % len(task.classes)
        with out.open("wb") as file:
            np.savez_compressed(file, x=np.concatenate(pieces), y=labels, classes=np.array(task.classes))
    return n


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for every class: its own where it can be one. Where two would be alike (a/b and a_b, or A and a
    where capitals do not count), all begin with the class's number.
    """
    plain = [re.sub(r"[/\\\0]", "_", name) for name in classes]
    names = [f"class-{c}" if not name or name.startswith(".") else name for c, name in enumerate(plain)]
    alike = len({name.casefold() for name in names}) < len(names)
    return [f"{c}-{name}" for c, name in enumerate(names)] if alike else names


def _presented(x: Tensor, task: Task) -> NDArray[Any]:
    """On the CPU: a table as it is, images as pixels with the channels last, or without where there is one."""
    if task.kind != "image":
        return x.float().cpu().numpy()
    pixels = unscaled(x).cpu().permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _write_pngs(pixels: NDArray[Any], y: Sequence[int], folders: Sequence[Path], start: int) -> None:
    for i, (image, label) in enumerate(zip(pixels, y, strict=True), start):
        folders[label].mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folders[label] / f"{i:06d}.png")
