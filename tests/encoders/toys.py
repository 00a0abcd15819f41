"""A tiny vision model of transformers."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch


@functools.cache
def vision_model() -> Path:
    """A directory with a ViT for 3×16×16 images and 16 features, there until the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="genfed-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_vit(folder)
    return folder


def write_vit(folder: Path, **changes: Any) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    preprocessing = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5], "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing | changes))


def write_resnet(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).save_pretrained(folder)
    preprocessing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": 32, "size": {"shortest_edge": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
