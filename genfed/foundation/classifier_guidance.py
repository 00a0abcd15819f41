"""Steering a frozen diffusion model by classifiers. Yang, Su, Li, Xue, arXiv 2311.08870 (FedLMG), ICML 2025."""

import functools
import logging
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.foundation.images import resize_to
from genfed.foundation.model import FoundationModel
from genfed.foundation.schedulers import Rngs
from genfed.foundation.settings import Foundation
from genfed.training.fit import mixed_precision

log = logging.getLogger(__name__)
LARGE = 50_000_000
"""Weights of a network from which on memory is dearer than time."""


@settings
class ClassifierGuidance:
    """How strongly classifiers steer."""

    statistics: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the batch-norm loss (λ); 0: classes alone steer."""
    step: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Length of a step along the gradient; 0: nothing is steered."""
    edits: Annotated[int, Field(ge=0)] = 10
    """Steps by which the initial noise is edited (M)."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the denoising after which it is steered; the paper's is 0."""
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share after which it is left to itself; the paper's is 1. Towards the end changes that nobody sees can fool
    classifiers."""
    views: Annotated[int, Field(ge=0)] = 0
    """The loss is the mean over so many randomly shifted views of an image; 0, the paper's: over the image itself. What
    fools a classifier seldom does so from everywhere."""

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise GenfedError(f"guidance.begin = {self.begin} is after guidance.end = {self.end}")


class Teacher(nn.Module):
    """A frozen classifier: images [n, C, H, W] → its logits [n, classes] and how far each image's own statistics are
    from those that its BatchNorm layers keep [n]: Σ_l ‖σ²_l(x) − σ²_l‖ + ‖μ_l(x) − μ_l‖, over a layer's input, the
    variance biased. A layer whose input has no positions (a vector per image) does not count; without any it is 0.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._gaps: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.register_forward_pre_hook(self._compare)

    def _compare(self, norm: Any, inputs: tuple[Tensor]) -> None:
        if inputs[0].ndim > 2:
            x = inputs[0].float().flatten(2)
            self._gaps.append((x.var(2, correction=0) - norm.running_var).norm(dim=1))
            self._gaps.append((x.mean(2) - norm.running_mean).norm(dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._gaps = []
        logits: Tensor = self.model(x).float()
        return logits, torch.stack([logits.new_zeros(len(x)), *self._gaps]).sum(0)


def generate_guided(
    model: FoundationModel,
    sampling: Foundation,
    guidance: ClassifierGuidance,
    teachers: Mapping[int, Teacher],
    condition: Tensor,
    labels: Tensor,
    clients: Tensor,
    rngs: Rngs,
    shape: tuple[int, ...],
) -> Tensor:
    """One image per row of the condition, float32 [n, *shape] in [−1, 1] on the CPU: of the class labels[i], as the
    teacher of the client clients[i] knows it. The loss is summed over images, so that each is steered as if alone,
    whoever else is in the batch; images of several clients go through the U-Net together.
    """
    own = {
        client: torch.nonzero(clients == client).flatten().to(model.device) for client in torch.unique(clients).tolist()
    }
    labels, w = labels.to(model.device), sampling.guidance
    none = model.unconditional(len(rngs), sampling.negative) if w != 1 else condition

    def loss(z: Tensor, t: int) -> Tensor:
        images = resize_to(model.decode(model.clean(model.guided(z, t, condition, none, w), z, t)), shape)
        views = [shift_images(images, rngs) for _ in range(guidance.views)] or [images]
        losses = [classified(view, rows, client) for view in views for client, rows in own.items()]
        return torch.stack(losses).sum() / len(views)

    def classified(images: Tensor, rows: Tensor, client: int) -> Tensor:
        with mixed_precision(model.device, model.precision):
            logits, gap = teachers[client](images[rows])
        losses: Tensor = F.cross_entropy(logits, labels[rows], reduction="none") + guidance.statistics * gap
        return losses.sum()

    def step(z: Tensor, t: int) -> Tensor:
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z, t), z)
        moved: Tensor = (z - guidance.step * gradient).detach()
        return moved

    checkpoint_gradients(model)
    sampler, z = model.sampler(sampling.steps, sampling.scheduler), model.noise(rngs)
    first, steps = sampler.timesteps[0], len(sampler.timesteps)
    steers = guidance.step > 0
    for _ in range(guidance.edits if steers else 0):
        edited = step(z, first)
        if torch.equal(edited, z):
            _warn(model.name, first)
            if not guidance.views:  # views draw, and an image's draws must not depend on who else is in the batch
                break
        z = edited
    for i, t in enumerate(sampler.timesteps):
        if steers and guidance.begin <= i / steps < guidance.end:
            z = step(z, t)
        with torch.no_grad():
            z = sampler.step(model.guided(z, t, condition, none, w), t, z, rngs)
    with torch.no_grad():
        return resize_to(model.decode(z), shape).clamp(-1, 1).cpu()


def checkpoint_gradients(model: FoundationModel) -> None:
    """Has a network of Stable Diffusion's size compute its inner values twice, where a gradient goes through it, and
    hold few of them: a third more time, and several times as many images at once.
    """
    for part in (model.network, getattr(model.space, "vae", None)):
        if part is not None and sum(weight.numel() for weight in part.parameters()) > LARGE:
            part.enable_gradient_checkpointing()  # type: ignore[operator]


@functools.cache
def _warn(name: str, t: int) -> None:
    """Once for a model, not with every batch."""
    log.warning(
        "%s: the initial noise cannot be edited: at the first step (t = %d) images are cut to [−1, 1] everywhere, "
        "where gradients are 0; set edits = 0, or take a model that keeps some of the image there",
        name,
        t,
    )


def check_sampler(model: FoundationModel, sampling: Foundation) -> None:
    """Refuses a sampler that remembers what it saw before guidance changed it.

    Raises:
        GenfedError: it is neither DDPM nor DDIM.
    """
    kind = type(model.sampler(sampling.steps, sampling.scheduler).scheduler).__name__
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise GenfedError(
            f'foundation.scheduler = "{sampling.scheduler}": a {kind} remembers earlier steps, which guidance has '
            "changed since; ddpm and ddim are allowed"
        )


def shift_images(images: Tensor, rngs: Rngs) -> Tensor:
    """Each image [n, C, H, W] moved by up to an eighth of its sides, drawn from its own generator, edges repeated."""
    most = [max(1, side // 8) for side in images.shape[2:]]
    padded = F.pad(images, (most[1], most[1], most[0], most[0]), mode="replicate")
    moved = []
    for image, rng in zip(padded, rngs, strict=True):
        down, right = (int(torch.randint(2 * m + 1, (), generator=rng)) for m in most)
        moved.append(image[:, down : down + images.shape[2], right : right + images.shape[3]])
    return torch.stack(moved)
