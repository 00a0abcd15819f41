"""A frozen diffusion model and the operations that methods are made of.

One class for three kinds of directory: what differs are its `Space` (a latent one, or pixels) and its `Conditions`
(prompts, or classes). Every operation has gradients with respect to z, condition and images where the caller wants
them, never with respect to weights.

A noisy example is z_t = √ᾱ_t·x0 + √(1 − ᾱ_t)·ε, after Ho, Jain, Abbeel (arXiv 2006.11239, Eq. 4); what the network
gives is ε, x0 or v = √ᾱ_t·ε − √(1 − ᾱ_t)·x0 (Salimans, Ho, arXiv 2202.00512), as the directory says.
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
"""A condition beside the first, [n, …] as that, and its own guidance; 0: it is not heeded."""


class Space(ABC):
    """Where the diffusion takes place."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images in [−1, 1] → z; the mean where the encoder gives a distribution."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """From z to images, in [−1, 1] where the decoder keeps to it."""


class Pixels(Space):
    """That of the images themselves."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Latents(Space):
    """That of an autoencoder of diffusers, with the scaling factor of its own config."""

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
    """What an image is asked for with."""

    @abstractmethod
    def of(self, texts: Sequence[str]) -> Tensor:
        """One row per text, on the network's device.

        Raises:
            GenfedError: a text that cannot be a condition.
        """

    @abstractmethod
    def none(self, n: int, negative: str) -> Tensor:
        """Rows that ask for nothing, or for the opposite of `negative` under guidance."""

    @abstractmethod
    def ask(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's output for z under the condition."""


