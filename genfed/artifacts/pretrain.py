"""`genfed pretrain`: a small diffusion model of public images, into a directory that diffusers opens."""

import fcntl
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
from genfed.core.settings import settings
from genfed.data.dataset import Dataset, Source
from genfed.engines.client_runner import use_threads
from genfed.experiment.checks import check_device
from genfed.experiment.environment import processor_name
from genfed.foundation.pretraining import CHECKPOINT, Optimization, PromptedImages, TrainingProgress, pretrain
from genfed.foundation.small_model import SmallDiffusion

_FREE = re.compile(r"name|data_root|public\..*\.path|training\.save_every")
"""Settings that the outcome does not depend on."""


@settings
class PublicSource:
    """Public images and what they are asked for with."""

    data: InstanceOf[Source]
    """`kind` names the source; its training part is used."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {class}",)
    """One of them is drawn for an image in each step: {class} is the name of its class, {COLUMN} the value of a natural
    column, such as the {prompt} of glyphs."""


@settings
class PretrainingSettings:
    """One miniature and what it is trained on."""

    name: str
    """Of the run; the directory is runs/NAME unless said otherwise."""
    seed: int = 0
    """Of all draws."""
    data_root: str = ""
    """Folder that a relative path of a source starts from; empty: the working directory."""
    public: dict[str, InstanceOf[PublicSource]]
    """Tables [public.WORD], with [public.WORD.data]; all images have one shape, and all count alike."""
    model: SmallDiffusion = Field(default_factory=SmallDiffusion)
    """Its size."""
    training: Optimization = Field(default_factory=Optimization)
    """How it is trained."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of the processor; another number may change the last bits."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """"cpu", "cuda" or "cuda:1"."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic of training; weights are float32 until they are written."""


@dataclass(frozen=True)
class PretrainingCard:
    """Of a finished directory: pretraining.json beside its config."""

    seconds: float
    """That the last process took; those of one that was stopped are not counted."""
    images: int
    prompts: int
    losses: tuple[float, ...]
    """A mean per 100 steps, the autoencoder's first."""
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
    resume: bool = False,
    fresh: bool = False,
    notify: Callable[[TrainingProgress], None] = lambda told: None,
) -> PretrainingCard:
    """Trains and writes the directory: the model, the config as pretraining.toml and pretraining.json.

    Raises:
        GenfedError: something in the config, the data or the folder is wrong; what was done before stays done.
    """
    check_device(config.device)
    examples = read_examples(config)
    mine = folder / "pretraining.toml"
    if folder.exists() and {entry.name for entry in folder.iterdir()} - {".lock"}:
        if not mine.exists():
            raise GenfedError(f"{folder} holds files that are no pretraining of genfed; choose another --out")
        if resume == fresh:
            raise GenfedError(
                f"{folder} holds a pretraining: go on with --resume, begin anew with --fresh, or change --out"
            )
        if resume and (key := _changed(read_pretraining(mine), config)):
            raise GenfedError(f"{folder} was started with another {key}: resume it as it was, or use --fresh or --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock, use_threads(config.threads):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GenfedError(f"{folder} is being written by another process; wait for it or use --out") from None
        finished, checkpoint = folder / "pretraining.json", folder / CHECKPOINT
        if resume and finished.exists() and not checkpoint.exists():
            about = json.loads(finished.read_text("utf-8"))
            return PretrainingCard(**about | {"losses": tuple(about["losses"])})
        if fresh:
            for file in (folder / "model_index.json", checkpoint, finished):
                file.unlink(missing_ok=True)
            for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
                shutil.rmtree(folder / part, ignore_errors=True)
        mine.write_text(dump_toml(config), "utf-8")
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
        about = PretrainingCard(
            round(time.monotonic() - began, 1),
            len(examples.x),
            len(examples.prompts),
            losses,
            processor_name(),
            config.device,
            _versions(),
        )
        finished.write_text(json.dumps(vars(about), indent=1) + "\n", "utf-8")
        checkpoint.unlink(missing_ok=True)
    (folder / ".lock").unlink(missing_ok=True)
    return about


def read_examples(config: PretrainingSettings) -> PromptedImages:
    """The images of all sources, each with as many prompts as its source has templates (the fewer repeated).

    Raises:
        GenfedError: a table, images of different shapes, or a template with a name that is neither class nor column.
    """
    loaded = {word: _load(config, public.data) for word, public in config.public.items()}
    shapes = {word: dataset.task.shape for word, dataset in loaded.items()}
    first = next(iter(shapes))
    for word, dataset in loaded.items():
        if dataset.task.kind != "image":
            raise GenfedError(f"public.{word}: a {dataset.task.kind}; images are allowed")
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
