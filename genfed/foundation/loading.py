"""Loading of a diffusion model from a directory in diffusers' format; needs the extra `foundation`."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from genfed.core.errors import GenfedError, first_line
from genfed.core.text import one_line
from genfed.foundation.model import Classes, Conditions, FoundationModel, Kind, Latents, Pixels, Prompts, Space
from genfed.foundation.schedulers import OWN

SHIPPED = Path(__file__).parent / "shipped"
"""The model that comes with genfed, called "shipped"."""
_TEXT = "StableDiffusionPipeline"
_CLASS = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
_PARTS = ("unet", "vae", "text_encoder")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_ATTENTION = ("eager", "sdpa")
"""Implementations of attention that come with transformers."""


def load_foundation(
    name: str,
    *,
    classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> FoundationModel:
    """Opens a directory, "shipped", or a model of the Hugging Face hub ("owner/name", downloaded once).

    The file model_index.json gives one of three kinds: Stable Diffusion 1.x and 2.x (StableDiffusionPipeline), the same
    without a VAE, in pixel space, and class-conditional (DDPMPipeline or DDIMPipeline with a UNet2DModel of C + 1
    classes, the last one being "no class").

    Args:
        name: The directory, "shipped" or the hub's name.
        classes: The names of a class-conditional model's classes, if its model_index.json has no "id2label"; empty:
            "0", "1" ….
        device: Where the model is computed.
        precision: The precision of the computation.

    Raises:
        GenfedError: there is no such directory, a part is missing, unreadable or does not fit the others, weights are
            pickled, the pipeline is another one, or an extra is not installed.
    """
    root, place = _find_directory(name), torch.device(device)
    index = _read_json(root / "model_index.json", root)
    pipeline = index.get("_class_name")
    if pipeline == _TEXT:
        return _load_text_to_image(root, index, place, precision)
    if pipeline in _CLASS:
        return _load_class_conditional(root, index, classes, place, precision)
    raise GenfedError(f"{root}: a {pipeline}; {_TEXT} (with or without a VAE), {' and '.join(_CLASS)} are allowed")


def refuse_kernels(config: Any, where: str) -> None:
    """Refuses a model's config.json, or a part of it, that names an attention of others: transformers would fetch its
    code from the hub and run it.

    Args:
        config: What the file holds, or a part of it.
        where: The file, for the message.

    Raises:
        GenfedError: it does.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        if re.search("(attn|experts)_implementation$", key):
            for name in value.values() if isinstance(value, dict) else [value]:
                if name not in (None, *_ATTENTION):
                    raise GenfedError(
                        f"{where}: {key} = {one_line(name)} may run code of others; {', '.join(_ATTENTION)} are "
                        "allowed, or leave it out"
                    )
        refuse_kernels(value, where)


def _load_text_to_image(root: Path, index: dict[str, Any], device: torch.device, precision: Any) -> FoundationModel:
    unet = _load_network(root, "unet", "diffusers", "UNet2DConditionModel", device)
    encoder = _load_network(root, "text_encoder", "transformers", "CLIPTextModel", device)
    scheduler = _load_scheduler(root, index)
    size, channels, width = _read_size(unet, root), unet.config.in_channels, unet.config.cross_attention_dim
    if width != encoder.config.hidden_size:
        raise GenfedError(
            f"{root}: the unet takes embeddings of {width} numbers and text_encoder gives {encoder.config.hidden_size}"
        )
    tokenizer = _load_tokenizer(root, index)
    most = encoder.config.max_position_embeddings
    if tokenizer.model_max_length > most:
        tokenizer.model_max_length = most  # a tokenizer without a limit has 10³⁰
    if len(tokenizer) > encoder.config.vocab_size:
        raise GenfedError(
            f"{root}: the tokenizer has {len(tokenizer)} tokens and text_encoder knows {encoder.config.vocab_size}"
        )
    space: Space = Pixels()
    kind: Kind = "pixel"
    image = (channels, *size)
    if (index.get("vae") or [None])[0] is not None:
        vae = _load_network(root, "vae", "diffusers", "AutoencoderKL", device)
        space, kind, factor = Latents(vae), "latent", 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != channels:
            raise GenfedError(
                f"{root}: the unet takes {channels} channels and the vae has {vae.config.latent_channels} "
                "(a model for inpainting or editing cannot be used)"
            )
        image = (vae.config.out_channels, size[0] * factor, size[1] * factor)
    prompts = Prompts(tokenizer, encoder)
    return _build_model(root, kind, unet, space, prompts, scheduler, image, size, device, precision)


