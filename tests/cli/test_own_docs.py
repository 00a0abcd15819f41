"""The examples of docs/own.md work as they are printed."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.cli.test_readme import ROOT
from tests.conftest import start, tiny

PAGE = (ROOT / "docs" / "own.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of the page, each saved under the name that the page gives it."""
    classes = {"my_data": "Clusters", "my_models": "Net", "my_methods": "OneModel", "my_audit": "NearestSample"}
    classes["my_privacy"] = "NoisyUploads"
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == len(classes)
    for name, contained in classes.items():
        (code,) = (block for block in blocks if f"class {contained}(" in block)
        (tmp_path / f"{name}.py").write_text(code, "utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_data_source(tmp_path: Path) -> None:
    config = tiny("fedavg", partition={"kind": "by_column", "column": "site"})
    config |= {"federation": {"clients": 2, "architectures": ["mlp-small"]}, "data": {"kind": "my_data:Clusters"}}
    assert start(config, tmp_path / "run").trials[0].accuracy > 0.8


def test_the_model(tmp_path: Path) -> None:
    config = tiny("fedavg", federation={"architectures": ["my_models:Net", "mlp-small"]})
    assert not start(config, tmp_path / "run").trials[0].failures


def test_the_method_under_both_kinds_of_privacy(tmp_path: Path) -> None:
    method = {"one": {"kind": "my_methods:OneModel"}}
    config = tiny("one", method=method, federation={"architectures": ["mlp-small"]})
    for kind in ("dp_sgd", "dp_fedavg"):
        table = {"privacy": {"kind": kind, "epsilon": 8.0, "delta": 1e-3}}
        report = start(config | table, tmp_path / kind)
        assert report.trials[0].protection is not None


def test_the_audit(tmp_path: Path) -> None:
    audit = {"nearest": {"kind": "my_audit:NearestSample", "samples": 50}}
    start(tiny("gefl", audits=["nearest"], audit=audit), tmp_path / "run")
    (result,) = json.loads((tmp_path / "run" / "audits.json").read_text("utf-8"))["results"]
    assert result["readings"][0]["run"]["AUC"]["value"] >= 0


@pytest.mark.usefixtures("page")
def test_the_privacy_mechanism(tmp_path: Path) -> None:
    report = start(tiny("noisy", method={"noisy": {"kind": "my_privacy:NoisyUploads"}}), tmp_path / "run")
    assert "standard deviation 0.01" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert not report.trials[0].failures
