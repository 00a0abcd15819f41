"""Captions of a client's images, by any image-to-text model of transformers that needs no question (BLIP, BLIP-2, GIT,
a VisionEncoderDecoderModel). They become part of prompts; only embeddings leave the client.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.foundation.images import resize_to
from genfed.foundation.loading import explain_error, import_library, refuse_kernels, silence_libraries
from genfed.foundation.model import FoundationModel, Prompts
from genfed.training.fit import mixed_precision
from genfed.training.pixels import denormalize_pixels

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_PARTS = {
    "an image processor": ("preprocessor_config.json", "processor_config.json"),
    "a tokenizer": ("tokenizer.json", "vocab.json", "vocab.txt", "*.model"),
}
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Captioner:
    """A frozen image-to-text model."""

    model: Any
    processor: Any
    """Image processor, which resizes and normalizes images as in the model's training."""
    tokenizer: Any
    tokens: int
    """Most tokens of a caption."""

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        least: int = 0,
        batch_size: int = 16,
    ) -> list[str]:
        """Returns a caption for each image. Every token is the most likely one, so captions are reproducible.

        Args:
            images: Images [n, C, H, W] in [−1, 1], C = 1 or 3.
            precision: The precision of the computation.
            least: The least number of tokens of a caption; 0: no minimum.
            batch_size: The number of images per call of the model.
        """
        captions: list[str] = []
        pixels = denormalize_pixels(resize_to(images, (3, *images.shape[2:]))).permute(0, 2, 3, 1).cpu().numpy()
        for start in range(0, len(pixels), batch_size):
            pictures = [Image.fromarray(image) for image in pixels[start : start + batch_size]]
            inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
            lengths = {"max_new_tokens": self.tokens} | ({"min_new_tokens": least} if least else {})
            with _silence_transformers(), mixed_precision(self.model.device, precision):
                output = self.model.generate(**inputs, **lengths, do_sample=False, num_beams=1)
            captions += [" ".join(text.split()) for text in self.tokenizer.batch_decode(output, True)]
        return captions


def embed_captions(
    model: FoundationModel, fill: Callable[[str], str], captions: Sequence[str], batch_size: int = 64
) -> Tensor:
    """Returns the embeddings [n, tokens, width], on the CPU, of the captions' prompts.

    Args:
        model: The text-to-image model.
        fill: A function that inserts a caption into a prompt.
        captions: The n captions.
        batch_size: The number of prompts encoded at once.
    """
    prompts = [fill(truncate_caption(model, fill, caption)) for caption in captions]
    parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    return torch.cat([model.encode_condition(part).cpu() for part in parts])


def truncate_caption(model: FoundationModel, fill: Callable[[str], str], caption: str) -> str:
    """Removes the caption's last words until the text encoder can read the whole prompt; empty if no word fits."""
    assert isinstance(model.conditions, Prompts)
    tokenizer, words = model.conditions.tokenizer, caption.split()
    while words and len(tokenizer(fill(" ".join(words)), verbose=False).input_ids) > tokenizer.model_max_length:
        words.pop()
    return " ".join(words)


def load_captioner(name: str, tokens: int, device: torch.device) -> Captioner:
    """Opens a directory of transformers, or a model of the Hugging Face hub ("owner/name", downloaded once), and tests
    it by one caption. A directory that has not changed since the last call is not opened again.

    Args:
        name: The directory or the hub's name.
        tokens: The most tokens of a caption.
        device: Where the model is computed.

    Raises:
        GenfedError: there is no such directory, it is not an image-to-text model, weights are pickled or missing, the
            model needs a question or cannot write a caption of this length, or an extra is not installed.
    """
    config = Path(name) / "config.json"
    return _open_cached(name, config.stat().st_mtime_ns if config.exists() else 0, tokens, device)


@functools.lru_cache(maxsize=1)
def _open_cached(name: str, stamp: int, tokens: int, device: torch.device) -> Captioner:
    root, does = _find_directory(name), "be read"
    try:
        with _silence_transformers():
            captioner = _read_captioner(root, name, tokens, device)
            does = f"write {tokens} tokens about an image without a question"
            captioner(torch.zeros(1, 3, 8, 8), least=tokens)
    except GenfedError:
        raise
    except Exception as error:  # damaged files, a processor that needs torchvision, a model that reads fewer tokens
        raise GenfedError(f"captioner {name}: it cannot {does} ({explain_error(error)})") from None
    return captioner


def _read_captioner(root: Path, name: str, tokens: int, device: torch.device) -> Captioner:
    transformers = import_library("transformers")
    refuse_kernels(json.loads((root / "config.json").read_text("utf-8")), f"captioner {name}: config.json")
    config = transformers.AutoConfig.from_pretrained(root, **_OFFLINE)
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise GenfedError(
            f"captioner {name}: a {config.model_type} is no image-to-text model; blip, blip-2, git and "
            "vision-encoder-decoder are some"
        )
    files = sorted(file.name for file in root.iterdir())
    if not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if file.endswith(_PICKLED)]
        what = f"{pickled[0]} is pickled, and may run code when it is read" if pickled else "there are no weights"
        raise GenfedError(f"captioner {name}: {what}; .safetensors are allowed")
    for part, names in _PARTS.items():  # transformers would use a default one
        if not any(any(root.glob(pattern)) for pattern in names):
            raise GenfedError(f"captioner {name}: it lacks {part} ({names[0]})")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        root, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32, **_OFFLINE
    )
    if missing := sorted(info["missing_keys"]):  # they would keep random values
        raise GenfedError(f"captioner {name}: the weights lack {missing[0]}")
    processor = transformers.AutoImageProcessor.from_pretrained(root, backend="pil", **_OFFLINE)  # without torchvision
    tokenizer = transformers.AutoTokenizer.from_pretrained(root, **_OFFLINE)
    return Captioner(model.to(device).requires_grad_(False).eval(), processor, tokenizer, tokens)


def _find_directory(name: str) -> Path:
    """Returns the directory of a name, downloaded if it is the hub's."""
    if (root := Path(name)).exists():
        if not (root / "config.json").exists():
            raise GenfedError(f"captioner {name}: no directory of transformers, it has no config.json")
        return root
    if len(parts := name.split("/")) != 2 or not all(parts) or parts[0].startswith((".", "~")):
        raise GenfedError(f"captioner {name}: no such directory; a directory of transformers or owner/name are allowed")
    try:
        return Path(import_library("huggingface_hub").snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # any error of the network or the hub
        why = explain_error(error)
        raise GenfedError(f"captioner {name}: no such directory, and the hub does not give it ({why})") from None


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """Silences transformers' log and progress bars in the block, since captions are private."""
    logging = import_library("transformers").utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with silence_libraries():
            yield
    finally:
        logging.set_verbosity(level)
