"""Labelled synthetic images from a run's generator."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from genfed.app.config import read
from genfed.app.run import to_uint8
from genfed.app.trained import choose
from genfed.app.trial import new_server
from genfed.core.errors import GenfedError


def write_samples(
    run: Path,
    out: Path,
    n: int,
    method: str | None = None,
    seed: int | None = None,
    draw: int = 0,
    form: Literal["png", "npz"] | None = None,
) -> int:
    """Writes n images, classes in turn: PNG files in one folder per class, or an npz with x [n, H, W, C] (grey:
    [n, H, W]) uint8, y [n] and classes. The run's last checkpoint is used, finished or not. Returns n.

    Raises:
        GenfedError: no such run or trial, a method without a generator, `out` exists.
    """
    config = read(run)
    able = [label for label in config.labels if config.method[label].generates]
    if not able:
        raise GenfedError(f"{run}: none of its methods has a generator to sample from")
    chosen = choose(run, config, method, seed, able, "methods with a generator")
    if chosen.label not in able:
        raise GenfedError(f"{chosen.label} has no generator to sample from")
    at = chosen.at
    form = form or ("npz" if out.suffix == ".npz" else "png")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GenfedError(f"{out} exists already; give another --out")
    y = torch.arange(n) % len(at.task.classes)
    server = new_server(at.task, (), config.compute, chosen.seed, 0, "sample", draw)
    with torch.inference_mode():
        x = to_uint8(config.method[chosen.label].generate(server, at.state, y))
    pixels = x.permute(0, 2, 3, 1).numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if form == "npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("wb") as file:
            np.savez_compressed(file, x=pixels, y=y.numpy(), classes=np.array(at.task.classes))
        return n
    for i, (image, label_number) in enumerate(zip(pixels, y.tolist(), strict=True)):
        name = at.task.classes[label_number].replace("/", "_")
        folder = out / (name if name.strip(".") else f"class-{label_number}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    return n
