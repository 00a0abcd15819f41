"""What is computed from private examples without noise is said, and refused where a site demands privacy."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import genfed
from genfed.config.reader import read_source
from genfed.core.errors import GenfedError
from genfed.data.encoder import digest_encoder
from genfed.data.fitted import describe_fitted
from genfed.deployment.site_data import describe_holdings
from genfed.deployment.site_settings import read_site
from genfed.training.pixels import normalize_pixels
from tests.conftest import tiny

DRAW = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = "\n".join(f"{DRAW.normal():.3f},{'ab'[i % 2]},{i % 2}" for i in range(40))
    (tmp_path / "a.csv").write_text(f"x,kind,label\n{rows}\n")
    return tmp_path


def fitted(**settings: Any) -> str:
    source = read_source(settings)
    return describe_fitted(source, source.load())


def test_a_table_is_fitted_unless_its_schema_is_given(table: Path) -> None:
    settings = {"kind": "table", "path": str(table / "a.csv"), "label": "label"}
    assert "set data.encoder" in fitted(**settings)
    genfed.run(tiny("local") | {"data": settings, "federation": {"clients": 2, "architectures": ["linear"]}},
               out=table / "run")  # fmt: skip
    assert fitted(**settings, encoder=str(table / "run" / "encoder.json")) == ""


def test_pixels_are_fitted_unless_their_scale_is_set(tmp_path: Path) -> None:
    x, y = DRAW.normal(0, 3, (40, 8, 8)), np.arange(40) % 2
    np.savez(tmp_path / "z.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=DRAW.integers(256, size=(40, 8, 8), dtype=np.uint8), y=y)
    assert "set data.pixels" in fitted(kind="npz", path=str(tmp_path / "z.npz"))
    assert fitted(kind="npz", path=str(tmp_path / "z.npz"), pixels=[-12, 12]) == ""
    assert "set data.pixels" in fitted(kind="npz", path=str(tmp_path / "b.npz")), "of other bytes it is 0 and 1"
    assert fitted(kind="npz", path=str(tmp_path / "b.npz"), pixels=[0, 255]) == ""
    assert fitted(kind="digits") == "", "it is known beforehand"


@pytest.mark.parametrize("scale", ["standard", "range", "none"])
def test_rows_of_an_array_are_fitted_unless_their_schema_is_given(tmp_path: Path, scale: str) -> None:
    """Also where they happen to have mean 0 and variance 1, and where nothing is scaled but medians are kept."""
    x = np.array([-1.0, 1.0] * 20)[:, None] * np.ones((1, 3))
    np.savez(tmp_path / "f.npz", x=x, y=np.arange(40) % 2)
    assert "set data.encoder" in fitted(kind="npz", path=str(tmp_path / "f.npz"), scale=scale)


WHITE = {"uint8": 255, "uint16": 4095, "int64": 16, "float32": 1.0, "float16": 1.0}


@pytest.mark.parametrize("black", ["0", "own"])
@pytest.mark.parametrize("strange", [0.0, 0.004, 0.3141, -0.3, 1.3])
@pytest.mark.parametrize("settings", [{}, {"size": 3}, {"channels": 3}])
@pytest.mark.parametrize("kind", WHITE)
def test_no_image_of_an_array_changes_another_where_pixels_are_set(
    kind: str, settings: dict[str, Any], strange: float, black: str, tmp_path: Path
) -> None:
    white = WHITE[kind]
    low = 0 if black == "0" else -white if kind[0] in "if" else white // 8
    x = DRAW.integers(0, 2, (30, 4, 4)) * white
    x[3:6] = DRAW.integers(0, 256, (3, 4, 4)) * (white / 255)
    neighbor = x.copy()
    neighbor[0, 0, :2] = strange * white, white * 1.2
    found = []
    for name, given in (("x", x), ("neighbor", neighbor)):
        given = np.clip(given, 0, 255) if kind == "uint8" else np.clip(given, 0, None) if kind == "uint16" else given
        stored, y, file = given.astype(kind), np.arange(30) % 2, tmp_path / f"{name}.npz"
        np.savez(file, x_train=stored, y_train=y, x_test=stored, y_test=y)
        source = read_source({"kind": "npz", "path": str(file), "pixels": [low, white], "validation": 0.0} | settings)
        data = source.load()
        found.append((normalize_pixels(data.train.x)[1:], digest_encoder(data.encoder, "image")))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1], "which leaves the site"


@pytest.mark.parametrize("pixels", [[0, 255], [0, 1]])
@pytest.mark.parametrize("strange", ["dark", "deep"])
def test_no_image_file_changes_another_where_pixels_are_set(pixels: list[int], strange: str, tmp_path: Path) -> None:
    white, found = pixels[1], []
    for name in ("x", "neighbor"):
        draw = np.random.default_rng(1)
        for part, label, i in itertools.product(("train", "test"), "ab", range(4)):
            place = tmp_path / name / part / label / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((draw.integers(0, 2, (4, 4)) * white).astype(np.uint8))
            if (name, part, label, i) == ("neighbor", "train", "a", 0):
                values = np.eye(4) * 2
                image = Image.fromarray(values.astype(np.uint8) if strange == "dark" else values.astype(np.uint16))
            image.save(place)
        about = {"kind": "folder", "path": str(tmp_path / name), "pixels": pixels, "validation": 0.0}
        data = read_source(about).load()
        found.append((normalize_pixels(data.train.x)[1:], digest_encoder(data.encoder, "image")))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_dark_images_of_many_bits_are_on_the_scale_that_is_set(tmp_path: Path) -> None:
    """Though they would fit into bytes."""
    x = np.array([[0, 200], [100, 0]], np.uint16).reshape(2, 1, 2)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1], x_test=x, y_test=[0, 1])
    source = read_source({"kind": "npz", "path": str(tmp_path / "a.npz"), "pixels": [0, 4000], "validation": 0.0})
    data = source.load()
    assert normalize_pixels(data.train.x).flatten().tolist() == pytest.approx([-1, -0.9, -0.95, -1])
    np.savez(tmp_path / "new.npz", x=x)
    (read,) = source.read(str(tmp_path / "new.npz"), data.task, data.encoder)
    assert torch.equal(read.x, data.train.x)


@pytest.mark.parametrize("demand", ["privacy", "client_privacy"])
def test_a_site_that_demands_privacy_refuses_a_fitted_encoder(table: Path, demand: str) -> None:
    """Also where the demand came after the data were stored."""
    text = 'name = "a"\narchitecture = "linear"\n[data]\nkind = "table"\npath = "a.csv"\nlabel = "label"\n'
    text += '[link]\naddress = "127.0.0.1:9092"\ninsecure = true\n'
    (table / "a.toml").write_text(text)
    describe_holdings(read_site(table / "a.toml"))
    (table / "a.toml").write_text(f"{text}[{demand}]\nepsilon = 8.0\ndelta = 1e-5\n")
    with pytest.raises(GenfedError, match=rf"\[{demand}\] does not cover how examples are encoded: the medians"):
        describe_holdings(read_site(table / "a.toml"))


def image_site(folder: Path, parts: Sequence[str], **data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    x, y = DRAW.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8), np.arange(60) % 2
    given: dict[str, Any] = {f"x_{part}": x for part in parts} | {f"y_{part}": y for part in parts}
    np.savez(folder / "a.npz", **given)
    about = {"kind": "npz", "path": "a.npz", "pixels": [0, 255]} | data
    text = 'name = "a"\narchitecture = "linear"\n[link]\naddress = "127.0.0.1:9092"\ninsecure = true\n'
    text += "[data]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in about.items())
    (folder / "a.toml").write_text(text)
    return folder / "a.toml"


def demand_of(file: Path, table: str) -> Path:
    file.write_text(file.read_text() + f"[{table}]\nepsilon = 8.0\ndelta = 1e-5\n")
    return file


def test_a_site_with_a_budget_of_examples_removes_no_copies(tmp_path: Path) -> None:
    file = image_site(tmp_path, ["train"], deduplicate=True)
    describe_holdings(read_site(file))
    with pytest.raises(GenfedError, match=r"\[privacy\] does not cover data.deduplicate"):
        describe_holdings(read_site(demand_of(file, "privacy")))


@pytest.mark.parametrize(
    ("parts", "data", "said"),
    [
        (["train"], {}, "genfed would split validation and test off"),
        (["train"], {"validation": 0.0}, "genfed would split test off"),
        (["train", "test"], {}, r"genfed would split validation off.*; or set data.validation = 0"),
        (["train", "test"], {"validation": 0.0}, ""),
        (["train", "validation", "test"], {}, ""),
    ],
)
def test_a_site_with_a_budget_of_examples_needs_parts(
    parts: list[str], data: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """One label decides in a split by class which other examples are trained on. Also where the demand came later."""
    file = image_site(tmp_path, parts, **data)
    describe_holdings(read_site(file))
    demand_of(file, "privacy")
    if not said:
        describe_holdings(read_site(file))
        return
    with pytest.raises(GenfedError, match=rf"\[privacy\] does not cover which examples are trained on: {said}"):
        describe_holdings(read_site(file))


def test_a_site_with_a_budget_of_its_own_may_split_its_data(tmp_path: Path) -> None:
    """All of its examples together are protected."""
    describe_holdings(read_site(demand_of(image_site(tmp_path, ["train"]), "client_privacy")))


def test_a_site_with_a_budget_of_examples_needs_the_scale_of_pixels(tmp_path: Path) -> None:
    file = demand_of(image_site(tmp_path, ["train", "test"], validation=0.0), "privacy")
    describe_holdings(read_site(file))
    file.write_text(file.read_text().replace("pixels = [0, 255]\n", ""))
    with pytest.raises(GenfedError, match=r"the scale of the pixels is chosen by all .*; set data\.pixels"):
        describe_holdings(read_site(file))


def test_a_simulation_under_privacy_says_so(table: Path) -> None:
    pytest.importorskip("opacus")
    data = {"kind": "table", "path": str(table / "a.csv"), "label": "label"}
    config = tiny("local") | {"data": data, "federation": {"clients": 2, "architectures": ["linear"]}}
    privacy = {"kind": "dp_sgd", "epsilon": 50.0, "delta": 1e-3, "max_grad_norm": 1.0, "reproducible_noise": True}
    report = genfed.run(config | {"privacy": privacy}, out=table / "run", tell=lambda summary: None)
    assert any("ε does not cover how examples are encoded" in line for line in report.data_summary.warnings)