def _load_class_conditional(
    root: Path, index: dict[str, Any], classes: Sequence[str], device: torch.device, precision: Any
) -> FoundationModel:
    unet = _load_network(root, "unet", "diffusers", "UNet2DModel", device)
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
    size, known = _read_size(unet, root), Classes(names, device)
    image = (unet.config.in_channels, *size)
    return _build_model(
        root, "class", unet, Pixels(), known, _load_scheduler(root, index), image, size, device, precision
    )


def _build_model(
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


def _find_directory(name: str) -> Path:
    """Returns the directory of a name, downloaded if it is the hub's."""
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
    except Exception as error:  # any error of the network or the hub
        raise GenfedError(f"{name}: no such directory, and the hub does not give it ({first_line(error)})") from None


def _load_network(root: Path, part: str, owner: str, kind: str, device: torch.device) -> Any:
    """Loads a part that has weights, frozen."""
    folder = root / part
    config = _read_json(folder / "config.json", root)
    refuse_kernels(config, f"{folder}/config.json")
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
        raise GenfedError(f"{folder}: cannot be read ({explain_error(error)})") from None
    if missing := sorted(info["missing_keys"]):  # they would keep random values
        raise GenfedError(f"{folder}: the weights lack {missing[0]}" + (" and others" if len(missing) > 1 else ""))
    return network.to(device).requires_grad_(False).eval()


def _load_tokenizer(root: Path, index: dict[str, Any]) -> Any:
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
        raise GenfedError(f"{root / 'tokenizer'}: cannot be read ({explain_error(error)})") from None
    if tokenizer.pad_token_id is None:
        raise GenfedError(f"{root}: the tokenizer has no pad_token")
    return tokenizer


def _load_scheduler(root: Path, index: dict[str, Any]) -> Any:
    kind = (index.get("scheduler") or [None, None])[1]
    if kind not in OWN:
        raise GenfedError(
            f"{root}: the scheduler is a {kind}; {', '.join(OWN)} are allowed (its settings fit all of them)"
        )
    folder = root / "scheduler"
    _read_json(folder / "scheduler_config.json", root)
    scheduler_class = getattr(import_library("diffusers"), kind)
    try:
        scheduler = scheduler_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise GenfedError(f"{folder}: cannot be read ({explain_error(error)})") from None
    if (prediction := scheduler.config.get("prediction_type")) not in ("epsilon", "v_prediction", "sample"):
        raise GenfedError(f"{root}: prediction_type is {prediction!r}; epsilon, v_prediction and sample are allowed")
    if index["_class_name"] == _TEXT and scheduler.config.get("steps_offset", 1) != 1:
        return scheduler_class.from_config(scheduler.config, steps_offset=1)  # as StableDiffusionPipeline does
    return scheduler


def _read_size(unet: Any, root: Path) -> tuple[int, int]:
    size = unet.config.sample_size
    if size is None:
        raise GenfedError(f"{root}: unet/config.json does not say its sample_size")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _read_json(file: Path, root: Path) -> dict[str, Any]:
    if not file.exists():
        raise GenfedError(f"{root}: the part {file.parent.name} is missing (no {file.name})")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GenfedError(f"{file}: not readable ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise GenfedError(f"{file}: not readable (no table)")
    return found


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Turns transformers' progress bars off in the block."""
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
    """Imports and returns a library.

    Raises:
        GenfedError: the library is not installed, or its import fails.
    """
    try:
        return __import__(name)
    except Exception as error:
        raise GenfedError(explain_error(error)) from None


def explain_error(error: Exception) -> str:
    """Returns one line about a library's error, with the remedy if it is known."""
    chain: list[BaseException] = [error]  # lazy imports hide the cause behind errors of their own
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any("torchvision" in str(link) for link in chain):
        return (
            "the installed torchvision does not fit torch: remove it (pip uninstall torchvision) or install the one "
            "that does; genfed needs none"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        why = first_line(error)
        return f"""a foundation model needs the extra "foundation" ({why}): pip install 'genfed[foundation]'"""
    return first_line(chain[-1])
