"""What a config says of the foundation model, and how its images become a task's."""

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
    """The server's diffusion model and how it is sampled."""

    model: str = "shipped"
    """A directory in diffusers' format, "shipped" (a small one of coloured digits), or a Hugging Face hub's name."""
    scheduler: Scheduler = "own"
    """"own": the directory's; "ddpm": ancestral, new noise in every step; "ddim"; "dpmsolver", for few steps."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Network calls per image (twice as many rows with guidance), at most those of the model's training."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """How far images are pushed towards their condition (w): none + w·(condition − none); 1: not at all, at half the
    cost; 0: the condition is not heeded."""
    negative: str = ""
    """What guidance leads away from; empty: the empty prompt, or no class."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images made at once. Their noise does not depend on it."""
    resize: bool = False
    """Images are resized to the task's size and channels; else a model of another size is refused."""

    def __post_init__(self) -> None:
        if self.negative and self.guidance == 1:
            raise GenfedError(f"foundation.negative = {self.negative!r}: with guidance = 1 nothing leads away from it")

    def load(self, task: Task, device: torch.device, precision: Literal["float32", "bfloat16"]) -> FoundationModel:
        """Opens the model for a task; opened before and unchanged since, the same one is given.

        Raises:
            GenfedError: it cannot be opened, makes no images of the task's shape, or takes fewer steps.
        """
        model = _opened(self.model, _stamp(self.model), task.classes, device, precision)
        if task.kind != "image":
            raise GenfedError(f"foundation {self.model}: it makes images; the task's examples are of kind {task.kind}")
        shapes = model.image_shape, task.shape
        if shapes[0] != shapes[1] and not self.resize:
            raise GenfedError(
                f"foundation {self.model}: its images are {_shape(shapes[0])}, the task's {_shape(shapes[1])}; set "
                "size and channels of the data, or resize = true of the foundation"
            )
        if any(shape[0] not in (1, 3) for shape in shapes) and shapes[0][0] != shapes[1][0]:
            raise GenfedError(f"foundation {self.model}: {shapes[0][0]} channels cannot be made {shapes[1][0]}")
        if model.kind == "class" and set(task.classes) - set(model.conditions.names):  # type: ignore[attr-defined]
            model.condition(task.classes)  # which names the class that it lacks
        model.sampler(self.steps, self.scheduler)
        model.unconditional(1, self.negative)
        return model

    def generate(
        self, model: FoundationModel, condition: Tensor, rngs: Rngs, further: Sequence[Further] = ()
    ) -> Tensor:
        """`model.generate` as the settings have it."""
        return model.generate(
            condition,
            rngs,
            steps=self.steps,
            guidance=self.guidance,
            scheduler=self.scheduler,
            negative=self.negative,
            further=further,
            batch_size=self.batch_size,
        )


@functools.lru_cache(maxsize=1)
def _opened(
    name: str,
    stamp: int,
    classes: tuple[str, ...],
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
) -> FoundationModel:
    return load_foundation(name, classes=classes, device=device, precision=precision)


def _stamp(name: str) -> int:
    """Another one when the directory has been written anew."""
    folder = SHIPPED if name == "shipped" else Path(name)
    files = sorted((*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*/*.safetensors")))
    return hash(tuple((str(file), file.stat().st_mtime_ns) for file in files))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
