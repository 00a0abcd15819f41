"""A small version of Stable Diffusion: new parts, and their directory in diffusers' format."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.files import write_file
from genfed.core.settings import settings
from genfed.foundation.loading import import_library, silence_libraries


@settings
class SmallDiffusion:
    """Size of a small text-to-image diffusion model."""

    autoencoder: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = (32, 64)
    """Channels of the autoencoder's levels; each level after the first halves the maps. Empty: no autoencoder, the
    diffusion is in pixel space."""
    latent_channels: Annotated[int, Field(ge=1)] = 4
    """Channels of the autoencoder's maps."""
    unet: Annotated[tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...], Field(min_length=1)] = (64, 128)
    """Channels of the U-Net's levels, each half the size of the one before."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Residual blocks on each level."""
    attends_from: Annotated[int, Field(ge=1)] = 8
    """Largest width of a level's maps with attention to the prompt; the middle level always has it."""
    text_width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Dimension of a token's embedding."""
    text_layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the text encoder."""
    tokens: Annotated[int, Field(ge=3, le=77)] = 32
    """Most tokens of a prompt, with the two that begin and end it. A word of the training prompts is one token, other
    words are spelled out."""
    prediction: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    """Output of the U-Net: v, the noise or the clean image."""
    diffusion_steps: Annotated[int, Field(ge=2)] = 1000
    """Diffusion steps (T)."""
    noise: Literal["scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """Schedule of β: Stable Diffusion's, which leaves 0.07 of the image, or a cosine, which leaves none."""


@dataclass(frozen=True)
class SmallDiffusionParts:
    """The parts in a directory."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    vae: Any
    """Autoencoder; None: the diffusion is in pixel space."""


def new_parts(config: SmallDiffusion, shape: tuple[int, ...], prompts: Iterable[str]) -> SmallDiffusionParts:
    """Returns new parts for images of a shape (C, H, W), with weights from torch's global stream (see `rng.seeded`).

    Raises:
        GenfedError: the maps cannot be halved often enough, or a prompt is too long for the text encoder.
    """
    channels, height, width = shape
    factor = 2 ** (len(config.autoencoder) - 1) if config.autoencoder else 1
    halvings = factor * 2 ** (len(config.unet) - 1)
    if height % halvings or width % halvings:
        raise GenfedError(
            f"images of {height}×{width}: autoencoder and unet halve them {halvings.bit_length() - 1} times, so both "
            f"sides must be multiples of {halvings}; name fewer levels, or set size"
        )
    vae = _new_autoencoder(config, shape) if config.autoencoder else None
    tokenizer = _train_tokenizer(import_library("transformers"), prompts, config.tokens)
    text_encoder = _new_text_encoder(config, tokenizer)
    unet = _new_unet(config, config.latent_channels if vae else channels, (height // factor, width // factor))
    return SmallDiffusionParts(unet, text_encoder, tokenizer, _new_scheduler(config), vae)


def _new_autoencoder(config: SmallDiffusion, shape: tuple[int, ...]) -> Any:
    return import_library("diffusers").AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=list(config.autoencoder),
        down_block_types=["DownEncoderBlock2D"] * len(config.autoencoder),
        up_block_types=["UpDecoderBlock2D"] * len(config.autoencoder),
        latent_channels=config.latent_channels,
        layers_per_block=1,
        norm_num_groups=math.gcd(*config.autoencoder) // 4,
        sample_size=max(shape[1:]),
        mid_block_add_attention=False,
    )


def _new_text_encoder(config: SmallDiffusion, tokenizer: Any) -> Any:
    transformers = import_library("transformers")
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=_count_heads(config),
            max_position_embeddings=config.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _new_unet(config: SmallDiffusion, channels: int, size: tuple[int, int]) -> Any:
    attends = [max(size) / 2**level <= config.attends_from for level in range(len(config.unet))]
    return import_library("diffusers").UNet2DConditionModel(
        sample_size=size[0] if size[0] == size[1] else size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=list(config.unet),
        down_block_types=["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        up_block_types=["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        layers_per_block=config.layers,
        cross_attention_dim=config.text_width,
        attention_head_dim=max(1, math.gcd(*config.unet) // 32),  # diffusers means the number of heads
        norm_num_groups=8,
        # The whole prompt is added to the time embedding too: shapes are learned much sooner than by attention alone.
        addition_embed_type="text",
        addition_embed_type_num_heads=_count_heads(config),
    )


def _count_heads(config: SmallDiffusion) -> int:
    return config.text_width // math.gcd(config.text_width, 32)


def _new_scheduler(config: SmallDiffusion) -> Any:
    return import_library("diffusers").DDIMScheduler(
        num_train_timesteps=config.diffusion_steps,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=config.noise,
        prediction_type=config.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def tokenize(tokenizer: Any, prompts: Iterable[str]) -> torch.Tensor:
    """Tokenizes and pads prompts, int64 [n, tokens].

    Raises:
        GenfedError: a prompt is too long.
    """
    rows, most = [], tokenizer.model_max_length
    for prompt in prompts:
        row = tokenizer(prompt, verbose=False).input_ids
        if len(row) > most:
            raise GenfedError(f"the prompt {prompt!r} takes {len(row)} tokens: raise model.tokens ({most})")
        rows.append(row + [tokenizer.pad_token_id] * (most - len(row)))
    return torch.tensor(rows)


def write_parts(parts: SmallDiffusionParts, folder: Path, weights: str) -> None:
    """Writes the directory, model_index.json last.

    Args:
        parts: The parts. "float16" also converts their weights in memory.
        folder: The directory.
        weights: The type of the weights on disk.
    """
    networks = {"unet": parts.unet, "text_encoder": parts.text_encoder, "vae": parts.vae}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": _diffusers_version()}
    for name, network in networks.items():
        if network is not None:
            cast = network.half() if weights == "float16" else network
            with silence_libraries():
                cast.save_pretrained(folder / name, safe_serialization=True)
        source = "transformers" if name == "text_encoder" else "diffusers"
        index[name] = [source, type(network).__name__] if network is not None else [None, None]
    # Without a type, all parts open as float32. This is diffusers' default, but not that of transformers.
    about = folder / "text_encoder" / "config.json"
    write_file(about, json.dumps(json.loads(about.read_text("utf-8")) | {"dtype": "float32"}, indent=2) + "\n")
    parts.tokenizer.save_pretrained(folder / "tokenizer")
    parts.scheduler.save_pretrained(folder / "scheduler")
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", type(parts.scheduler).__name__]
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    text = json.dumps(index | {"requires_safety_checker": False}, indent=2, sort_keys=True) + "\n"
    write_file(folder / "model_index.json", text)


def _train_tokenizer(transformers: Any, prompts: Iterable[str], most: int) -> Any:
    """Trains CLIP's byte-level tokenizer with new merges, so that each word of the prompts is one token."""
    tokenizers = import_library("tokenizers")
    known = transformers.CLIPTokenizer().backend_tokenizer
    words = dict.fromkeys(
        part
        for prompt in prompts
        for part, _ in known.pre_tokenizer.pre_tokenize_str(known.normalizer.normalize_str(prompt))
    )
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    counted = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2**20,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
    )
    counted.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(counted.to_str())["model"]["merges"]]
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=most)


def _diffusers_version() -> str:
    return str(import_library("diffusers").__version__)
