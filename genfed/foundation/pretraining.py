"""Trains a Stable Diffusion in miniature on public images with prompts.

First the autoencoder (Kingma, Welling, arXiv 1312.6114) and, by contrast, the text encoder (CLIP: Radford et al.,
arXiv 2103.00020); then, with both frozen, the U-Net on latents (Rombach et al., arXiv 2112.10752), the prompt left out
now and then for guidance (Ho, Salimans, arXiv 2207.12598). What is kept is the exponential moving average of weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.record import digest, load, pack, save
from genfed.core.rng import seeded, stream
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.foundation.small_model import SmallDiffusion, SmallDiffusionParts, new_parts, tokenize, write_parts
from genfed.training.fit import mixed_precision
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import normalize_pixels

CHECKPOINT = "pretraining.safetensors"
EVERY = 100
"""Steps whose mean loss is told and kept."""
CONTRAST = 128
"""Images and prompts that are told from one another at once."""
Stage = Literal["autoencoder", "text", "diffusion"]


@settings
class Optimization:
    """How the miniature is trained. All draws come from the seed."""

    autoencoder_steps: Annotated[int, Field(ge=1)] = 2000
    """Of the autoencoder."""
    text_steps: Annotated[int, Field(ge=1)] = 2000
    """Of the text encoder, which learns to tell which prompt is whose image's, in batches of 128."""
    steps: Annotated[int, Field(ge=1)] = 10_000
    """Of the U-Net, after both."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step of autoencoder and U-Net, drawn with replacement."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW; it rises over the first hundredth of each stage's steps and falls to 0 as a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Of AdamW."""
    kl: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the autoencoder's KL divergence (mean over its numbers) beside the mean squared error."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Chance that an image's prompt is left out."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of weights that is kept in the end; 0: the last weights."""
    weights: Literal["float16", "float32"] = "float16"
    """Their type on disk."""
    save_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""


@dataclass(frozen=True)
class PromptedImages:
    """Public images and what they may be asked for with."""

    x: Tensor
    """uint8 [n, C, H, W]."""
    prompts: tuple[str, ...]
    """All prompts, each once."""
    which: Tensor
    """int64 [n, k]: the numbers of an image's prompts, one of which is drawn in each step."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far it is."""

    step: int
    steps: int
    stage: Stage
    loss: float
    """Mean over the last steps that were told together."""


@dataclass(frozen=True)
class PretrainingCheckpoint:
    """All that the next step depends on."""

    step: int
    """Of all stages together."""
    weights: Weights
    """Of all networks."""
    averages: Weights
    """Of those that the stage trains."""
    moments: OptimizerState
    losses: tuple[float, ...]
    """Mean of each EVERY steps."""
    pending: float
    """Sum of those since."""
    examples: str
    """Names the images and prompts."""


def pretrain(
    examples: PromptedImages,
    model: SmallDiffusion,
    optimisation: Optimization,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    precision: str = "float32",
    notify: Callable[[TrainingProgress], None] = lambda told: None,
) -> tuple[float, ...]:
    """Trains and writes a directory that genfed and diffusers open; goes on where a checkpoint in `folder` stopped, to
    the same bits. Returns the losses, a mean per EVERY steps.

    Raises:
        GenfedError: the images do not suit the model, a prompt is too long, the checkpoint is of other examples, or the
            loss is no longer a number.
        RecordError: a damaged checkpoint.
    """
    shape = tuple(examples.x.shape[1:])
    with seeded(stream(seed, "pretrain", "weights")):
        parts = new_parts(model, shape, examples.prompts)
        eye = ImageEncoder(shape[0], model.text_width)
    networks = nn.ModuleDict({"unet": parts.unet, "text_encoder": parts.text_encoder, "eye": eye})
    if parts.vae is not None:
        networks["vae"] = parts.vae
    networks.to(device)
    file = folder / CHECKPOINT
    before = load(PretrainingCheckpoint, file) if file.exists() else None
    which = digest(pack(examples))
    if before is not None:
        if before.examples != which:
            raise GenfedError(f"{file} was trained on other images or prompts; begin anew with --fresh")
        networks.load_state_dict(before.weights)
    training = _Training(parts, networks, examples, which, optimisation, file, seed, device, precision, notify)
    if parts.vae is not None:
        training.run("autoencoder", [parts.vae], optimisation.autoencoder_steps, before, training.autoencoder_loss)
        training.enter_latent_space()
    training.run("text", [parts.text_encoder, eye], optimisation.text_steps, before, training.text_loss)
    training.embed()
    training.run("diffusion", [parts.unet], optimisation.steps, before, training.diffusion_loss)
    for network in networks.values():
        network.cpu()
    write_parts(parts, folder, optimisation.weights)
    return training.losses


