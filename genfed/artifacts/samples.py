"""Writes labeled synthetic examples: of a run's generator, or of the set that its server stores."""

import unicodedata
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

from genfed.artifacts.table_files import write_columns
from genfed.artifacts.trained_model import SelectedTrial, select_trial
from genfed.config.architectures import Architectures
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.files import holds_nothing, make_folder, open_file
from genfed.core.rng import stream
from genfed.core.store import FolderStore
from genfed.core.task import Task
from genfed.core.text import file_name
from genfed.data.features import TableSchema
from genfed.experiment import generator_quality, sample_grids
from genfed.experiment.checks import has_device
from genfed.experiment.run_folder import RunFolder
from genfed.experiment.trial import new_server
from genfed.preprocessing.channel_scale import ChannelScale
from genfed.preprocessing.pixel_scale import PixelScale
from genfed.training.pixels import denormalize_pixels, normalize_pixels
from genfed.training.synthetic_dataset import SyntheticDataset, choose_in_turn

GRID = "grid.png"
"""Name of the picture that shows the first images of a stored set."""
Form = Literal["png", "npz", "csv", "parquet"]
_FORMS: dict[str, Form] = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}
AT_ONCE = 1000
"""Number of examples that are generated or read at once."""


def write_samples(
    run: Path,
    out: Path,
    n: int,
    method: str | None = None,
    seed: int | None = None,
    draw: int = 0,
    form: Form | None = None,
    notify: Callable[[int], None] = lambda done: None,
) -> int:
    """Writes labeled synthetic examples of the last checkpoint of a run, and returns their number.

    Rows of a table go to a CSV or Parquet file with its columns, in the clients' mix of classes; else classes take
    turns. PNG files go to one folder per class. An npz has x, y [n] and classes; x is uint8 [n, H, W, C] (grey:
    [n, H, W]), or float32: where bytes cannot have the run's scale of pixels, and of series [n, C, T], in the units of
    the data. Where the server stores a synthetic set, the examples are chosen from it, with every class and client in
    turn, or all of it where it has fewer: the name of a PNG has its row and client, grid.png shows the first image of
    each class (down) and client (across), and an npz also has client (−1: none), condition and seed [n].

    Args:
        run: the folder of a run.
        out: the folder or the file to write.
        n: number of examples.
        method: label of the method. None: the only one that has examples.
        seed: seed of the trial. None: the first.
        draw: another number gives other examples; the same n and `draw` give the same.
        form: the format. None: by the name of `out`.
        notify: called with the number of examples written so far.

    Raises:
        GenfedError: there is no such run or trial, the method has no examples, or none that fit into the
            format, or `out` exists.
    """
    chosen = _select_trial(RunFolder(run.absolute()), method, seed)
    task, out = chosen.at.task, out.absolute()  # a user's own code may change the working directory
    form = _choose_form(form, out, task)
    if out.is_file() or not holds_nothing(out):
        raise GenfedError(f"{out} exists already; give another --out")
    if task.kind == "table":
        return _write_rows(chosen, n, draw, out, notify)
    if chosen.config.method[chosen.label].generates:
        return _write(_generate(chosen, n, draw), _saver(chosen, form), task, out, form, notify)
    server, synthetic = _server(chosen, "sample"), chosen.at.state.synthetic
    if not len(synthetic):
        raise GenfedError(f"{run}: the server of {chosen.label} has generated no image yet")
    count = _write(_choose_stored(chosen, server, n, draw), _saver(chosen, form), task, out, form, notify)
    if form == "png":
        grid = sample_grids.join_images(sample_grids.synthetic_grid(chosen.label, synthetic, server))
        _save_image(_to_pixels(grid[None])[0], out / GRID)
    return count


def _choose_form(form: Form | None, out: Path, task: Task) -> Form:
    """Returns the format of the examples; see `write_samples`.

    Raises:
        GenfedError: examples of the task do not have it.
    """
    form = form or _FORMS.get(out.suffix.lower(), "csv" if task.kind == "table" else "png")
    if (task.kind == "table") != (form in ("csv", "parquet")):
        allowed = "csv and parquet" if task.kind == "table" else "png and npz"
        raise GenfedError(f"--format {form}: examples are of kind {task.kind}, for which {allowed} are allowed")
    if form == "png" and (task.kind != "image" or task.shape[0] not in (1, 3)):
        raise GenfedError(f"examples of shape {task.shape} are no PNG, which has 1 or 3 channels: use --format npz")
    return form


def _select_trial(folder: RunFolder, method: str | None, seed: int | None) -> SelectedTrial:
    """Returns the trial to take examples from.

    Raises:
        GenfedError: there is no such trial, or its method has no examples.
    """
    config = folder.read_config()
    able = [label for label in config.labels if generator_quality.has_samples(config.method[label])]
    if not able:
        raise GenfedError(f"{folder}: none of its methods has a generator to sample from, or stores a synthetic set")
    chosen = select_trial(folder, config, method, seed, able, "methods with a generator or a synthetic set")
    if chosen.label not in able:
        raise GenfedError(f"{chosen.label} has no generator to sample from, and stores no synthetic set")
    return chosen


def _write_rows(chosen: SelectedTrial, n: int, draw: int, out: Path, notify: Callable[[int], None]) -> int:
    """Writes drawn rows with the columns of the table."""
    schema, task = chosen.run.read_encoder(), chosen.at.task
    if not isinstance(schema, TableSchema):
        raise GenfedError(f"{chosen.run}: there is no encoder.json, which says what the columns are")
    shares = getattr(chosen.at.state, "generator", {}).get("prior", torch.full((len(task.classes),), 1.0))
    y = torch.multinomial(shares.double(), n, replacement=True, generator=stream(chosen.seed, "labels", draw))
    columns: dict[str, list[Any]] = defaultdict(list)
    for chunk in _generate(chosen, n, draw, y):
        for name, values in schema.decode(chunk.x.float().cpu()).items():
            columns[name] += values
        notify(len(next(iter(columns.values()))))
    table = chosen.config.data
    columns[str(getattr(table, "label", "label"))] = [task.classes[i] for i in y.tolist()]
    write_columns(columns, out)
    return n


