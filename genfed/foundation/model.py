"""A frozen diffusion model and the operations that methods use.

There is one class for three kinds of directory, which differ in their `Space` (latents or pixels) and their
`Conditions` (prompts or classes). Every operation supports gradients with respect to z, condition and images, never
with respect to weights.

A noisy example is z_t = √ᾱ_t·x0 + √(1 − ᾱ_t)·ε, after Ho, Jain, Abbeel (arXiv 2006.11239, Eq. 4). The network predicts
ε, x0 or v = √ᾱ_t·ε − √(1 − ᾱ_t)·x0 (Salimans, Ho, arXiv 2202.00512), depending on the directory.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.foundation.schedulers import Rngs, Sampler, Scheduler, new_sampler
from genfed.training.fit import mixed_precision

Kind = Literal["latent", "pixel", "class"]
Further = tuple[Tensor, float]
"""A further condition, of the same shape [n, …] as the first one, and its own guidance; 0: it has no effect."""


class Space(ABC):
    """The space in which the diffusion takes place."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encodes images in [−1, 1] as z; the mean if the encoder gives a distribution."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Decodes z to images, about in [−1, 1]."""


class Pixels(Space):
    """The space of the images themselves."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Latents(Space):
    """The latent space of one of diffusers' autoencoders, with the scaling factor of its config."""

    vae: Any

    def encode(self, images: Tensor) -> Tensor:
        z: Tensor = (self.vae.encode(images).latent_dist.mode() - self._shift) * self.vae.config.scaling_factor
        return z

    def decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(z / self.vae.config.scaling_factor + self._shift).sample
        return images

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