class ImageEncoder(nn.Module):
    """Images [n, C, H, W] → what the text encoder should say of them [n, width]; and the logarithm of how sharply it
    should tell them apart. It is not kept.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
            layers += [nn.AvgPool2d(2, ceil_mode=True)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, width))
        self.sharpness = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP's

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.layers(x)
        return seen


class _Training:
    """The stages, one after another."""

    def __init__(
        self,
        parts: SmallDiffusionParts,
        networks: nn.ModuleDict,
        examples: PromptedImages,
        name: str,
        optimisation: Optimization,
        file: Path,
        seed: int,
        device: torch.device,
        precision: str,
        notify: Callable[[TrainingProgress], None],
    ) -> None:
        self.parts, self.networks, self.optimisation = parts, networks, optimisation
        self.examples, self.name = examples, name
        self.file, self.seed, self.device, self.precision, self.notify = file, seed, device, precision, notify
        self.x = examples.x.to(device)
        self.tokens = tokenize(parts.tokenizer, ("", *examples.prompts)).to(device)
        self.levels = parts.scheduler.alphas_cumprod.to(device)
        self.latents: Tensor | None = None
        self.embedded: Tensor | None = None
        self.start, self.losses = 0, tuple[float, ...]()

    def run(
        self,
        stage: Stage,
        trained: Sequence[nn.Module],
        steps: int,
        before: PretrainingCheckpoint | None,
        loss_of: Callable[[Tensor, torch.Generator], Tensor],
    ) -> None:
        """The next stage, from its beginning or where the checkpoint stopped; leaves the average of the weights."""
        settings, pending, start = self.optimisation, 0.0, self.start
        self.start += steps
        if before is not None and before.step >= self.start:
            nn.ModuleList(trained).requires_grad_(False)
            return
        parameters: list[Tensor] = list(nn.ModuleList(trained).parameters())
        optimiser = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        averages = [p.detach().clone() for p in parameters]
        at, losses = start, self.losses
        if before is not None and before.step > start:
            load_optimizer_state(optimiser, before.moments)
            for i, average in enumerate(averages):
                average.copy_(before.averages[str(i)])
            at, losses, pending = before.step, before.losses, before.pending
        everything = settings.text_steps + settings.steps
        everything += settings.autoencoder_steps if self.parts.vae is not None else 0
        for step in range(at, start + steps):
            done = (step - start) / steps
            rate = settings.learning_rate * min(1.0, 100 * (done + 1 / steps)) * (1 + math.cos(math.pi * done)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate
            rng = stream(self.seed, "pretrain", step)
            rows = torch.randint(len(self.x), (settings.batch_size,), generator=rng)
            with mixed_precision(self.device, self.precision):
                loss = loss_of(rows, rng)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            decay = min(settings.average, (1 + step - start) / (10 + step - start))
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - decay)
            pending += float(loss.detach())
            if (step + 1 - start) % EVERY == 0:
                losses, pending = (*losses, pending / EVERY), 0.0
                self._check(losses[-1], step + 1)
                self.notify(TrainingProgress(step + 1, everything, stage, losses[-1]))
            if (step + 1 - start) % settings.save_every == 0 and step + 1 < start + steps:
                self._save(step + 1, optimiser, averages, losses, pending)
        self._check(pending, start + steps)  # of the steps since
        with torch.no_grad():
            for parameter, average in zip(parameters, averages, strict=True):
                parameter.copy_(average)
        nn.ModuleList(trained).requires_grad_(False)
        self.losses = losses

    def autoencoder_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Mean squared error of the image plus the weighted KL divergence from N(0, 1), both means over numbers."""
        x = normalize_pixels(self.x[rows.to(self.device)])
        found = self.parts.vae.encode(x).latent_dist
        noise = torch.randn(found.mean.shape, generator=rng).to(self.device)
        kl = 0.5 * (found.mean.square() + found.var - 1 - found.logvar).mean()
        decoded = self.parts.vae.decode(found.mean + found.std * noise).sample
        loss: Tensor = F.mse_loss(decoded.float(), x) + self.optimisation.kl * kl.float()
        return loss

    def text_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Cross-entropy of whose prompt an image has and whose image a prompt has, in CLIP's way (its Figure 3): what
        the encoder says at the end of a prompt, and what the eye says of an image, by the cosine. Images of one prompt
        share what is asked for.
        """
        rows = torch.randint(len(self.x), (CONTRAST,), generator=rng)
        prompts = self._prompts(rows, rng)
        said = self.parts.text_encoder(self.tokens[prompts.to(self.device)])[0][:, -1]
        eye = self.networks["eye"]
        seen = eye(normalize_pixels(self.x[rows.to(self.device)]))
        cosines = F.normalize(seen.float(), dim=1) @ F.normalize(said.float(), dim=1).T
        logits = cosines * cast(ImageEncoder, eye).sharpness.exp().clamp(max=100)
        same = (prompts[:, None] == prompts).float().to(self.device)
        asked = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, asked) + F.cross_entropy(logits.T, asked)) / 2

    def diffusion_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Mean squared error of what the U-Net gives: v, ε or x0."""
        z = self._encoded(rows)
        t = torch.randint(len(self.levels), (len(z),), generator=rng).to(self.device)
        eps = torch.randn(z.shape, generator=rng).to(self.device)
        kept = self.levels[t].view(-1, 1, 1, 1)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        hidden = torch.rand(len(z), generator=rng) < self.optimisation.drop
        prompts = self._prompts(rows, rng).masked_fill(hidden, 0)  # 0: the empty prompt
        assert self.embedded is not None
        embedded = self.embedded[prompts.to(self.device)]
        output = self.parts.unet(signal * z + noise * eps, t, encoder_hidden_states=embedded).sample.float()
        kind = self.parts.scheduler.config.prediction_type
        target = {"epsilon": eps, "sample": z}.get(kind, signal * eps - noise * z)
        return F.mse_loss(output, target)

    def enter_latent_space(self) -> None:
        """Encodes all images once, and scales latents to variance 1, as Stable Diffusion has them."""
        with torch.no_grad():
            means = [self.parts.vae.encode(normalize_pixels(x)).latent_dist.mode() for x in torch.split(self.x, 200)]
        latents = torch.cat(means)
        factor = 1 / float(latents.std())
        self.parts.vae.register_to_config(scaling_factor=factor)
        self.latents = latents * factor

    def embed(self) -> None:
        """Encodes all prompts once."""
        with torch.no_grad():
            self.embedded = torch.cat([self.parts.text_encoder(some)[0] for some in torch.split(self.tokens, 200)])

    def _prompts(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """One of each image's prompts, counted from 1, on the CPU."""
        which = torch.randint(self.examples.which.shape[1], (len(rows),), generator=rng)
        return 1 + self.examples.which[rows, which]

    def _encoded(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return normalize_pixels(self.x[rows]) if self.latents is None else self.latents[rows]

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise GenfedError(f"the loss is {loss} by step {step}: lower training.learning_rate")

    def _save(
        self,
        step: int,
        optimiser: torch.optim.Optimizer,
        averages: Sequence[Tensor],
        losses: tuple[float, ...],
        pending: float,
    ) -> None:
        weights = {name: tensor.cpu() for name, tensor in self.networks.state_dict().items()}
        kept = {str(i): average.cpu() for i, average in enumerate(averages)}
        save(
            PretrainingCheckpoint(step, weights, kept, optimizer_state(optimiser), losses, pending, self.name),
            self.file,
        )
