"""Training of a small Stable Diffusion on public images with prompts.

First the autoencoder (Kingma, Welling, arXiv 1312.6114) and, by contrast, the text encoder (CLIP: Radford et al.,
arXiv 2103.00020); then, with both frozen, the U-Net on latents (Rombach et al., arXiv 2112.10752), with a
randomly dropped prompt for guidance (Ho, Salimans, arXiv 2207.12598). The result is the exponential moving average of
the weights.
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
"""Steps over which the reported loss is averaged."""
CONTRAST = 128
"""Images and prompts in a batch of the text encoder."""
StageName = Literal["autoencoder", "text", "diffusion"]


@settings
class Optimization:
    """Training of the small model. All random numbers come from the seed."""

    autoencoder_steps: Annotated[int, Field(ge=1)] = 2000
    """Steps of the autoencoder."""
    text_steps: Annotated[int, Field(ge=1)] = 2000
    """Steps of the text encoder, which learns to match prompts and images in batches of 128."""
    steps: Annotated[int, Field(ge=1)] = 10_000
    """Steps of the U-Net, after both."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step of autoencoder and U-Net, drawn with replacement."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW. It rises over the first hundredth of a stage's steps and falls to 0 as a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    kl: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the autoencoder's KL divergence (mean over its numbers) beside the mean squared error."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that the prompt of an image is dropped."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of weights, which is the result. 0: the last weights."""
    weights: Literal["float16", "float32"] = "float16"
    """Type of the weights on disk."""
    save_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""


@dataclass(frozen=True)
class PromptedImages:
    """Public images and their prompts."""

    x: Tensor
    """Images, uint8 [n, C, H, W]."""
    prompts: tuple[str, ...]
    """All prompts, each once."""
    which: Tensor
    """Indices of the prompts of each image, int64 [n, k]. In each step one of them is drawn."""


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of the training."""

    step: int
    steps: int
    stage: StageName
    loss: float
    """Mean over the last EVERY steps."""


@dataclass(frozen=True)
class PretrainingCheckpoint:
    """All that the next step depends on."""

    step: int
    """Steps done, over all stages."""
    weights: Weights
    """Weights of all networks."""
    averages: Weights
    """Moving averages of the weights that the stage trains."""
    moments: OptimizerState
    losses: tuple[float, ...]
    """Mean losses, one per EVERY steps."""
    pending: float
    """Sum of the losses since then."""
    examples: str
    """Digest of images and prompts."""


@dataclass(frozen=True)
class Stage:
    """One stage of the training."""

    name: StageName
    start: int
    """First step, counted over all stages."""
    steps: int
    trained: nn.ModuleList
    """Networks whose weights the stage trains."""
    loss: Callable[[Tensor, torch.Generator], Tensor]
    """(rows of a batch [n], draws) → scalar."""

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.start + self.steps

    def learning_rate(self, step: int, peak: float) -> float:
        """Returns the learning rate of a step: up to the peak over 1/100 of the steps, then down to 0 as a cosine."""
        done = (step - self.start) / self.steps
        return peak * min(1.0, 100 * (done + 1 / self.steps)) * (1 + math.cos(math.pi * done)) / 2

    def decay(self, step: int, most: float) -> float:
        """Returns the decay of the average after a step: at most `most`, and less in the first steps."""
        done = step - self.start
        return min(most, (1 + done) / (10 + done))


def pretrain(
    examples: PromptedImages,
    model: SmallDiffusion,
    optimisation: Optimization,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    precision: str = "float32",
    notify: Callable[[TrainingProgress], None] = lambda progress: None,
) -> tuple[float, ...]:
    """Trains the model and writes a directory that genfed and diffusers can open. Resumes from a checkpoint in
    `folder`, with the same result to the bit.

    Args:
        examples: images with prompts.
        model: settings of the networks.
        optimisation: settings of the training.
        folder: directory of the checkpoint and of the result.
        seed: seed of all random numbers.
        device: where to train.
        precision: "float32", or "bfloat16" for mixed precision.
        notify: called every EVERY steps.

    Returns:
        The losses, a mean per EVERY steps.

    Raises:
        GenfedError: the images do not fit the model, a prompt is too long, the checkpoint is of other examples, or the
            loss is not finite.
        RecordError: the checkpoint is damaged.
    """
    shape = tuple(examples.x.shape[1:])
    with seeded(stream(seed, "pretrain", "weights")):
        parts = new_parts(model, shape, examples.prompts)
        encoder = ImageEncoder(shape[0], model.text_width)
    networks = _join_networks(parts, encoder).to(device)
    file, which = folder / CHECKPOINT, digest(pack(examples))
    before = _read_checkpoint(file, which)
    if before is not None:
        networks.load_state_dict(before.weights)
    training = _Training(parts, networks, examples, which, optimisation, file, seed, device, precision, notify, before)
    training.run_all()
    networks.cpu()
    write_parts(parts, folder, optimisation.weights)
    return training.losses


