"""What uses a finished run puts pixels on the scale that its training data had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import genfed
from genfed.artifacts.export import export, read_model_card
from genfed.artifacts.predict import load_predictor, write_predictions
from genfed.artifacts.samples import write_samples
from genfed.core.errors import GenfedError
from genfed.preprocessing.pixel_scale import PixelScale
from tests.conftest import tiny

Y = np.arange(80) % 2
BYTES = (
    np.random.default_rng(0).integers(0, 120, (80, 8, 8), dtype=np.uint8) + (Y * 130).astype(np.uint8)[:, None, None]
)
BYTES[0, 0, 0] = 0


def train(folder: Path, x: Any, *methods: str, **data: Any) -> Path:
    np.savez(folder / "data.npz", x=x, y=Y)
    source = {"kind": "npz", "path": str(folder / "data.npz"), **data}
    genfed.run(
        tiny(*methods, data=source, federation={"clients": 4, "max_examples": 40, "architectures": ["linear"]}),
        out=folder / "run",
    )
    return folder / "run"


def predicted(model: Path, inputs: Path, out: Path) -> list[list[str]]:
    write_predictions(load_predictor(model, None, None, None), str(inputs), out)
    return [line.split(",")[1:] for line in out.read_text("utf-8").splitlines()[1:]]


def save_pngs(folder: Path, x: Any) -> Path:
    folder.mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize("to", [1, 255, 2.0])
def test_pictures_are_classified_alike_as_files_and_as_floats(tmp_path: Path, to: float) -> None:
    floats = BYTES / 127.5 - 1 if to == 2 else BYTES / 255 * to
    run = train(tmp_path, floats, "fedavg")
    export(run, tmp_path / "model")
    pngs = save_pngs(tmp_path / "png", BYTES)
    rows = [
        predicted(m, i, tmp_path / f"{m.name}{i.name}.csv")
        for m in (run, tmp_path / "model")
        for i in (pngs, tmp_path / "data.npz")
    ]
    assert len(rows[0]) == 80
    assert all(other == rows[0] for other in rows[1:])
    card = read_model_card(tmp_path / "model")
    assert isinstance(card.encoder, PixelScale)
    assert "of bytes from 0 to 255 it is pixel · 2/255 − 1" in card.input or to == 255
    np.savez(tmp_path / "z.npz", x=floats * 9)
    with pytest.raises(GenfedError, match=r"z.npz: x holds floats .*; the training pixels are from"):
        predicted(run, tmp_path / "z.npz", tmp_path / "z.csv")


def test_a_scale_of_the_datas_own_is_kept_and_inverted(tmp_path: Path) -> None:
    mean, deviation = 100, 60
    z = (BYTES.astype(np.float64) - mean) / deviation
    run = train(tmp_path, z, "gefl")
    card_scale = load_predictor(run, None, None, None).encoder
    assert isinstance(card_scale, PixelScale)
    assert card_scale.bytes is None
    with pytest.raises(GenfedError, match=r"000.png holds bytes from .*; the training pixels are from -1"):
        predicted(run, save_pngs(tmp_path / "png", BYTES), tmp_path / "p.csv")
    write_samples(run, tmp_path / "some.npz", 20)
    x = np.load(tmp_path / "some.npz")["x"]
    assert x.dtype == np.float32
    assert z.min() - 0.01 <= x.min() < x.max() <= z.max() + 0.01
    assert abs(x.mean() - z.mean()) < 0.4 * (z.max() - z.min())
    assert len(predicted(run, tmp_path / "some.npz", tmp_path / "some.csv")) == 20
    write_samples(run, tmp_path / "some", 4)
    with Image.open(next((tmp_path / "some").rglob("*.png"))) as picture:
        assert picture.mode == "L"
    export(run, tmp_path / "model")
    assert "−1 is -1.667 and 1 is" in read_model_card(tmp_path / "model").input


def test_samples_look_like_the_training_pictures(tmp_path: Path) -> None:
    """What `sample` saves can be read again, and `predict` classifies it."""
    run = train(tmp_path, BYTES * 1.0, "gefl")
    assert write_samples(run, tmp_path / "some.npz", 20) == 20
    arrays = np.load(tmp_path / "some.npz")
    assert arrays["x"].dtype == np.uint8
    np.savez(tmp_path / "again.npz", x=arrays["x"], y=arrays["y"], classes=arrays["classes"])
    assert len(predicted(run, tmp_path / "again.npz", tmp_path / "p.csv")) == 20
