"""Vision models of transformers, pretrained by others and frozen; needs the extra `foundation`."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.errors import GenfedError, first_line
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder
from genfed.foundation.loading import explain_error, import_library, refuse_kernels, silence_libraries

_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}


@settings
class Pretrained(Encoder):
    """Features of images by a vision model of transformers in a directory of this machine (ViT, DINOv2, ResNet, the
    image part of CLIP saved as CLIPVisionModel): config.json, preprocessor_config.json and .safetensors. Images are
    resized and normalized as in the model's training, and features scaled to mean square 1 per example. All parties
    need the same files, which the encoder's digest covers.
    """

    model: str
    """Directory of the model."""
    pooling: Literal["mean", "first"] = "mean"
    """Features of an image: "mean", the mean over tokens or places of the last layer; "first", the first token, which
    stands for the whole image in many transformers."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        if task.kind != "image":
            raise GenfedError(f"encoder pretrained takes images; the examples are {task.noun}")
        if task.shape[0] not in (1, 3):
            raise GenfedError(f"encoder pretrained takes images of 1 or 3 channels; they have {task.shape[0]}")
        root = Path(self.model)
        stamp = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in root.iterdir())) if root.is_dir() else ()
        network = PretrainedNetwork(_load_model(root, stamp), _read_preprocessing(root), self.pooling, _digest(root))
        try:
            with torch.no_grad(), silence_libraries():
                network(torch.zeros(1, *task.shape))
        except GenfedError:
            raise
        except Exception as error:  # a model of something other than images, or of another size
            raise GenfedError(f"{root}: it cannot read an image ({explain_error(error)})") from None
        return network


class PretrainedNetwork(nn.Module):
    """The encoder's network, frozen.

    Args:
        model: A vision model of transformers.
        preprocessing: Mean, standard deviation (each one number per channel) and side of its images.
        pooling: See `Pretrained`.
        files: 32 bytes that stand for the files that say how the model computes, for the encoder's digest.
    """

    mean: Tensor
    deviation: Tensor
    files: Tensor
    pooled: Tensor

    def __init__(self, model: Any, preprocessing: tuple[Tensor, Tensor, int], pooling: str, files: bytes) -> None:
        super().__init__()
        mean, deviation, side = preprocessing
        self.model, self.pooling, self.size = model, pooling, side
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("deviation", deviation.view(3, 1, 1))
        self.register_buffer("files", torch.tensor(list(files)))  # this and the next are for the digest
        self.register_buffer("pooled", torch.tensor(pooling == "first"))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [n, d] of images [n, C, H, W] in [−1, 1]."""
        if not len(x):  # which models of transformers refuse
            return self(x.new_zeros(1, *x.shape[1:]))[:0]  # type: ignore[no-any-return]
        pixels = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        pixels = ((pixels.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.deviation
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        if hidden.ndim == 4:  # maps [n, d, h, w], as a convolutional model gives them
            hidden = hidden.flatten(2).transpose(1, 2)
            if self.pooling == "first":
                raise GenfedError('pooling = "first": the model gives maps, which have no first token')
        features = hidden[:, 0] if self.pooling == "first" else hidden.mean(1)
        scaled: Tensor = features * features.square().mean(1, keepdim=True).clamp_min(1e-6).rsqrt()
        return scaled


@functools.lru_cache(maxsize=1)
def _load_model(root: Path, stamp: tuple[tuple[str, int], ...]) -> Any:
    """Returns the model, frozen. A directory whose files have the same times as at the last call is not read again."""
    refuse_kernels(_read_json(root, "config.json"), f"{root}/config.json")
    files = sorted(file.name for file in root.iterdir())
    if not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if file.endswith(_PICKLED)]
        what = f"{pickled[0]} is pickled, and may run code when it is read" if pickled else "there are no weights"
        raise GenfedError(f"{root}: {what}; .safetensors are allowed")
    try:
        with silence_libraries():
            model, info = import_library("transformers").AutoModel.from_pretrained(
                root, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32, **_OFFLINE
            )
    except GenfedError:
        raise
    except Exception as error:  # damaged weights, shapes that differ from the config's
        raise GenfedError(f"{root}: cannot be read ({explain_error(error)})") from None
    missing = sorted(info["missing_keys"])
    if any(name.startswith("pooler.") for name in missing):  # it is not used, so a model may come without
        model.pooler, missing = None, [name for name in missing if not name.startswith("pooler.")]
    if missing:  # they would keep random values
        raise GenfedError(f"{root}: the weights lack {missing[0]}" + (" and others" if len(missing) > 1 else ""))
    return model.requires_grad_(False).eval()


def _read_preprocessing(root: Path) -> tuple[Tensor, Tensor, int]:
    """Returns mean and standard deviation [3] of pixels in [0, 1], and the side of images."""
    found = _read_json(root, "preprocessor_config.json")
    size: Any = found.get("crop_size") or found.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    numbers = [found.get(name) for name in ("image_mean", "image_std")]
    three = all(isinstance(each, list) and len(each) == 3 for each in numbers)
    if not three or not isinstance(size, int) or not 8 <= size <= 1024:
        raise GenfedError(
            f"{root / 'preprocessor_config.json'}: image_mean and image_std of three channels and a size of 8 to 1024 "
            "are allowed"
        )
    try:
        mean, deviation = (torch.tensor([float(each) for each in part]) for part in numbers if part)
    except (TypeError, ValueError) as error:
        raise GenfedError(f"{root / 'preprocessor_config.json'}: not readable ({first_line(error)})") from None
    if not bool((deviation > 0).all() & deviation.isfinite().all() & mean.isfinite().all()):
        raise GenfedError(f"{root / 'preprocessor_config.json'}: image_std is above 0")
    return mean, deviation, size


def _digest(root: Path) -> bytes:
    """Returns 32 bytes that are the same for directories whose JSON files hold equal values only."""
    found = [_read_json(root, name) for name in ("config.json", "preprocessor_config.json")]
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=32).digest()


def _read_json(root: Path, name: str) -> dict[str, Any]:
    if not (root / name).is_file():
        raise GenfedError(f"{root}: no directory of a vision model, it has no {name}")
    try:
        found = json.loads((root / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GenfedError(f"{root / name}: not readable ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise GenfedError(f"{root / name}: not readable (no table)")
    return found