class Conditions(ABC):
    """Conditions of generated images."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encodes texts, one row per text, on the network's device.

        Raises:
            GenfedError: a text cannot be a condition.
        """

    @abstractmethod
    def encode_none(self, n: int, negative: str) -> Tensor:
        """Returns n rows that mean "no condition", or `negative`, from which guidance leads away."""

    @abstractmethod
    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Returns the network's output.

        Args:
            network: The network.
            z: The noisy examples [n, C, H, W].
            t: The step of each [n].
            condition: The condition of each [n, …].
        """


@dataclass(frozen=True)
class Prompts(Conditions):
    """Prompts of any text, as embeddings [n, tokens, width] of a CLIP text encoder."""

    tokenizer: Any
    encoder: Any

    def encode(self, texts: Sequence[str]) -> Tensor:
        ids, most = [], self.tokenizer.model_max_length
        for text in texts:
            tokens = self.tokenizer(text, verbose=False).input_ids
            if len(tokens) > most:
                raise GenfedError(
                    f"the prompt {text!r} takes {len(tokens) - 2} tokens; the text encoder reads {most - 2} (shorten "
                    "it, or use words that the model was trained with)"
                )
            ids.append(tokens + [self.tokenizer.pad_token_id] * (most - len(tokens)))
        distinct = list(dict.fromkeys(map(tuple, ids)))  # a class's prompt occurs many times
        inputs = torch.tensor(distinct, device=self.encoder.device)
        mask = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            mask = (inputs != self.tokenizer.pad_token_id).long()
        with torch.no_grad():
            embeddings: Tensor = self.encoder(inputs, attention_mask=mask)[0]
        place = {row: i for i, row in enumerate(distinct)}
        return embeddings[[place[tuple(row)] for row in ids]]

    def encode_none(self, n: int, negative: str) -> Tensor:
        return self.encode([negative]).expand(n, -1, -1)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = network(z, t, encoder_hidden_states=condition).sample
        return output


@dataclass(frozen=True)
class Classes(Conditions):
    """Names of classes, as their numbers int64 [n]; the number of classes means "no class"."""

    names: tuple[str, ...]
    device: torch.device

    def encode(self, texts: Sequence[str]) -> Tensor:
        if unknown := [text for text in texts if text not in self.names]:
            raise GenfedError(f"the model has no class {unknown[0]!r}; it has: {', '.join(self.names)}")
        return torch.tensor([self.names.index(text) for text in texts], dtype=torch.int64, device=self.device)

    def encode_none(self, n: int, negative: str) -> Tensor:
        if negative:
            raise GenfedError(
                f"negative = {negative!r}: a class-conditional model takes no negative prompt; leave it unset"
            )
        return torch.full((n,), len(self.names), device=self.device)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = network(z, t, class_labels=condition).sample
        return output


@dataclass(frozen=True)
class FoundationModel:
    """A frozen diffusion model."""

    name: str
    """Name of its directory, for messages."""
    kind: Kind
    network: nn.Module
    """The U-Net."""
    space: Space
    conditions: Conditions
    scheduler: Any
    """The directory's own scheduler, of diffusers; it is never stepped itself."""
    image_shape: tuple[int, int, int]
    """Shape (C, H, W) of a generated image."""
    latent_shape: tuple[int, int, int]
    """Shape (C, H, W) of z; in pixel space that of an image."""
    device: torch.device
    precision: Literal["float32", "bfloat16"]

    def encode_condition(self, texts: Sequence[str]) -> Tensor:
        """Encodes prompts as embeddings float32 [n, tokens, width]; for a class-conditional model, names of classes as
        int64 [n].

        Raises:
            GenfedError: a prompt is too long for the text encoder, or there is no such class.
        """
        return self.conditions.encode(texts)

    def encode_unconditional(self, n: int, negative: str = "") -> Tensor:
        """Returns n rows of the condition from which guidance leads away: the empty prompt or `negative`; for a
        class-conditional model "no class".
        """
        return self.conditions.encode_none(n, negative)

    def draw_noise(self, rngs: Rngs) -> Tensor:
        """Draws z_T float32 [n, *latent_shape], row i only from rngs[i], so its bits do not depend on the batch."""
        return torch.stack([torch.randn(self.latent_shape, generator=rng) for rng in rngs]).to(self.device)

    def predict(self, z: Tensor, t: int | Tensor, condition: Tensor) -> Tensor:
        """Returns the network's raw output (ε, x0 or v), float32 [n, *latent_shape].

        Args:
            z: The noisy examples [n, *latent_shape].
            t: One step for all, or one per row [n].
            condition: The condition [n, …].
        """
        with mixed_precision(self.device, self.precision):
            return self.conditions.predict(self.network, z, self._expand_steps(t, z), condition.to(self.device)).float()

    def predict_guided(
        self,
        z: Tensor,
        t: int | Tensor,
        condition: Tensor,
        none: Tensor,
        guidance: float,
        further: Sequence[Further] = (),
    ) -> Tensor:
        """Returns the raw output with guidance, none + w·(condition − none) (Ho, Salimans, arXiv 2207.12598).

        Each further condition adds its own w'·(further − none). With w = 1 and no further condition there is one
        network call per row, else one for `none` and for each condition.

        Args:
            z: The noisy examples [n, *latent_shape].
            t: One step for all, or one per row [n].
            condition: The condition [n, …].
            none: The result of `encode_unconditional(n)`.
            guidance: The weight w.
            further: Further conditions and their weights.
        """
        further = [(c, w) for c, w in further if w != 0]
        if guidance == 1 and not further:
            return self.predict(z, t, condition)
        conditions = [c.to(self.device) for c in (none, condition, *(c for c, _ in further))]
        steps, m = self._expand_steps(t, z), len(conditions)
        without, *outputs = self.predict(torch.cat([z] * m), torch.cat([steps] * m), torch.cat(conditions)).chunk(m)
        guided = without
        for output, weight in zip(outputs, (guidance, *(w for _, w in further)), strict=True):
            guided = guided + weight * (output - without)
        return guided

    def recover_clean(self, output: Tensor, z: Tensor, t: int | Tensor) -> Tensor:
        """Returns x0 according to the network's output for z_t; infinite if the output is ε and ᾱ_t = 0."""
        signal, noise = self.noise_levels(t, z)
        match self.prediction:
            case "epsilon":
                return (z - noise * output) / signal
            case "v_prediction":
                return signal * z - noise * output
        return output

    def recover_noise(self, output: Tensor, z: Tensor, t: int | Tensor) -> Tensor:
        """Returns ε according to the network's output for z_t."""
        signal, noise = self.noise_levels(t, z)
        match self.prediction:
            case "epsilon":
                return output
            case "v_prediction":
                return noise * z + signal * output
        return (z - signal * output) / noise

    def add_noise(self, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Returns z_t for x0 and ε."""
        signal, noise = self.noise_levels(t, x0)
        return signal * x0 + noise * eps

    def noise_levels(self, t: int | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns √ᾱ_t and √(1 − ᾱ_t), each [n, 1, 1, 1]."""
        alphas = self.scheduler.alphas_cumprod.to(z.device)[self._expand_steps(t, z)].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    @property
    def prediction(self) -> str:
        """Kind of the network's output: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def steps(self) -> int:
        """Number of diffusion steps in training (T)."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def fingerprint(self) -> str:
        """Digest of the first numbers of each weight, of the parts' settings and of the tokenizer's words; a retrained
        model has another one.
        """
        hashed = hashlib.blake2b(digest_size=16)
        vae, encoder = getattr(self.space, "vae", None), getattr(self.conditions, "encoder", None)
        said = [_read_config(part) for part in (self.scheduler, vae, self.network, encoder)]
        tokenizer = getattr(self.conditions, "tokenizer", None)
        said.append({} if tokenizer is None else tokenizer.get_vocab())
        hashed.update(json.dumps(said, sort_keys=True, default=str).encode())
        for part in (self.network, vae, encoder):
            for name, weight in part.state_dict().items() if part is not None else ():
                first = weight.flatten()[:256].float().cpu()
                hashed.update(f"{name} {tuple(weight.shape)} ".encode() + first.numpy().tobytes())
        return hashed.hexdigest()

    def decode(self, z: Tensor) -> Tensor:
        """Decodes z to images float32 [n, *image_shape], clipped to [−1, 1]; the gradient of a clipped pixel is 0."""
        with mixed_precision(self.device, self.precision):
            return self.space.decode(z).float().clamp(-1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images [n, *image_shape] in [−1, 1] as z float32 [n, *latent_shape]."""
        with mixed_precision(self.device, self.precision):
            return self.space.encode(images).float()

    def new_sampler(self, steps: int, scheduler: Scheduler = "own") -> Sampler:
        """Returns a new sampler with this number of steps; each batch needs its own sampler.

        Raises:
            GenfedError: there are more steps than the diffusion has.
        """
        return new_sampler(self.scheduler, steps, scheduler, clipped=None if self.kind == "class" else False)

    def generate(
        self,
        condition: Tensor,
        rngs: Rngs,
        *,
        steps: int = 50,
        guidance: float = 1.0,
        scheduler: Scheduler = "own",
        negative: str = "",
        further: Sequence[Further] = (),
        batch_size: int = 64,
        notify: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Generates one image per row of the condition, float32 [n, *image_shape] in [−1, 1] on the CPU, without
        gradients.

        Image i draws only from rngs[i], so its noise does not depend on its batch. Its last bits may, where kernels sum
        in another order.

        Args:
            condition: The condition [n, …].
            rngs: The generator of each image.
            steps: The number of denoising steps.
            guidance: The weight of guidance; 1: none.
            scheduler: The scheduler.
            negative: The prompt from which guidance leads away; empty: the empty prompt, or no class.
            further: Further conditions [n, …] and their weights.
            batch_size: The number of images generated at once.
            notify: A function that is called with the number of finished images.

        Raises:
            GenfedError: there are more steps than the diffusion has, or a class-conditional model got a negative one.
        """
        assert len(condition) == len(rngs), "an image has one condition and one generator"
        images = [torch.empty(0, *self.image_shape)]
        with torch.no_grad():
            for start in range(0, len(rngs), batch_size):
                rows = slice(start, start + batch_size)
                first, own = condition[rows], rngs[rows]
                sampler, z = self.new_sampler(steps, scheduler), self.draw_noise(own)
                others = [(other[rows], weight) for other, weight in further]
                none = self.encode_unconditional(len(own), negative) if guidance != 1 or others else first
                for t in sampler.timesteps:
                    z = sampler.step(self.predict_guided(z, t, first, none, guidance, others), t, z, own)
                images.append(self.decode(z).cpu())
                notify(min(start + batch_size, len(rngs)))
        return torch.cat(images)

    def _expand_steps(self, t: int | Tensor, z: Tensor) -> Tensor:
        steps = torch.as_tensor(t, device=z.device)
        return steps.expand(len(z)) if steps.ndim == 0 else steps


def new_generators(n: int, rng: torch.Generator) -> list[torch.Generator]:
    """Returns a generator for each of n images; draws n numbers from `rng`."""
    seeds = torch.randint(2**62, (n,), generator=rng).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _read_config(part: Any) -> dict[str, Any]:
    """Returns the settings of a part of a model without what a library notes about itself; empty: it has none."""
    config = getattr(part, "config", {})
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    return {key: value for key, value in values.items() if not key.startswith("_") and key != "transformers_version"}
