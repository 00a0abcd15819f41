"""Classifier guidance of a frozen diffusion model. Yang, Su, Li, Xue, arXiv 2311.08870 (FedLMG), ICML 2025."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
"""Number of a network's parameters above which memory is saved at the cost of time."""


@settings
class ClassifierGuidance:
    """Settings of the guidance by classifiers."""

    statistics: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the batch-norm loss (λ); 0: guidance by the class only."""
    step: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Factor of the gradient in a step; 0: no guidance."""
    noise_edits: Annotated[int, Field(ge=0)] = 10
    """Number of gradient steps on the initial noise (M)."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the denoising steps before guidance begins; the paper's is 0."""
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the denoising steps after which guidance ends; the paper's is 1. Near the end, invisible changes can
    fool classifiers."""
    augmented_views: Annotated[int, Field(ge=0)] = 0
    """Number of randomly shifted views of an image over which the loss is averaged; 0, the paper's: the image itself.
    Averaging over shifted views suppresses adversarial noise."""

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise GenfedError(f"classifier_guidance.begin = {self.begin} is after classifier_guidance.end = {self.end}")


class Teacher(nn.Module):
    """A frozen classifier that also compares statistics: images [n, C, H, W] → logits [n, classes] and distances [n].

    The distance is that between an image's own statistics and those stored in the BatchNorm layers:
    Σ_l ‖σ²_l(x) − σ²_l‖ + ‖μ_l(x) − μ_l‖, over a layer's input, with the biased variance. Layers whose input has no
    positions (a vector per image) do not count; without any other layer it is 0.
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
    """Generates one image per row of the condition, float32 [n, *shape] in [−1, 1] on the CPU.

    The loss is summed over images, so an image does not depend on the others in its batch.

    Args:
        model: The diffusion model.
        sampling: How images are sampled.
        guidance: How classifiers guide the sampling.
        teachers: The classifier of each client.
        condition: The condition of each image, [n, …].
        labels: The class of each image, int64 [n].
        clients: The client of each image, whose teacher guides it, int64 [n].
        rngs: The generator of each image.
        shape: The shape (C, H, W) of the images.
    """
    w = sampling.guidance_scale
    none = model.encode_unconditional(len(rngs), sampling.negative_prompt) if w != 1 else condition

    def predict(z: Tensor, t: int) -> Tensor:
        return model.predict_guided(z, t, condition, none, w)

    guide = _Guide(model, predict, guidance, teachers, labels.to(model.device), clients, rngs, shape)
    checkpoint_gradients(model)
    sampler, z = model.new_sampler(sampling.steps, sampling.scheduler), model.draw_noise(rngs)
    if guidance.step > 0:
        z = guide.edit_noise(z, sampler.timesteps[0])
    for i, t in enumerate(sampler.timesteps):
        if guidance.step > 0 and guidance.begin <= i / len(sampler.timesteps) < guidance.end:
            z = guide.move(z, t)
        with torch.no_grad():
            z = sampler.step(predict(z, t), t, z, rngs)
    with torch.no_grad():
        return resize_to(model.decode(z), shape).clamp(-1, 1).cpu()


@dataclass(frozen=True)
class _Guide:
    """The guidance of one batch of images."""

    model: FoundationModel
    predict: Callable[[Tensor, int], Tensor]
    """The network's output for z at step t."""
    guidance: ClassifierGuidance
    teachers: Mapping[int, Teacher]
    labels: Tensor
    clients: Tensor
    rngs: Rngs
    shape: tuple[int, ...]

    def edit_noise(self, z: Tensor, t: int) -> Tensor:
        """Moves the initial noise z at the first step t, once per edit."""
        for _ in range(self.guidance.noise_edits):
            edited = self.move(z, t)
            if torch.equal(edited, z):
                _warn(self.model.name, t)
                if (
                    not self.guidance.augmented_views
                ):  # views draw, and an image's draws must not depend on the rest of the batch
                    break
            z = edited
        return z

    def move(self, z: Tensor, t: int) -> Tensor:
        """Moves z at step t against the gradient of the loss."""
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(z, t), z)
        moved: Tensor = (z - self.guidance.step * gradient).detach()
        return moved

    def loss(self, z: Tensor, t: int) -> Tensor:
        """Returns the teachers' loss for z at step t: a mean over views of a sum over images."""
        clean = self.model.recover_clean(self.predict(z, t), z, t)
        images = resize_to(self.model.decode(clean), self.shape)
        views = [shift_images(images, self.rngs) for _ in range(self.guidance.augmented_views)] or [images]
        present = torch.unique(self.clients).tolist()
        return torch.stack([self._teacher_loss(view, client) for view in views for client in present]).sum() / len(
            views
        )

    def _teacher_loss(self, images: Tensor, client: int) -> Tensor:
        rows = torch.nonzero(self.clients == client).flatten().to(self.model.device)
        with mixed_precision(self.model.device, self.model.precision):
            logits, gap = self.teachers[client](images[rows])
        losses: Tensor = F.cross_entropy(logits, self.labels[rows], reduction="none") + self.guidance.statistics * gap
        return losses.sum()


def checkpoint_gradients(model: FoundationModel) -> None:
    """Turns gradient checkpointing on in networks of Stable Diffusion's size: a third more time, but several times as
    many images at once.
    """
    for part in (model.network, getattr(model.space, "vae", None)):
        if part is not None and sum(weight.numel() for weight in part.parameters()) > LARGE:
            part.enable_gradient_checkpointing()  # type: ignore[operator]


@functools.cache
def _warn(name: str, t: int) -> None:
    """Logs the warning once per model, not with every batch."""
    log.warning(
        "%s: the initial noise cannot be edited: at the first step (t = %d) images are clipped to [−1, 1] everywhere, "
        "where gradients are 0; set edits = 0, or use a model that keeps some of the image there",
        name,
        t,
    )


def check_sampler(model: FoundationModel, sampling: Foundation) -> None:
    """Checks that the sampler does not depend on earlier steps, which guidance changes.

    Raises:
        GenfedError: the sampler is neither DDPM nor DDIM.
    """
    kind = type(model.new_sampler(sampling.steps, sampling.scheduler).scheduler).__name__
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise GenfedError(
            f'foundation.scheduler = "{sampling.scheduler}": a {kind} remembers earlier steps, which guidance has '
            "changed since; ddpm and ddim are allowed"
        )


def shift_images(images: Tensor, rngs: Rngs) -> Tensor:
    """Shifts each image of [n, C, H, W] by up to an eighth of its sides, drawn from its own generator; the edges are
    repeated.
    """
    most = [max(1, side // 8) for side in images.shape[2:]]
    padded = F.pad(images, (most[1], most[1], most[0], most[0]), mode="replicate")
    shifted = []
    for image, rng in zip(padded, rngs, strict=True):
        down, right = (int(torch.randint(2 * m + 1, (), generator=rng)) for m in most)
        shifted.append(image[:, down : down + images.shape[2], right : right + images.shape[3]])
    return torch.stack(shifted)
