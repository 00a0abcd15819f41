"""What is computed from private examples without noise is said, and refused where a site demands privacy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genfed
from genfed.config.reader import read_source
from genfed.core.errors import GenfedError
from genfed.data.fitted import describe_fitted
from genfed.deployment.site_data import describe_holdings
from genfed.deployment.site_settings import read_site
from tests.conftest import tiny

DRAW = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = "\n".join(f"{DRAW.normal():.3f},{'ab'[i % 2]},{i % 2}" for i in range(40))
    (tmp_path / "a.csv").write_text(f"x,kind,label\n{rows}\n")
    return tmp_path


def fitted(**settings: Any) -> str:
    source = read_source(settings)
    return describe_fitted(source, source.load().encoder)


def test_a_table_is_fitted_unless_its_schema_is_given(table: Path) -> None:
    settings = {"kind": "table", "path": str(table / "a.csv"), "label": "label"}
    assert "set data.encoder" in fitted(**settings)
    genfed.run(tiny("local") | {"data": settings, "federation": {"clients": 2, "architectures": ["linear"]}},
               out=table / "run")  # fmt: skip
    assert fitted(**settings, encoder=str(table / "run" / "encoder.json")) == ""


def test_pixels_are_fitted_on_no_known_scale_only(tmp_path: Path) -> None:
    x, y = DRAW.normal(0, 3, (40, 8, 8)), np.arange(40) % 2
    np.savez(tmp_path / "z.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=DRAW.integers(256, size=(40, 8, 8), dtype=np.uint8), y=y)
    np.savez(tmp_path / "f.npz", x=x[:, 0], y=y)
    assert "set data.pixels" in fitted(kind="npz", path=str(tmp_path / "z.npz"))
    assert fitted(kind="npz", path=str(tmp_path / "z.npz"), pixels=[-12, 12]) == ""
    assert fitted(kind="npz", path=str(tmp_path / "b.npz")) == ""
    assert "set data.encoder" in fitted(kind="npz", path=str(tmp_path / "f.npz"))
    assert fitted(kind="npz", path=str(tmp_path / "f.npz"), scale="none") == ""


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


def test_a_simulation_under_privacy_says_so(table: Path) -> None:
    pytest.importorskip("opacus")
    data = {"kind": "table", "path": str(table / "a.csv"), "label": "label"}
    config = tiny("local") | {"data": data, "federation": {"clients": 2, "architectures": ["linear"]}}
    privacy = {"kind": "dp_sgd", "epsilon": 50.0, "delta": 1e-3, "max_grad_norm": 1.0, "reproducible_noise": True}
    report = genfed.run(config | {"privacy": privacy}, out=table / "run", tell=lambda summary: None)
    assert any("ε does not cover how examples are encoded" in line for line in report.data_summary.warnings)
