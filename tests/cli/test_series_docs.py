"""The worked example of docs/series.md works as it is printed."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from tests.cli.test_readme import ROOT
from tests.conftest import start

PAGE = (ROOT / "docs" / "series.md").read_text("utf-8")


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (config,) = (block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "[data]" in block)
    (tmp_path / "waves.py").write_text(code, "utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "waves.py"))
    report = start(tomllib.loads(config) | {"compute": {"workers": 0}}, tmp_path / "run")
    accuracy = {trial.method: trial.accuracy for trial in report.trials}
    assert accuracy["fedcgs"] > 0.9
    assert accuracy["gefl"] > accuracy["local"]
