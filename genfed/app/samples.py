"""Labelled synthetic images from a run's generator."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from genfed.app import registry
from genfed.app.config import read
from genfed.app.site import trial_folder
from genfed.app.trial import new_server, read_checkpoint
from genfed.core.errors import GenfedError
from genfed.learn.fit import unscaled


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
    if method is None and len(able) != 1:
        raise GenfedError(f"{run}: name one of its methods with a generator by --method (there are: {', '.join(able)})")
    label = able[0] if method is None else method
    if label not in config.method:
        raise GenfedError(registry.unknown(label, config.labels, f"{run} has no method"))
    if label not in able:
        raise GenfedError(f"{label} has no generator to sample from")
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise GenfedError(f"{run} has no seed {seed} (there are: {', '.join(map(str, config.seeds))})")
    chosen = config.method[label]
    at = read_checkpoint(chosen, trial_folder(run, label, seed))
    if at is None:
        raise GenfedError(f"{run}: {label} with seed {seed} has no checkpoint yet")
    form = form or ("npz" if out.suffix == ".npz" else "png")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GenfedError(f"{out} exists already; give another --out")
    y = torch.arange(n) % len(at.task.classes)
    server = new_server(at.task, (), config.compute, seed, 0, "sample", draw)
    with torch.inference_mode():
        x = unscaled(chosen.generate(server, at.state, y)).cpu()
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