@dataclass(frozen=True)
class SampleChunk:
    """Some of the examples to write."""

    x: Tensor
    """Examples as a generator returns them, or images in uint8."""
    y: Tensor
    names: Sequence[str]
    """Names of the files, without their extension."""
    more: Mapping[str, Tensor]
    """Further arrays for an npz, with a value per example."""


def _generate(chosen: SelectedTrial, n: int, draw: int, labels: Tensor | None = None) -> Iterator[SampleChunk]:
    """Yields new examples of the generator with these labels [n]; None: classes in turn."""
    for start in range(0, n, AT_ONCE):
        y = torch.arange(start, min(start + AT_ONCE, n)) % len(chosen.at.task.classes)
        y = y if labels is None else labels[start : start + AT_ONCE]
        server = _server(chosen, *(("sample", draw) if start == 0 else ("sample", draw, start)))
        with torch.inference_mode():
            x = chosen.config.method[chosen.label].generate(server, chosen.at.state, y)
        if not bool(x.isfinite().all()):
            raise GenfedError(f"{chosen.label}: the generator gives numbers that are not finite: it cannot be used")
        yield SampleChunk(x, y, [f"{i:06d}" for i in range(start, start + len(y))], {})


def _choose_stored(chosen: SelectedTrial, server: Server, n: int, draw: int) -> Iterator[SampleChunk]:
    """Yields examples of the set that the server stores, every class and client in turn, in the set's order."""
    synthetic: SyntheticDataset = chosen.at.state.synthetic
    rows = choose_in_turn(synthetic.requested(server), n, stream(chosen.seed, "sample", draw)).sort().values
    for some in torch.split(rows, AT_ONCE):
        batch = synthetic.read(server, some)
        clients = batch.request.clients
        names = [
            f"{i:06d}" + (f"-client-{client}" if client >= 0 else "")
            for i, client in zip(some.tolist(), clients.tolist(), strict=True)
        ]
        more = {"client": clients, "condition": batch.request.conditions, "seed": batch.seeds}
        yield SampleChunk(batch.images, batch.request.labels, names, more)


def _server(chosen: SelectedTrial, *path: str | int) -> Server:
    """Returns the trial's server, on its device, or on the CPU where this machine does not have that device."""
    compute = chosen.config.compute
    if not has_device(compute.device):
        compute = replace(compute, device="cpu")
    store = FolderStore(chosen.run.trial(chosen.label, chosen.seed))
    return new_server(chosen.at.task, (), compute, Architectures().new, chosen.seed, 0, *path, store=store)


def _saver(chosen: SelectedTrial, form: Form) -> Callable[[Tensor], NDArray[Any]]:
    """Returns what makes the numbers of a file from examples as a generator returns them."""
    scale = chosen.run.read_encoder()
    if isinstance(scale, ChannelScale):
        return lambda x: scale.decode(x).numpy()
    if chosen.at.task.kind != "image":
        return lambda x: x.float().cpu().numpy()
    if form == "npz" and isinstance(scale, PixelScale) and scale.bytes is None:
        return lambda x: _to_pixels(scale.decode(normalize_pixels(x)))
    return lambda x: _to_pixels(x if x.dtype == torch.uint8 else denormalize_pixels(x))


def _write(
    chunks: Iterable[SampleChunk],
    save: Callable[[Tensor], NDArray[Any]],
    task: Task,
    out: Path,
    form: Form,
    notify: Callable[[int], None],
) -> int:
    make_folder(out.parent)
    folders = [out / name for name in folder_names(task.classes)]
    columns: dict[str, list[NDArray[Any]]] = defaultdict(list)
    count = 0
    for chunk in chunks:
        x = save(chunk.x)
        if form == "npz":
            for name, column in {"x": x, "y": chunk.y.numpy(), **{k: v.numpy() for k, v in chunk.more.items()}}.items():
                columns[name].append(column)
        else:
            for image, label, name in zip(x, chunk.y.tolist(), chunk.names, strict=True):
                make_folder(folders[label])
                _save_image(image, folders[label] / f"{name}.png")
        count += len(chunk.y)
        notify(count)
    if form == "npz":
        arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
        with open_file(out, "wb") as file:
            np.savez_compressed(file, **arrays, classes=np.array(task.classes))  # type: ignore[arg-type]
    return count


def _save_image(pixels: NDArray[Any], path: Path) -> None:
    with open_file(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def folder_names(classes: Sequence[str]) -> list[str]:
    """Returns a name of a folder for every class: the class's own as far as it can be one (see `file_name`). Where two
    would be equal (a/b and a_b, or A and a where case does not count), all begin with the number of the class.
    """
    names = [file_name(name, f"class-{c}") for c, name in enumerate(classes)]
    keys = {unicodedata.normalize("NFC", name).casefold() for name in (*names, GRID)}
    alike = len(keys) <= len(names)
    return [f"{c}-{name}" for c, name in enumerate(names)] if alike else names


def _to_pixels(x: Tensor) -> NDArray[Any]:
    """Returns images [n, C, H, W] as [n, H, W, C], or as [n, H, W] where there is one channel."""
    pixels = x.cpu().permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
