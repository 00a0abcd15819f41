"""Reads a diffusion model from a directory in diffusers' format; needs the extra `foundation`."""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from genfed.core.errors import GenfedError
from genfed.foundation.model import Classes, Conditions, FoundationModel, Kind, Latents, Pixels, Prompts, Space
from genfed.foundation.schedulers import OWN

SHIPPED = Path(__file__).parent / "shipped"
"""The model that comes with genfed, called "shipped"."""
_TEXT = "StableDiffusionPipeline"
_CLASS = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
_PARTS = ("unet", "vae", "text_encoder")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def load_foundation(
    name: str,
    *,
    classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> FoundationModel:
    """Opens a directory, "shipped", or a model of the Hugging Face hub ("owner/name", downloaded once).

    Three kinds are known by model_index.json: Stable Diffusion 1.x and 2.x (StableDiffusionPipeline), the same without
    a VAE, in pixel space, and class-conditional (DDPMPipeline or DDIMPipeline with a UNet2DModel of C + 1 classes, the
    last being none). `classes` are the names of a class-conditional model's classes where its model_index.json has no
    "id2label"; empty: "0", "1" ….

    Raises:
        GenfedError: no such directory, a part that is missing, unreadable or does not fit the others, pickled weights,
            another pipeline, or an extra that is not installed.
    """
    root, place = _found(name), torch.device(device)
    index = _json(root / "model_index.json", root)
    pipeline = index.get("_class_name")
    if pipeline == _TEXT:
        return _text_to_image(root, index, place, precision)
    if pipeline in _CLASS:
        return _class_conditional(root, index, classes, place, precision)
    raise GenfedError(f"{root}: a {pipeline}; {_TEXT} (with or without a VAE), {' and '.join(_CLASS)} are allowed")


def _text_to_image(root: Path, index: dict[str, Any], device: torch.device, precision: Any) -> FoundationModel:
    unet = _network(root, "unet", "diffusers", "UNet2DConditionModel", device)
    encoder = _network(root, "text_encoder", "transformers", "CLIPTextModel", device)
    scheduler = _scheduler(root, index)
    size, channels, width = _size(unet, root), unet.config.in_channels, unet.config.cross_attention_dim
    if width != encoder.config.hidden_size:
        raise GenfedError(
            f"{root}: the unet takes embeddings of {width} numbers and text_encoder gives {encoder.config.hidden_size}"
        )
    tokenizer = _tokenizer(root, index)
    most = encoder.config.max_position_embeddings
    if tokenizer.model_max_length > most:
        tokenizer.model_max_length = most  # a tokenizer that names no limit has 10³⁰
    if len(tokenizer) > encoder.config.vocab_size:
        raise GenfedError(
            f"{root}: the tokenizer has {len(tokenizer)} tokens and text_encoder knows {encoder.config.vocab_size}"
        )
    space: Space = Pixels()
    kind: Kind = "pixel"
    image = (channels, *size)
    if (index.get("vae") or [None])[0] is not None:
        vae = _network(root, "vae", "diffusers", "AutoencoderKL", device)
        space, kind, factor = Latents(vae), "latent", 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != channels:
            raise GenfedError(
                f"{root}: the unet takes {channels} channels and the vae has {vae.config.latent_channels} "
                "(a model for inpainting or editing cannot be used)"
            )
        image = (vae.config.out_channels, size[0] * factor, size[1] * factor)
    prompts = Prompts(tokenizer, encoder)
    return _model(root, kind, unet, space, prompts, scheduler, image, size, device, precision)


def _class_conditional(
    root: Path, index: dict[str, Any], classes: Sequence[str], device: torch.device, precision: Any
) -> FoundationModel:
    unet = _network(root, "unet", "diffusers", "UNet2DModel", device)
    if (embeds := unet.config.num_class_embeds) is None or embeds < 2:
        raise GenfedError(
            f"{root}: the unet has no classes (num_class_embeds); one for each and one for none is allowed"
        )
    stored = index.get("id2label") or {}
    names = (
        tuple(stored[key] for key in sorted(stored, key=int)) or tuple(classes) or tuple(map(str, range(embeds - 1)))
    )
    if len(names) != embeds - 1:
        raise GenfedError(f"{root}: the unet has {embeds - 1} classes and one for none; {len(names)} are named")
    size, known = _size(unet, root), Classes(names, device)
    image = (unet.config.in_channels, *size)
    return _model(root, "class", unet, Pixels(), known, _scheduler(root, index), image, size, device, precision)


def _model(
    root: Path,
    kind: Kind,
    unet: Any,
    space: Space,
    conditions: Conditions,
    scheduler: Any,
    image: tuple[int, ...],
    size: tuple[int, int],
    device: torch.device,
    precision: Any,
) -> FoundationModel:
    if unet.config.out_channels != unet.config.in_channels:
        raise GenfedError(
            f"{root}: the unet takes {unet.config.in_channels} channels and gives {unet.config.out_channels}; as many "
            "are allowed (a learned variance is not)"
        )
    assert len(image) == 3
    latent = (unet.config.in_channels, *size)
    return FoundationModel(root.name, kind, unet, space, conditions, scheduler, image, latent, device, precision)


def _found(name: str) -> Path:
    """The directory of that name."""
    if name == "shipped":
        if not (SHIPPED / "model_index.json").exists():
            raise GenfedError("no foundation model ships with this installation; make one: genfed pretrain CONFIG")
        return SHIPPED
    if (root := Path(name)).exists():
        if not (root / "model_index.json").exists():
            raise GenfedError(f"{name}: no directory of diffusers, it has no model_index.json")
        return root
    if len(parts := name.split("/")) != 2 or not all(parts) or parts[0].startswith((".", "~")):
        raise GenfedError(f'{name}: no such directory; a directory of diffusers, "shipped" or owner/name are allowed')
    hub = import_library("huggingface_hub")
    weights = [f"{part}/*.safetensors*" for part in _PARTS]
    wanted = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer/*", *weights]
    variants = ["*.fp16.*", "*.non_ema.*", "safety_checker/*", "feature_extractor/*"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=variants))
    except Exception as error:  # whatever the network and the hub come up with
        raise GenfedError(f"{name}: no such directory, and the hub does not give it ({_reason(error)})") from None


def _network(root: Path, part: str, owner: str, kind: str, device: torch.device) -> Any:
    """A part with weights, frozen."""
    folder = root / part
    config = _json(folder / "config.json", root)
    found = config.get("_class_name") or next(iter(config.get("architectures") or []), kind)
    if found != kind:
        raise GenfedError(f"{root}: {part} is a {found}; {kind} is allowed")
    files = sorted(file.name for file in folder.iterdir())
    if not (safe := [file for file in files if file.endswith(".safetensors")]):
        pickled = [file for file in files if file.endswith(_PICKLED)]
        what = f"{pickled[0]} is pickled, and may run code when it is read" if pickled else "there are no weights"
        raise GenfedError(f"{folder}: {what}; .safetensors are allowed")
    variant = "fp16" if all(".fp16" in file for file in safe) else None
    options = {"low_cpu_mem_usage": False} if owner == "diffusers" else {}
    try:
        with silence_libraries():
            network, info = getattr(import_library(owner), kind).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                output_loading_info=True,
                torch_dtype=torch.float32,
                **options,
            )
    except GenfedError:
        raise
    except Exception as error:  # damaged weights, shapes that differ from the config's
        raise GenfedError(f"{folder}: cannot be read ({_broken(error)})") from None
    if missing := sorted(info["missing_keys"]):  # it would be left as it was drawn
        raise GenfedError(f"{folder}: the weights lack {missing[0]}" + (" and others" if len(missing) > 1 else ""))
    return network.to(device).requires_grad_(False).eval()


def _tokenizer(root: Path, index: dict[str, Any]) -> Any:
    kind = (index.get("tokenizer") or [None, None])[1]
    if not isinstance(kind, str) or not kind.startswith(("CLIPTokenizer", "PreTrainedTokenizer")):
        raise GenfedError(f"{root}: the tokenizer is a {kind}; CLIPTokenizer and PreTrainedTokenizerFast are allowed")
    if not (root / "tokenizer").is_dir():
        raise GenfedError(f"{root}: the part tokenizer is missing")
    try:
        tokenizer = getattr(import_library("transformers"), kind).from_pretrained(
            root / "tokenizer", local_files_only=True
        )
    except GenfedError:
        raise
    except Exception as error:
        raise GenfedError(f"{root / 'tokenizer'}: cannot be read ({_broken(error)})") from None
    if tokenizer.pad_token_id is None:
        raise GenfedError(f"{root}: the tokenizer has no pad_token")
    return tokenizer


def _scheduler(root: Path, index: dict[str, Any]) -> Any:
    kind = (index.get("scheduler") or [None, None])[1]
    if kind not in OWN:
        raise GenfedError(
            f"{root}: the scheduler is a {kind}; {', '.join(OWN)} are allowed (its settings fit all of them)"
        )
    folder = root / "scheduler"
    _json(folder / "scheduler_config.json", root)
    made = getattr(import_library("diffusers"), kind)
    try:
        scheduler = made.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise GenfedError(f"{folder}: cannot be read ({_broken(error)})") from None
    if (prediction := scheduler.config.get("prediction_type")) not in ("epsilon", "v_prediction", "sample"):
        raise GenfedError(f"{root}: prediction_type is {prediction!r}; epsilon, v_prediction and sample are allowed")
    if index["_class_name"] == _TEXT and scheduler.config.get("steps_offset", 1) != 1:
        return made.from_config(scheduler.config, steps_offset=1)  # as StableDiffusionPipeline mends old directories
    return scheduler


def _size(unet: Any, root: Path) -> tuple[int, int]:
    size = unet.config.sample_size
    if size is None:
        raise GenfedError(f"{root}: unet/config.json does not say its sample_size")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _json(file: Path, root: Path) -> dict[str, Any]:
    if not file.exists():
        raise GenfedError(f"{root}: the part {file.parent.name} is missing (no {file.name})")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GenfedError(f"{file}: not readable ({_reason(error)})") from None
    if not isinstance(found, dict):
        raise GenfedError(f"{file}: not readable (no table)")
    return found


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Without transformers' own progress bars, which stay as they were."""
    bars = import_library("transformers").utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@functools.cache
def import_library(name: str) -> Any:
    """Imports it.

    Raises:
        GenfedError: it is not installed, or its import fails.
    """
    try:
        return __import__(name)
    except Exception as error:
        raise GenfedError(_broken(error)) from None


def _broken(error: Exception) -> str:
    """One line about what a library threw, with the way out where it is known."""
    chain: list[BaseException] = [error]  # lazy imports hide what went wrong behind errors of their own
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any("torchvision" in str(link) for link in chain):
        return (
            "the installed torchvision does not fit torch: remove it (pip uninstall torchvision) or install the one "
            "that does; genfed needs none"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"""a foundation model needs the extra "foundation" ({_reason(error)}): pip install 'genfed[foundation]'"""
        )
    return _reason(chain[-1])


def _reason(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
