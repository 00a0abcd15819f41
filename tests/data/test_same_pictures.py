"""The same pictures give the same numbers, whichever source they are read from, for training and afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genfed.data.folder import Folder
from genfed.data.huggingface import HuggingFace
from genfed.data.images import ImageSource
from genfed.data.npz import Npz
from genfed.training.pixels import normalize_pixels

Y = np.arange(20) % 2
COLOUR = np.random.default_rng(0).integers(0, 256, (20, 8, 7, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]

Change = Callable[[Any], Any]
ARRAYS: dict[str, Change] = {
    "bytes": lambda x: x,
    "integers": lambda x: x.astype(np.int32),
    "floats to 255": lambda x: x.astype(np.float64),
    "floats to 1": lambda x: x / 255,
    "half precision": lambda x: (x / 255).astype(np.float16),
    "big-endian": lambda x: (x / 255).astype(">f8"),
    "from -1 to 1": lambda x: (x / 127.5 - 1).astype(np.float32),
}
LAYOUTS: dict[str, Change] = {
    "colour last": lambda x: x,
    "colour first": lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
    "Fortran": np.asfortranarray,
}


def png(x: Any, folder: Path, form: Change = lambda image: image) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(x):
        form(Image.fromarray(image)).save(folder / f"{i:02d}.png")


def sources(x: Any, folder: Path) -> Iterator[tuple[str, ImageSource]]:
    """Yields sources of the same pictures, with their labels."""
    for name, change in ARRAYS.items():
        np.savez(folder / f"{name}.npz", x=change(x), y=Y)
        yield name, Npz(path=str(folder / f"{name}.npz"))
    for name, change in LAYOUTS.items() if x.ndim == 4 else ():
        np.savez(folder / f"{name}.npz", train_images=change(x), train_labels=Y[:, None])
        yield name, Npz(path=str(folder / f"{name}.npz"))
    for label in (0, 1):
        png(x[label == Y], folder / "png" / str(label))
        png(x[label == Y], folder / "alpha" / str(label), lambda image: image.convert("RGBA" if x.ndim == 4 else "LA"))
    for name in ("png", "alpha"):
        yield name, Folder(path=str(folder / name))


def of_huggingface(x: Any, folder: Path) -> Iterator[tuple[str, ImageSource]]:
    import datasets

    shape = x.shape[1:]
    kind = datasets.Array3D if x.ndim == 4 else datasets.Array2D
    for name, feature, column in (
        ("images", datasets.Image(), [Image.fromarray(image) for image in x]),
        ("arrays", kind(shape, "uint8"), list(x)),
        ("float arrays", kind(shape, "float32"), list(x / 255)),
    ):
        features = datasets.Features({"x": feature, "label": datasets.ClassLabel(names=["0", "1"])})
        datasets.Dataset.from_dict({"x": column, "label": Y.tolist()}, features).save_to_disk(folder / name)
        yield name, HuggingFace(path=str(folder / name))


def everything(x: Tensor, y: Tensor) -> list[tuple[int, list[float]]]:
    """Returns all examples with their labels, as networks take them, in an order of their own."""
    return sorted((label, row) for label, row in zip(y.tolist(), normalize_pixels(x).flatten(1).tolist(), strict=True))


@pytest.mark.parametrize(
    ("x", "settings"),
    [(COLOUR, {}), (GREY, {}), (COLOUR, {"size": 5, "channels": 1})],
    ids=["colour", "grey", "resized"],
)
def test_all_sources_give_the_same_examples(tmp_path: Path, x: Any, settings: dict[str, Any]) -> None:
    found = {}
    for name, source in (*sources(x, tmp_path), *of_huggingface(x, tmp_path)):
        data = type(source)(**{**vars(source), **settings}).load()
        parts = (data.train, data.validation, data.test)
        assert data.task.classes == ("0", "1"), name
        found[name] = everything(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    assert len(found) > 8
    assert [name for name, examples in found.items() if examples != found["bytes"]] == []


@pytest.mark.parametrize("x", [COLOUR, GREY], ids=["colour", "grey"])
def test_new_examples_are_read_like_the_training_examples(tmp_path: Path, x: Any) -> None:
    png(x, tmp_path / "new")
    wanted = normalize_pixels(torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2))
    for name, source in sources(x, tmp_path):
        data = source.load()
        own = name if name in ARRAYS else "bytes"
        for path in ("new", f"{own}.npz", "bytes.npz"):
            (found,) = source.read(str(tmp_path / path), data.task, data.encoder)
            assert torch.equal(normalize_pixels(found.x), wanted), (name, path)