def _join_networks(parts: SmallDiffusionParts, encoder: "ImageEncoder") -> nn.ModuleDict:
    """Returns all networks that are trained, by name."""
    networks = nn.ModuleDict({"unet": parts.unet, "text_encoder": parts.text_encoder, "eye": encoder})
    if parts.vae is not None:
        networks["vae"] = parts.vae
    return networks


def _read_checkpoint(file: Path, examples: str) -> PretrainingCheckpoint | None:
    """Reads the checkpoint of a training on the examples with this digest. None: there is no file."""
    if not file.exists():
        return None
    checkpoint = load(PretrainingCheckpoint, file)
    if checkpoint.examples != examples:
        raise GenfedError(f"{file} was trained on other images or prompts; begin anew with --fresh")
    return checkpoint


class ImageEncoder(nn.Module):
    """Images [n, C, H, W] → embeddings [n, width] that the text encoder should match, and the log of CLIP's inverse
    temperature. It is needed for the training alone.
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
        embeddings: Tensor = self.layers(x)
        return embeddings


class _Training:
    """The state of the training, over all stages."""

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
        before: PretrainingCheckpoint | None,
    ) -> None:
        self.parts, self.networks, self.optimisation = parts, networks, optimisation
        self.examples, self.name = examples, name
        self.file, self.seed, self.device, self.precision, self.notify = file, seed, device, precision, notify
        self.x = examples.x.to(device)
        self.tokens = tokenize(parts.tokenizer, ("", *examples.prompts)).to(device)
        self.levels = parts.scheduler.alphas_cumprod.to(device)
        self.latents: Tensor | None = None
        self.embedded: Tensor | None = None
        self.before, self.losses, self.pending = before, tuple[float, ...](), 0.0

    def run_all(self) -> None:
        """Runs the stages one after another; images and prompts are encoded as soon as their encoder is trained."""
        parts, settings, start = self.parts, self.optimisation, 0
        if parts.vae is not None:
            steps = settings.autoencoder_steps
            self._run(Stage("autoencoder", start, steps, nn.ModuleList([parts.vae]), self.autoencoder_loss))
            self._encode_images()
            start += steps
        trained = nn.ModuleList([parts.text_encoder, self.networks["eye"]])
        self._run(Stage("text", start, settings.text_steps, trained, self.text_loss))
        self._encode_prompts()
        start += settings.text_steps
        self._run(Stage("diffusion", start, settings.steps, nn.ModuleList([parts.unet]), self.diffusion_loss))

    def _run(self, stage: Stage) -> None:
        """Runs a stage from its beginning or from the checkpoint, or skips it; leaves the average of the weights."""
        if self.before is None or self.before.step < stage.end:
            self._train(stage)
        stage.trained.requires_grad_(False)

    def _train(self, stage: Stage) -> None:
        settings, parameters = self.optimisation, list(stage.trained.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        averages = [p.detach().clone() for p in parameters]
        at = self._resume(stage, optimizer, averages)
        for step in range(at, stage.end):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(step, settings.learning_rate)
            self.pending += self._step(stage, step, parameters, optimizer)
            with torch.no_grad():
                decay = stage.decay(step, settings.average)
                for average, parameter in zip(averages, parameters, strict=True):
                    average.lerp_(parameter, 1 - decay)
            done = step + 1 - stage.start
            if done % EVERY == 0:
                self._report(stage, step + 1)
            if done % settings.save_every == 0 and step + 1 < stage.end:
                self._save(step + 1, optimizer, averages)
        self._check(self.pending, stage.end)  # of the steps since the last report
        with torch.no_grad():
            for parameter, average in zip(parameters, averages, strict=True):
                parameter.copy_(average)

    def _resume(self, stage: Stage, optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]) -> int:
        """Loads the checkpoint where it was written in this stage. Returns the first step to run."""
        self.pending = 0.0
        before = self.before
        if before is None or before.step <= stage.start:
            return stage.start
        load_optimizer_state(optimizer, before.moments)
        for i, average in enumerate(averages):
            average.copy_(before.averages[str(i)])
        self.losses, self.pending = before.losses, before.pending
        return before.step

    def _step(self, stage: Stage, step: int, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> float:
        """Runs one step of the optimizer and returns the loss."""
        rng = stream(self.seed, "pretrain", step)
        rows = torch.randint(len(self.x), (self.optimisation.batch_size,), generator=rng)
        with mixed_precision(self.device, self.precision):
            loss = stage.loss(rows, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    def _report(self, stage: Stage, step: int) -> None:
        """Takes the mean loss of the last EVERY steps into `losses` and reports it."""
        self.losses, self.pending = (*self.losses, self.pending / EVERY), 0.0
        self._check(self.losses[-1], step)
        settings = self.optimisation
        steps = settings.text_steps + settings.steps
        steps += settings.autoencoder_steps if self.parts.vae is not None else 0
        self.notify(TrainingProgress(step, steps, stage.name, self.losses[-1]))

    def autoencoder_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the mean squared error of the image plus the weighted KL divergence from N(0, 1), both means over
        numbers.
        """
        x = normalize_pixels(self.x[rows.to(self.device)])
        found = self.parts.vae.encode(x).latent_dist
        noise = torch.randn(found.mean.shape, generator=rng).to(self.device)
        kl = 0.5 * (found.mean.square() + found.var - 1 - found.logvar).mean()
        decoded = self.parts.vae.decode(found.mean + found.std * noise).sample
        loss: Tensor = F.mse_loss(decoded.float(), x) + self.optimisation.kl * kl.float()
        return loss

    def text_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Returns CLIP's loss (its Figure 3): cross-entropy of matching images to prompts and prompts to images, by the
        cosine of the image's embedding and the text encoder's output at the end of the prompt. Images with the same
        prompt share the target.
        """
        rows = torch.randint(len(self.x), (CONTRAST,), generator=rng)
        prompts = self._prompts(rows, rng)
        texts = self.parts.text_encoder(self.tokens[prompts.to(self.device)])[0][:, -1]
        encoder = self.networks["eye"]
        images = encoder(normalize_pixels(self.x[rows.to(self.device)]))
        cosines = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        logits = cosines * cast(ImageEncoder, encoder).sharpness.exp().clamp(max=100)
        same = (prompts[:, None] == prompts).float().to(self.device)
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def diffusion_loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the mean squared error of the U-Net's output: v, ε or x0."""
        z = self._encoded(rows)
        t = torch.randint(len(self.levels), (len(z),), generator=rng).to(self.device)
        eps = torch.randn(z.shape, generator=rng).to(self.device)
        level = self.levels[t].view(-1, 1, 1, 1)
        signal, noise = level.sqrt(), (1 - level).sqrt()
        hidden = torch.rand(len(z), generator=rng) < self.optimisation.drop
        prompts = self._prompts(rows, rng).masked_fill(hidden, 0)  # 0: the empty prompt
        assert self.embedded is not None
        embedded = self.embedded[prompts.to(self.device)]
        output = self.parts.unet(signal * z + noise * eps, t, encoder_hidden_states=embedded).sample.float()
        kind = self.parts.scheduler.config.prediction_type
        target = {"epsilon": eps, "sample": z}.get(kind, signal * eps - noise * z)
        return F.mse_loss(output, target)

    def _encode_images(self) -> None:
        """Encodes all images once, and scales latents to variance 1 as in Stable Diffusion."""
        with torch.no_grad():
            means = [self.parts.vae.encode(normalize_pixels(x)).latent_dist.mode() for x in torch.split(self.x, 200)]
        latents = torch.cat(means)
        factor = 1 / float(latents.std())
        self.parts.vae.register_to_config(scaling_factor=factor)
        self.latents = latents * factor

    def _encode_prompts(self) -> None:
        """Encodes all prompts once."""
        with torch.no_grad():
            self.embedded = torch.cat([self.parts.text_encoder(some)[0] for some in torch.split(self.tokens, 200)])

    def _prompts(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the index of one prompt of each image, counted from 1, on the CPU."""
        which = torch.randint(self.examples.which.shape[1], (len(rows),), generator=rng)
        return 1 + self.examples.which[rows, which]

    def _encoded(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return normalize_pixels(self.x[rows]) if self.latents is None else self.latents[rows]

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise GenfedError(f"the loss is {loss} by step {step}: lower training.learning_rate")

    def _save(self, step: int, optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]) -> None:
        weights = {name: tensor.cpu() for name, tensor in self.networks.state_dict().items()}
        numbered = {str(i): average.cpu() for i, average in enumerate(averages)}
        moments = optimizer_state(optimizer)
        save(PretrainingCheckpoint(step, weights, numbered, moments, self.losses, self.pending, self.name), self.file)
