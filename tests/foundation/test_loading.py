"""What is wrong with a directory is one clear line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.foundation import loading
from genfed.foundation.images import resize_to
from genfed.foundation.loading import load_foundation
from genfed.foundation.settings import Foundation
from tests.foundation import toys

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("directories")
    toys.latent(folder / "latent")
    toys.class_conditional(folder / "class")
    return folder


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / "latent", tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(GenfedError) as raised:
        load_foundation(str(path), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "it has no model_index.json"),
    "damaged index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json: not readable"),
    "another pipeline": (
        lambda f: toys.edit(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "a StableDiffusionXLPipeline; StableDiffusionPipeline",
    ),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "the part unet is missing"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "the part vae is missing"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "the part text_encoder is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "the part tokenizer is missing"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "the part scheduler is missing"),
    "another network": (
        lambda f: toys.edit(f / "unet" / "config.json", _class_name="UNet2DModel"),
        "unet is a UNet2DModel; UNet2DConditionModel is allowed",
    ),
    "another scheduler": (
        lambda f: toys.edit(f / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"]),
        "the scheduler is a EulerDiscreteScheduler; DDPMScheduler",
    ),
    "another prediction": (
        lambda f: toys.edit(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        "prediction_type is 'flow'",
    ),
    "pickled": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(
            f / "unet" / "diffusion_pytorch_model.bin"
        ),
        "diffusion_pytorch_model.bin is pickled",
    ),
    "no weights": (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "there are no weights"),
    "damaged weights": (
        lambda f: os.truncate(f / "unet" / "diffusion_pytorch_model.safetensors", 1000),
        "unet: cannot be read",
    ),
    "weights that lack one": (lambda f: _drop(f / "unet" / "diffusion_pytorch_model.safetensors"), "the weights lack"),
    "text weights that lack one": (lambda f: _drop(f / "text_encoder" / "model.safetensors"), "the weights lack"),
    "another latent": (
        lambda f: toys.edit(f / "vae" / "config.json", latent_channels=3),
        "vae: cannot be read",
    ),
    "another width": (
        lambda f: toys.text_encoder(width=16).save_pretrained(f / "text_encoder"),
        "the unet takes embeddings of 8 numbers and text_encoder gives 16",
    ),
    "a kernel of others": (
        lambda f: toys.edit(f / "text_encoder" / "config.json", attn_implementation="a/b"),
        "text_encoder/config.json: attn_implementation = a/b may run code of others; eager, sdpa are allowed",
    ),
    "no size": (lambda f: toys.edit(f / "unet" / "config.json", sample_size=None), "does not say its sample_size"),
    "damaged tokenizer": (
        lambda f: [file.write_text("{") for file in (f / "tokenizer").iterdir()],
        "tokenizer: cannot be read",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_directory(what: str, copy: Path) -> None:
    damage, says = BROKEN[what]
    damage(copy)
    assert says in refused(copy)


def test_an_inpainting_unet_is_refused(copy: Path) -> None:
    toys.text_unet(9).save_pretrained(copy / "unet")
    assert "the unet takes 9 channels and the vae has 4" in refused(copy)
    toys.text_unet(4, out_channels=8).save_pretrained(copy / "unet")
    assert "takes 4 channels and gives 8" in refused(copy)


def test_class_conditional_ones_that_do_not_fit(models: Path, tmp_path: Path) -> None:
    assert "the unet has no classes" in refused(toys.class_conditional(tmp_path / "none", embeds=None))
    assert "3 classes and one for none; 2 are named" in refused(models / "class", classes=("cat", "dog"))
    assert load_foundation(str(models / "class")).encode_condition(["2"]).tolist() == [2]


def test_a_name_that_is_nothing() -> None:
    assert "no such directory; a directory of diffusers" in refused("nowhere")
    assert "no such directory" in refused("./nowhere/at/all")


def test_a_name_of_the_hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        if name == "nobody/nothing":
            raise OSError("404\nnot found")
        return str(models / "latent")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_foundation("someone/model").kind == "latent"
    assert not any(pattern.endswith(".bin") for pattern in calls[0][1]["allow_patterns"])
    assert "the hub does not give it (404)" in refused("nobody/nothing")


def test_the_shipped_one_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "shipped")
    assert "make one: genfed pretrain" in refused("shipped")
    monkeypatch.setattr(loading, "SHIPPED", models / "latent")
    assert load_foundation("shipped").kind == "latent"


def test_a_torchvision_that_does_not_fit(models: Path, tmp_path: Path) -> None:
    fake, about = tmp_path / "torchvision", tmp_path / "torchvision-0.1.dist-info"
    fake.mkdir()
    (fake / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    code = f"""
