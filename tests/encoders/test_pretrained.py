"""Encoders from a directory of transformers: what they compute, and every directory that is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genfed import GenfedError, Task
from genfed.artifacts.trained_model import load_trained, select_trial
from genfed.encoders.encoder import BuiltEncoder
from genfed.encoders.pretrained import Pretrained
from genfed.experiment.run_folder import RunFolder
from tests.conftest import start, tiny
from tests.encoders.toys import vision_model, write_resnet

IMAGES = Task("image", (3, 16, 16), ("a", "b"))


def copy(to: Path) -> Path:
    return Path(shutil.copytree(vision_model(), to))


def network(model: Path, task: Task = IMAGES, **settings: Any) -> torch.nn.Module:
    return Pretrained(model=str(model), **settings).new(task, torch.Generator())


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_features_are_those_of_the_model(pooling: str) -> None:
    from transformers import ViTModel

    x = torch.rand(2, 3, 16, 16) * 2 - 1
    model = ViTModel.from_pretrained(vision_model()).eval()
    pixels = ((x + 1) / 2 - 0.5) / torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    with torch.no_grad():
        hidden = model(pixel_values=pixels).last_hidden_state
        found = network(vision_model(), pooling=pooling)(x)
    expected = hidden[:, 0] if pooling == "first" else hidden.mean(1)
    torch.testing.assert_close(found, expected / expected.square().mean(1, keepdim=True).sqrt(), atol=1e-5, rtol=1e-4)


def test_a_model_without_a_pooler_has_the_same_features_everywhere(tmp_path: Path) -> None:
    """transformers would give it a pooler of random weights."""
    import safetensors.torch

    root = copy(tmp_path / "model")
    weights = safetensors.torch.load_file(root / "model.safetensors")
    own = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(own) < len(weights)
    safetensors.torch.save_file(own, root / "model.safetensors", {"format": "pt"})
    one, other = network(root).state_dict(), network(root).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(root)(x), network(vision_model())(x))


def test_gray_images_of_another_size_are_fitted() -> None:
    gray = network(vision_model(), Task("image", (1, 28, 28), ("a", "b")))
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(gray(x), gray(x.expand(-1, 3, -1, -1)))
    assert gray(x).shape == (2, 16)


def test_maps_are_averaged(tmp_path: Path) -> None:
    write_resnet(tmp_path)
    found = network(tmp_path, Task("image", (3, 32, 32), ("a", "b")))
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    with pytest.raises(GenfedError, match="the model gives maps, which have no first token"):
        network(tmp_path, pooling="first")


def test_its_digest_covers_the_files_that_say_how_it_computes(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return BuiltEncoder(network(root), IMAGES).digest

    root = copy(tmp_path / "same")
    for name in ("config.json", "preprocessor_config.json"):
        found = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(dict(reversed(found.items())), indent=7))
    agreed = digest(vision_model())
    assert digest(root) == agreed
    changes: list[tuple[str, dict[str, object]]] = [
        ("config.json", {"hidden_act": "relu"}),  # the weights are the same, and so is every shape
        ("config.json", {"layer_norm_eps": 0.1}),
        ("preprocessor_config.json", {"size": {"height": 24, "width": 16}, "crop_size": 16}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.5]}),
    ]
    for i, (name, change) in enumerate(changes):
        rewritten(name, **change)(root := copy(tmp_path / str(i)))
        assert digest(root) != agreed, change


def test_a_finished_run_refuses_another_config(tmp_path: Path) -> None:
    root = copy(tmp_path / "model")
    encoder = {"kind": "pretrained", "model": str(root)}
    start(tiny("fedcgs", method={"fedcgs": {"encoder": encoder}}), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    config = folder.read_config()
    chosen = select_trial(folder, config, None, None, config.labels)
    load_trained(chosen, 0)
    rewritten("config.json", hidden_act="relu")(root)
    with pytest.raises(GenfedError, match="is not that of the run"):
        load_trained(chosen, 0)


def test_a_run_with_it(tmp_path: Path) -> None:
    encoder = {"kind": "pretrained", "model": str(vision_model())}
    (trial,) = start(tiny("fedcgs", method={"fedcgs": {"encoder": encoder}}), tmp_path / "run").trials
    assert not trial.failures


def without(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def rewritten(name: str, **changes: object) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).write_text(json.dumps(json.loads((root / name).read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("config.json"), "it has no config.json"),
        (without("preprocessor_config.json"), "it has no preprocessor_config.json"),
        (without("model.safetensors"), r"there are no weights; \.safetensors are allowed"),
        (lambda root: (root / "model.safetensors").rename(root / "model.bin"), "model.bin is pickled"),
        (lambda root: (root / "model.safetensors").write_bytes(b"no weights"), "cannot be read"),
        (lambda root: (root / "config.json").write_text("["), "config.json: not readable"),
        (lambda root: (root / "config.json").write_text("[]"), r"not readable \(no table\)"),
        (rewritten("config.json", model_type="none of these"), "cannot be read"),
        (rewritten("config.json", attn_implementation="a/b"), r"attn_implementation = a/b may run .*; eager, sdpa are"),
        (
            rewritten("config.json", vision={"_attn_implementation": {"": "a/b@1:c"}}),
            "= a/b@1:c may run code of others",
        ),
        (rewritten("config.json", num_hidden_layers=2), "the weights lack .* and others"),
        (rewritten("config.json", hidden_size=32), "cannot be read"),
        (rewritten("preprocessor_config.json", size=9999), "a size of 8 to 1024"),
        (rewritten("preprocessor_config.json", image_mean=[0.5]), "image_mean and image_std of three channels"),
        (rewritten("preprocessor_config.json", image_mean=["a", 1, 2]), "not readable"),
        (rewritten("preprocessor_config.json", image_std=[0.0, 1, 1]), "image_std is above 0"),
        (rewritten("preprocessor_config.json", size={"height": 32}), "it cannot read an image"),
    ],
)
def test_wrong_directories_are_refused(change: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    root = copy(tmp_path / "model")
    change(root)
    with pytest.raises(GenfedError, match=reason):
        network(root)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task("table", (5,), ("a", "b")), "takes images; the examples are a table"),
        (Task("image", (2, 16, 16), ("a", "b")), "1 or 3 channels; they have 2"),
    ],
)
def test_wrong_tasks_are_refused(task: Task, reason: str) -> None:
    with pytest.raises(GenfedError, match=reason):
        network(vision_model(), task)
