"""Settings of the foundation model and of its sampling."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.foundation.loading import SHIPPED, load_foundation
from genfed.foundation.model import FoundationModel, Further
from genfed.foundation.schedulers import Rngs, Scheduler


@settings
class Foundation:
    """The server's diffusion model and its sampling."""

    model: str = "shipped"
    """Directory in diffusers' format, "shipped" (a small model of coloured digits), or a name on the Hugging Face
    hub."""
    scheduler: Scheduler = "own"
    """Scheduler. "own": the directory's; "ddpm": ancestral, new noise in every step; "ddim"; "dpmsolver", for few
    steps."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Network calls per image (with guidance on twice as many rows), at most the diffusion steps of the model's
    training."""
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """Weight w of guidance: none + w·(condition − none). 1: no guidance, at half the cost; 0: the condition has no
    effect."""
    negative_prompt: str = ""
    """Prompt from which guidance leads away; empty: the empty prompt, or no class."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Number of images generated at once; their noise does not depend on it."""
    resize: bool = False
    """Whether images are resized to the task's size and channels. False: a model of another size is refused."""

    def __post_init__(self) -> None:
        if self.negative_prompt and self.guidance_scale == 1:
            raise GenfedError(
                f"foundation.negative_prompt = {self.negative_prompt!r}: with guidance_scale = 1 it has no effect"
            )

    def load(self, task: Task, device: torch.device, precision: Literal["float32", "bfloat16"]) -> FoundationModel:
        """Opens the model for a task. A model that has not changed since the last call is not opened again.

        Args:
            task: The task.
            device: Where the model is computed.
            precision: The precision of the computation.

        Raises:
            GenfedError: the model cannot be opened, its images do not fit the task, or it has fewer steps.
        """
        model = _open_cached(self.model, _stamp_directory(self.model), task.classes, device, precision)
        if task.kind != "image":
            raise GenfedError(f"foundation {self.model}: it makes images; the task's examples are {task.noun}")
        shapes = model.image_shape, task.shape
        own, needed = map(_format_shape, shapes)
        if shapes[0] != shapes[1] and not self.resize:
            raise GenfedError(
                f"foundation {self.model}: its images are {own}, the task's {needed}; set size and channels of the "
                "data, or resize = true of the foundation"
            )
        if any(shape[0] not in (1, 3) for shape in shapes) and shapes[0][0] != shapes[1][0]:
            raise GenfedError(f"foundation {self.model}: {shapes[0][0]} channels cannot be made {shapes[1][0]}")
        if model.kind == "class" and set(task.classes) - set(model.conditions.names):  # type: ignore[attr-defined]
            model.encode_condition(task.classes)  # raises an error that names the class
        model.new_sampler(self.steps, self.scheduler)
        model.encode_unconditional(1, self.negative_prompt)
        return model

    def generate(
        self, model: FoundationModel, condition: Tensor, rngs: Rngs, further: Sequence[Further] = ()
    ) -> Tensor:
        """Generates images by `model.generate` with these settings.

        Args:
            model: The model that `load` returned.
            condition: The condition [n, …].
            rngs: The generator of each image.
            further: Further conditions [n, …] and their weights.
        """
        return model.generate(
            condition,
            rngs,
            steps=self.steps,
            guidance=self.guidance_scale,
            scheduler=self.scheduler,
            negative=self.negative_prompt,
            further=further,
            batch_size=self.batch_size,
        )


@functools.lru_cache(maxsize=1)
def _open_cached(
    name: str,
    stamp: int,
    classes: tuple[str, ...],
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
) -> FoundationModel:
    return load_foundation(name, classes=classes, device=device, precision=precision)


def _stamp_directory(name: str) -> int:
    """Returns a number that changes when the directory's files change."""
    folder = SHIPPED if name == "shipped" else Path(name)
    files = sorted((*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*/*.safetensors")))
    return hash(tuple((str(file), file.stat().st_mtime_ns) for file in files))


def _format_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