from genfed.core.errors import GenfedError
from genfed.foundation.loading import load_foundation
try:
    load_foundation({str(models / "latent")!r})
except GenfedError as error:
    print("SAID", error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "the installed torchvision does not fit torch: remove it" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_an_extra_that_is_not_installed(models: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "import_library", loading.import_library.__wrapped__)
    monkeypatch.setitem(sys.modules, missing, None)
    said = refused(models / "latent")
    assert "needs the extra" in said
    assert "pip install 'genfed[foundation]'" in said


def test_a_model_must_suit_the_task(models: Path) -> None:
    def task(*shape: int, classes: tuple[str, ...] = ("cat", "dog")) -> Task:
        return Task("image", shape, classes)

    name = str(models / "latent")
    foundation = Foundation(model=name)
    assert foundation.load(task(3, 8, 8), CPU, "float32") is foundation.load(task(3, 8, 8), CPU, "float32")
    for shape in ((3, 16, 16), (1, 8, 8)):
        with pytest.raises(GenfedError, match=r"its images are 3×8×8, the task's .*; set size and channels"):
            foundation.load(task(*shape), CPU, "float32")
    resized = Foundation(model=name, resize=True)
    assert resized.load(task(1, 12, 10), CPU, "float32").image_shape == (3, 8, 8)
    with pytest.raises(GenfedError, match="3 channels cannot be made 4"):
        resized.load(task(4, 8, 8), CPU, "float32")
    with pytest.raises(GenfedError, match="the task's examples are a table"):
        foundation.load(Task("table", (4,), ("a", "b")), CPU, "float32")
    with pytest.raises(GenfedError, match="steps = 2000"):
        Foundation(model=name, steps=2000).load(task(3, 8, 8), CPU, "float32")
    with pytest.raises(GenfedError, match="no negative prompt"):
        Foundation(model=str(models / "class"), negative_prompt="blurred").load(
            task(1, 8, 8, classes=("a", "b", "c")), CPU, "float32"
        )


def test_images_are_fitted_to_a_task() -> None:
    images = torch.rand(2, 3, 8, 8).requires_grad_()
    assert resize_to(images, (3, 8, 8)) is images
    grey = resize_to(images, (1, 8, 8))
    expected = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(grey[:, 0], expected)
    assert resize_to(grey, (3, 5, 9)).shape == (2, 3, 5, 9)
    resize_to(images, (1, 5, 5)).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None


def _drop(file: Path) -> None:
    weights = safetensors.torch.load_file(file)
    weights.pop(sorted(weights)[3])
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def test_an_old_directory_is_mended_as_diffusers_does(copy: Path) -> None:
    scheduler = json.loads((copy / "scheduler" / "scheduler_config.json").read_text()) | {"steps_offset": 0}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    ours = load_foundation(str(copy)).new_sampler(4).timesteps
    with pytest.warns(FutureWarning, match="steps_offset"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(copy, local_files_only=True)
    pipeline.scheduler.set_timesteps(4)
    assert list(ours) == pipeline.scheduler.timesteps.tolist()


def test_the_fingerprint_covers_what_decides_the_images(models: Path, tmp_path: Path) -> None:
    """So that a run is not resumed with a model of the same weights that reads prompts or computes in another way."""

    def fingerprint(root: Path) -> str:
        return load_foundation(str(root)).fingerprint

    known = fingerprint(models / "latent")
    same = Path(shutil.copytree(models / "latent", tmp_path / "same"))
    for part in ("text_encoder", "unet", "vae"):
        file = same / part / "config.json"
        file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items())), indent=7))
    assert fingerprint(same) == known
    changes: dict[str, Callable[[Path], object]] = {
        "activation": lambda f: toys.edit(f / "text_encoder" / "config.json", hidden_act="relu"),
        "norm": lambda f: toys.edit(f / "unet" / "config.json", norm_eps=0.1),
        "schedule": lambda f: toys.edit(f / "scheduler" / "scheduler_config.json", beta_end=0.5),
    }
    for name, change in changes.items():
        change(root := Path(shutil.copytree(models / "latent", tmp_path / name)))
        assert fingerprint(root) != known, name
    model = load_foundation(str(same))
    vars(model.conditions)["tokenizer"].add_tokens(["another"])
    assert model.fingerprint != known
