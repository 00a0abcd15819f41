"""LPIPS from a user's weights: its distance by the paper's definition, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.metrics.lpips import Lpips
from genfed.report.results import from_json
from tests.conftest import start, tiny

SHAPES = {
    "net.slice1.0": (64, 3, 11, 11),
    "net.slice2.3": (192, 64, 5, 5),
    "net.slice3.6": (384, 192, 3, 3),
    "net.slice4.8": (256, 384, 3, 3),
    "net.slice5.10": (256, 256, 3, 3),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    rng, found = torch.Generator().manual_seed(0), {}
    for place, (name, shape) in enumerate(SHAPES.items()):
        found[f"{name}.weight"] = torch.randn(shape, generator=rng) / shape[1] ** 0.5 / shape[2]
        found[f"{name}.bias"] = torch.randn(shape[0], generator=rng) / 10
        found[f"lin{place}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=rng)
    return found


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


def defined(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """LPIPS as eq. 1 of the paper has it: per layer the mean over places of the weighted squares of differences of
    features of length 1 over channels; [n].
    """
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])  # the package's own
    total = torch.zeros(len(a))
    both = [(x - shift[:, None, None]) / scale[:, None, None] for x in (a, b)]
    for place, name in enumerate(SHAPES):
        stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[place]
        if place in (1, 2):
            both = [F.max_pool2d(x, 3, 2) for x in both]
        w, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        both = [F.conv2d(x, w, bias, stride, padding).relu() for x in both]
        one, other = (F.normalize(x, dim=1) for x in both)
        share = weights[f"lin{place}.model.1.weight"]
        total += F.conv2d((one - other) ** 2, share).mean((1, 2, 3))
    return total


def test_its_distance_is_the_papers(file: Path, weights: dict[str, Tensor]) -> None:
    a, b = torch.rand(2, 4, 3, 70, 80, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network = Lpips(file)
    ours = (network(a) - network(b)).square().sum(1)
    torch.testing.assert_close(ours, defined(weights, a, b), rtol=1e-3, atol=1e-6)


def test_small_and_grey_images(file: Path) -> None:
    grey = torch.rand(2, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    network = Lpips(file)
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))
    assert len(network(grey)[0]) == len(network(torch.zeros(1, 1, 64, 128))[0])


def test_memorisation_is_a_ratio_of_distances(file: Path, weights: dict[str, Tensor]) -> None:
    images = torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    train, fresh, made = images[:2], images[2:4], images[4:]

    def nearest(of: Tensor) -> Tensor:
        far = [defined(weights, train, one.expand_as(train)) for one in of]
        return torch.stack(far).min(0).values

    expected = (nearest(fresh) / nearest(made)).mean()
    assert Lpips(file).memorization(train, fresh, made) == pytest.approx(float(expected), rel=1e-3)
    assert Lpips(file).memorization(train, fresh, train) == 1000


@pytest.mark.usefixtures("page")
def test_a_run_shows_it_beside_the_others(file: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = tiny("gefl") | {"metrics": {"samples": 20, "epochs": 1, "lpips": str(file)}}
    start(config, tmp_path / "run")
    report = from_json((tmp_path / "run" / "report.json").read_text())
    (trial,) = report.of("gefl")
    assert trial.quality is not None
    assert trial.quality.memorisation_lpips is not None
    assert "MND LPIPS" in (tmp_path / "run" / "report.html").read_text()
    assert read_config(tmp_path / "run").metrics.lpips == str(file)


def test_what_is_no_such_network_is_refused_before_training(file: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish.safetensors").write_bytes(b"rubbish")
    other = {k: v for k, v in safetensors.torch.load_file(file).items() if k != "lin4.model.1.weight"}
    safetensors.torch.save_file(other, tmp_path / "other.safetensors")
    for name, says in (
        ("none", "none.safetensors' cannot be read as .safetensors"),
        ("rubbish", "cannot be read as .safetensors"),
        ("other", r"has no lin4.model.1.weight of shape \(1, 256, 1, 1\): the file must be the state dict of LPIPS"),
    ):
        config = tiny("gefl") | {"metrics": {"samples": 20, "lpips": str(tmp_path / f"{name}.safetensors")}}
        with pytest.raises(GenfedError, match=says):
            start(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()
