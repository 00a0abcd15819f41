"""`genfed pretrain`: trains a small diffusion model on public images, in a directory that diffusers can open."""

import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, InstanceOf

from genfed.config.reader import build_settings, dump_toml, flatten_settings, read_source, read_table
from genfed.core.errors import GenfedError
from genfed.core.files import exclusive_lock, holds_nothing, make_folder, refuse_links, remove_parts, write_file
from genfed.core.settings import settings
from genfed.data.dataset import Dataset, Source
from genfed.engines.client_runner import use_threads
from genfed.experiment.checks import check_device
from genfed.experiment.environment import processor_name
from genfed.experiment.run_folder import OnExisting
from genfed.foundation.pretraining import CHECKPOINT, Optimization, PromptedImages, TrainingProgress, pretrain
from genfed.foundation.small_model import SmallDiffusion

SETTINGS, CARD = "pretraining.toml", "pretraining.json"
"""Files of a directory: the resolved settings, and the facts of a finished pretraining."""
_FREE = re.compile(r"name|data_root|public\..*\.path|training\.save_every")
"""Settings that the outcome does not depend on."""


@settings
class PublicSource:
    """A source of public images, and the prompts that describe them."""

    data: InstanceOf[Source]
    """Data source of the images, of which the training part is used; `kind` names it."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {class}",)
    """Prompt templates; each step draws one of them for each image. {class} is the name of the image's class, {COLUMN}
    its value in a natural column, such as {prompt} in glyphs."""


@settings
class PretrainingSettings:
    """A small diffusion model, and what it is trained on."""

    name: str
    """Name of the pretraining; the model goes to runs/NAME by default."""
    seed: int = 0
    """Seed of all random numbers."""
    data_root: str = ""
    """Folder that relative paths of the sources start from. Empty: the working directory."""
    public: dict[str, InstanceOf[PublicSource]]
    """Sources of images: a table [public.WORD] with [public.WORD.data] per source. All images must have one shape; each
    is drawn equally often."""
    model: SmallDiffusion = Field(default_factory=SmallDiffusion)
    """Size of the model."""
    training: Optimization = Field(default_factory=Optimization)
    """Settings of the training."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of threads. Another number may change the last bits of the outcome."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device that the model is trained on: "cpu", "cuda" or "cuda:1"."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the arithmetic in training; "bfloat16" is mixed precision. Weights are float32 until they are
    written."""


@dataclass(frozen=True)
class PretrainingCard:
    """The facts of a finished pretraining: pretraining.json beside its config."""

    seconds: float
    """Duration of the last process; processes that were stopped before it are not counted."""
    images: int
    prompts: int
    losses: tuple[float, ...]
    """Mean losses of every 100 steps; first those of the autoencoder."""
    processor: str
    device: str
    versions: dict[str, str]


def read_pretraining(source: str | Path, overrides: Iterable[str] = ()) -> PretrainingSettings:
    """Reads a TOML file; `overrides` are "key=value".

    Raises:
        GenfedError: no such file, not TOML, or a setting that is unknown, missing, of a wrong type or out of bounds.
    """
    table = read_table(source, overrides)
    given = table.pop("public", None)
    if not isinstance(given, dict) or not given:
        raise GenfedError(
            "public: name at least one source of images, in a table [public.WORD] with [public.WORD.data]"
        )
    public = {}
    for word, own in given.items():
        if not isinstance(own, dict) or not isinstance(own.get("data"), dict):
            raise GenfedError(f"public.{word}: expected a table with a table data, such as [public.{word}.data]")
        data = read_source(own["data"], f"public.{word}.data")
        public[word] = build_settings(PublicSource, own | {"data": data}, f"public.{word}.")
    return build_settings(PretrainingSettings, table | {"public": public}, "")


def run_pretraining(
    config: PretrainingSettings,
    folder: Path,
    *,
    on_existing: OnExisting = "refuse",
    notify: Callable[[TrainingProgress], None] = lambda progress: None,
) -> PretrainingCard:
    """Trains and writes the directory: the model, the config as pretraining.toml and pretraining.json.

    Args:
        config: the settings.
        folder: the directory to write.
        on_existing: what to do where the directory holds a pretraining: refuse it, resume it or begin anew.
        notify: called with the progress every hundred steps.

    Raises:
        GenfedError: the config, the data or the directory is wrong. Checkpoints that were saved stay on the disk.
    """
    check_device(config.device)
    examples = read_examples(config)
    _check_existing(config, folder, on_existing)
    make_folder(folder)
    busy = f"{folder} is being written by another process; wait for it or choose another folder"
    with exclusive_lock(folder / ".lock", busy=busy), use_threads(config.threads):
        finished, checkpoint = folder / CARD, folder / CHECKPOINT
        if on_existing == "resume" and finished.exists() and not checkpoint.exists():
            about = json.loads(finished.read_text("utf-8"))
            return PretrainingCard(**about | {"losses": tuple(about["losses"])})
        if on_existing == "replace":
            _clear(folder)
        remove_parts(folder)
        write_file(folder / SETTINGS, dump_toml(config))
        card = _train(config, examples, folder, notify)
        write_file(finished, json.dumps(vars(card), indent=1) + "\n")
        checkpoint.unlink(missing_ok=True)
    (folder / ".lock").unlink(missing_ok=True)
    return card


def _check_existing(config: PretrainingSettings, folder: Path, on_existing: OnExisting) -> None:
    """Refuses a directory that holds something else, or a pretraining that cannot be gone on with."""
    settings_file = folder / SETTINGS
    if holds_nothing(folder):
        return
    if not settings_file.exists():
        raise GenfedError(f"{folder} holds files that are no pretraining of genfed; choose another --out")
    refuse_links(folder)
    if on_existing == "refuse":
        raise GenfedError(
            f"{folder} holds a pretraining: go on with --resume, begin anew with --fresh, or change --out"
        )
    if on_existing == "resume" and (key := _changed(read_pretraining(settings_file), config)):
        raise GenfedError(f"{folder} was started with another {key}: resume it as it was, or use --fresh or --out")


def _clear(folder: Path) -> None:
    """Deletes an earlier pretraining."""
    for file in ("model_index.json", CHECKPOINT, CARD):
        (folder / file).unlink(missing_ok=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _train(
    config: PretrainingSettings, examples: PromptedImages, folder: Path, notify: Callable[[TrainingProgress], None]
) -> PretrainingCard:
    began = time.monotonic()
    losses = pretrain(
        examples,
        config.model,
        config.training,
        folder,
        seed=config.seed,
        device=torch.device(config.device),
        precision=config.precision,
        notify=notify,
    )
    return PretrainingCard(
        round(time.monotonic() - began, 1),
        len(examples.x),
        len(examples.prompts),
        losses,
        processor_name(),
        config.device,
        _versions(),
    )


def read_examples(config: PretrainingSettings) -> PromptedImages:
    """Returns the images of all sources with their prompts: one per template of the source, repeated where another
    source has more templates.

    Raises:
        GenfedError: a source is no source of images, shapes differ, or a template has an unknown name.
    """
    loaded = {word: _load(config, public.data) for word, public in config.public.items()}
    shapes = {word: dataset.task.shape for word, dataset in loaded.items()}
    first = next(iter(shapes))
    for word, dataset in loaded.items():
        if dataset.task.kind != "image":
            raise GenfedError(f"public.{word}: {dataset.task.noun}; images are allowed")
        if shapes[word] != shapes[first]:
            raise GenfedError(
                f"public.{word}: images of shape {shapes[word]}, where public.{first} has {shapes[first]}; "
                "set size and channels"
            )
        if dataset.train.x.dtype != torch.uint8:
            raise GenfedError(f"public.{word}: images of floats; pixels 0 to 255 are allowed")
    most = max(len(public.prompts) for public in config.public.values())
    number: dict[str, int] = {}
    which = []
    for word, dataset in loaded.items():
        templates = config.public[word].prompts
        for i, label in enumerate(dataset.train.y.tolist()):
            values = {name: column[i] for name, column in dataset.columns.items()} | {
                "class": dataset.task.classes[label]
            }
            found = [_filled(template, values, word) for template in templates]
            which.append([number.setdefault(found[k % len(found)], len(number)) for k in range(most)])
    x = torch.cat([dataset.train.x for dataset in loaded.values()])
    return PromptedImages(x, tuple(number), torch.tensor(which))


def _filled(template: str, values: Mapping[str, str], word: str) -> str:
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        raise GenfedError(f"public.{word}.prompts: {template!r} cannot be filled in; there are: {known}") from None


def _load(config: PretrainingSettings, source: Source) -> Dataset:
    path = getattr(source, "path", None)
    if config.data_root and isinstance(path, str):
        source = replace(source, path=str(Path(config.data_root) / path))  # type: ignore[type-var]
    return source.load()


def _changed(before: PretrainingSettings, now: PretrainingSettings) -> str | None:
    old, new = ({k: v for k, v in flatten_settings(c).items() if not _FREE.fullmatch(k)} for c in (before, now))
    return next((key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)), None)


def _versions() -> dict[str, str]:
    import diffusers
    import transformers

    found: dict[str, Any] = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    return {"python": platform.python_version()} | {name: str(module.__version__) for name, module in found.items()}