@dataclass(frozen=True)
class Prompts(Conditions):
    """Any text, as the embeddings [n, tokens, width] of a CLIP text encoder."""

    tokenizer: Any
    encoder: Any

    def of(self, texts: Sequence[str]) -> Tensor:
        ids, most = [], self.tokenizer.model_max_length
        for text in texts:
            found = self.tokenizer(text, verbose=False).input_ids
            if len(found) > most:
                raise GenfedError(
                    f"the prompt {text!r} takes {len(found) - 2} tokens; the text encoder reads {most - 2} (shorten "
                    "it, or use words that the model was trained with)"
                )
            ids.append(found + [self.tokenizer.pad_token_id] * (most - len(found)))
        distinct = list(dict.fromkeys(map(tuple, ids)))  # a class's prompt is asked for many times over
        asked = torch.tensor(distinct, device=self.encoder.device)
        mask = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            mask = (asked != self.tokenizer.pad_token_id).long()
        with torch.no_grad():
            embeddings: Tensor = self.encoder(asked, attention_mask=mask)[0]
        place = {row: i for i, row in enumerate(distinct)}
        return embeddings[[place[tuple(row)] for row in ids]]

    def none(self, n: int, negative: str) -> Tensor:
        return self.of([negative]).expand(n, -1, -1)

    def ask(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = network(z, t, encoder_hidden_states=condition).sample
        return output


@dataclass(frozen=True)
class Classes(Conditions):
    """Names of classes, as their numbers int64 [n]; the number of classes stands for none."""

    names: tuple[str, ...]
    device: torch.device

    def of(self, texts: Sequence[str]) -> Tensor:
        if unknown := [text for text in texts if text not in self.names]:
            raise GenfedError(f"the model has no class {unknown[0]!r}; it has: {', '.join(self.names)}")
        return torch.tensor([self.names.index(text) for text in texts], dtype=torch.int64, device=self.device)

    def none(self, n: int, negative: str) -> Tensor:
        if negative:
            raise GenfedError(
                f"negative = {negative!r}: a class-conditional model takes no negative prompt; leave it out"
            )
        return torch.full((n,), len(self.names), device=self.device)

    def ask(self, network: nn.Module, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = network(z, t, class_labels=condition).sample
        return output


@dataclass(frozen=True)
class FoundationModel:
    """A diffusion model whose weights nobody changes."""

    name: str
    """Where it came from, for messages."""
    kind: Kind
    network: nn.Module
    """The U-Net."""
    space: Space
    conditions: Conditions
    scheduler: Any
    """The directory's own, of diffusers; never stepped itself."""
    image_shape: tuple[int, int, int]
    """(C, H, W) of what it makes."""
    latent_shape: tuple[int, int, int]
    """(C, H, W) of z; in pixel space that of the images."""
    device: torch.device
    precision: Literal["float32", "bfloat16"]

    def condition(self, texts: Sequence[str]) -> Tensor:
        """Prompts → embeddings float32 [n, tokens, width]; for a class-conditional model names of classes → int64 [n].

        Raises:
            GenfedError: a prompt longer than the text encoder reads, or no such class.
        """
        return self.conditions.of(texts)

    def unconditional(self, n: int, negative: str = "") -> Tensor:
        """The condition that guidance leads away from: the empty prompt or `negative`; the null class."""
        return self.conditions.none(n, negative)

    def noise(self, rngs: Rngs) -> Tensor:
        """z_T float32 [n, *latent_shape], row i from rngs[i] alone: the same bits in a batch of any size."""
        return torch.stack([torch.randn(self.latent_shape, generator=rng) for rng in rngs]).to(self.device)

    def predict(self, z: Tensor, t: int | Tensor, condition: Tensor) -> Tensor:
        """The raw output of the network, float32 [n, *latent_shape]: ε, x0 or v. t is one step, or one per row [n]."""
        with mixed_precision(self.device, self.precision):
            return self.conditions.ask(self.network, z, self._steps(t, z), condition.to(self.device)).float()

    def guided(
        self,
        z: Tensor,
        t: int | Tensor,
        condition: Tensor,
        none: Tensor,
        guidance: float,
        further: Sequence[Further] = (),
    ) -> Tensor:
        """The raw output none + w·(condition − none) (Ho, Salimans, arXiv 2207.12598), w being `guidance`, plus as much
        of each of the `further` ones. At w = 1 and without these the network is asked once for each row, for the
        condition alone; else once for none and for each condition. `none` is `unconditional(n)`.
        """
        further = [(c, w) for c, w in further if w != 0]
        if guidance == 1 and not further:
            return self.predict(z, t, condition)
        asked = [c.to(self.device) for c in (none, condition, *(c for c, _ in further))]
        steps, m = self._steps(t, z), len(asked)
        without, *of = self.predict(torch.cat([z] * m), torch.cat([steps] * m), torch.cat(asked)).chunk(m)
        output = without
        for one, weight in zip(of, (guidance, *(w for _, w in further)), strict=True):
            output = output + weight * (one - without)
        return output

    def clean(self, output: Tensor, z: Tensor, t: int | Tensor) -> Tensor:
        """x0, as the network's output for z_t has it; infinite where it gives ε and ᾱ_t = 0."""
        signal, noise = self.levels(t, z)
        match self.prediction:
            case "epsilon":
                return (z - noise * output) / signal
            case "v_prediction":
                return signal * z - noise * output
        return output

    def eps(self, output: Tensor, z: Tensor, t: int | Tensor) -> Tensor:
        """ε, as the network's output for z_t has it."""
        signal, noise = self.levels(t, z)
        match self.prediction:
            case "epsilon":
                return output
            case "v_prediction":
                return noise * z + signal * output
        return (z - signal * output) / noise

    def noisy(self, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """z_t of x0 and ε."""
        signal, noise = self.levels(t, x0)
        return signal * x0 + noise * eps

    def levels(self, t: int | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t), [n, 1, 1, 1]."""
        kept = self.scheduler.alphas_cumprod.to(z.device)[self._steps(t, z)].view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()

    @property
    def prediction(self) -> str:
        """What the network gives: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def steps(self) -> int:
        """Of the diffusion that it was trained with (T)."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def fingerprint(self) -> str:
        """Names its weights, by the first numbers of each, and the settings of its parts: a model that was trained anew
        has another.
        """
        known = hashlib.blake2b(digest_size=16)
        for part in (self.scheduler, getattr(self.space, "vae", None)):
            config = {k: v for k, v in dict(part.config).items() if not k.startswith("_")} if part is not None else {}
            known.update(json.dumps(config, sort_keys=True, default=str).encode())
        for part in (self.network, getattr(self.space, "vae", None), getattr(self.conditions, "encoder", None)):
            for name, weight in part.state_dict().items() if part is not None else ():
                some = weight.flatten()[:256].float().cpu()
                known.update(f"{name} {tuple(weight.shape)} ".encode() + some.numpy().tobytes())
        return known.hexdigest()

    def decode(self, z: Tensor) -> Tensor:
        """From z to images float32 [n, *image_shape], cut to [−1, 1]; where it is cut the gradient is 0."""
        with mixed_precision(self.device, self.precision):
            return self.space.decode(z).float().clamp(-1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [n, *image_shape] in [−1, 1] → z float32 [n, *latent_shape]."""
        with mixed_precision(self.device, self.precision):
            return self.space.encode(images).float()

    def sampler(self, steps: int, scheduler: Scheduler = "own") -> Sampler:
        """A new one of so many steps; a batch needs its own.

        Raises:
            GenfedError: more steps than the diffusion has.
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
        """One image per row of the condition, float32 [n, *image_shape] in [−1, 1] on the CPU; without gradients.

        Image i is drawn from rngs[i] alone, so its noise does not depend on the batch that it is in (its last bits may,
        where kernels sum in another order). `notify` is told how many images are done.

        Raises:
            GenfedError: more steps than the diffusion has, or a negative prompt for a class-conditional model.
        """
        assert len(condition) == len(rngs), "an image has one condition and one generator"
        images = [torch.empty(0, *self.image_shape)]
        with torch.no_grad():
            for start in range(0, len(rngs), batch_size):
                asked, own = condition[start : start + batch_size], rngs[start : start + batch_size]
                sampler, z = self.sampler(steps, scheduler), self.noise(own)
                beside = [(other[start : start + batch_size], weight) for other, weight in further]
                none = self.unconditional(len(own), negative) if guidance != 1 or beside else asked
                for t in sampler.timesteps:
                    z = sampler.step(self.guided(z, t, asked, none, guidance, beside), t, z, own)
                images.append(self.decode(z).cpu())
                notify(min(start + batch_size, len(rngs)))
        return torch.cat(images)

    def _steps(self, t: int | Tensor, z: Tensor) -> Tensor:
        steps = torch.as_tensor(t, device=z.device)
        return steps.expand(len(z)) if steps.ndim == 0 else steps


def per_image(n: int, rng: torch.Generator) -> list[torch.Generator]:
    """A generator for each of n images; draws n numbers from `rng`."""
    seeds = torch.randint(2**62, (n,), generator=rng).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
