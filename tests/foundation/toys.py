"""Tiny directories in diffusers' format, written with plain diffusers and transformers, and a method that fails."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from genfed.core.client import Client, Server
from genfed.core.phase import Empty, Reply
from genfed.core.rng import seeded, stream
from genfed.core.settings import settings
from genfed.methods.bases.condition_upload import ConditionUpload
from genfed.methods.bases.server_synthesis import ServerSynthesisState
from genfed.methods.fedlmg import FedLMG, FedLMGUpload
from genfed.methods.fgl import FGL
from genfed.training.synthetic_dataset import SampleRequest

TOKENS = 12


def tokenizer() -> Any:
    """A byte-level CLIP tokenizer without merges: a token per letter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=TOKENS)


def text_encoder(width: int = 8) -> Any:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def text_unet(channels: int = 4, size: int = 4, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**settings | changes)


def autoencoder() -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.7,
    )


def latent(folder: Path, scheduler: Any = None, **unet: Any) -> Path:
    """3×8×8 images, latents of 4×4×4."""
    with seeded(stream(0, "latent")):
        pipeline = diffusers.StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=text_unet(**unet),
            scheduler=scheduler or diffusers.DDIMScheduler(**OLD),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def pixel(folder: Path) -> Path:
    """3×8×8 images, no VAE."""
    with seeded(stream(0, "pixel")):
        pipeline = diffusers.StableDiffusionPipeline(
            vae=None,
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=text_unet(3, 8),
            scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def class_conditional(folder: Path, names: tuple[str, ...] = (), embeds: int | None = 4) -> Path:
    """1×8×8 images of three classes."""
    with seeded(stream(0, "class")):
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=None,
            num_class_embeds=embeds,
        )
    diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
    if names:
        edit(folder / "model_index.json", id2label={str(i): name for i, name in enumerate(names)})
    return folder


WORDS = (
    *("aardvark", "bison", "caracal", "dingo", "echidna", "ferret"),
    *("gibbon", "hyena", "ibex", "jackal", "kudu", "lemur"),
)
"""All that a captioner of this file can say."""


def captioner(folder: Path, kind: str = "blip") -> Path:
    """Captions of 3×8×8 images, or of any that it resizes: different ones for different images."""
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[BOS]", "[EOS]", "[UNK]", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )
    layers = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sees: dict[str, Any] = layers | {"image_size": 8, "patch_size": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    reads: dict[str, Any] = {"vocab_size": len(vocabulary), "max_position_embeddings": 32} | layers | ends
    processor: Any = transformers.BlipImageProcessorPil(size={"height": 8, "width": 8})
    with seeded(stream(2, kind)):
        if kind == "blip":
            reads |= {"encoder_hidden_size": 8, "projection_dim": 8, "sep_token_id": 2}
            config = transformers.BlipConfig(vision_config=sees, text_config=reads, projection_dim=8)
            model: Any = transformers.BlipForConditionalGeneration(config)
        elif kind == "git":
            model = transformers.GitForCausalLM(transformers.GitConfig(vision_config=sees, **reads))
        else:
            says = transformers.GPT2Config(vocab_size=16, n_positions=32, n_embd=8, n_layer=1, n_head=2, **ends)
            both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs
            model = transformers.VisionEncoderDecoderModel(both(transformers.ViTConfig(**sees), says))
            # A directory's own beams are not used.
            model.generation_config = transformers.GenerationConfig(decoder_start_token_id=1, num_beams=4, **ends)
            processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                torch.nn.init.normal_(parameter, std=1.0)  # as drawn it says the same of all images
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rngs(n: int, seed: int = 0) -> list[torch.Generator]:
    return [stream(seed, i) for i in range(n)]


OLD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
"""Stable Diffusion's own noise schedule."""


@settings
class Spoilt(FedLMG):
    """FedLMG where client 1's classifier is not finite."""

    def train(self, client: Client, sent: Empty) -> Reply[FedLMGUpload]:
        reply = super().train(client, sent)
        if client.info.id == 1:
            weights = {name: value * float("nan") for name, value in reply.upload.classifier.items()}
            return Reply(FedLMGUpload(weights, reply.upload.classes))
        return reply


@settings
class Astray(FGL):
    """FGL where client 1 tells of a class that nobody knows."""

    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        reply = super().upload_conditions(client, sent)
        shift = 7 if client.info.id == 1 else 0
        return replace(reply, upload=replace(reply.upload, labels=reply.upload.labels + shift))


@settings
class Dies(FGL):
    """FGL whose process is killed in the middle of a batch of images: that which the file GENFED_TEST_MOMENT names."""

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        moment = Path(os.environ.get("GENFED_TEST_MOMENT", "/nowhere"))
        if moment.is_file() and moment.read_text() == str(server.round):
            half = len(wanted) // 2
            super().generate_images(server, state, wanted[:half], rngs[:half])
            moment.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate_images(server, state, wanted, rngs)
