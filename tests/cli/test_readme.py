"""What the README shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from genfed.cli import main as cli
from genfed.config.reader import read_config
from tests.conftest import left_by, start, tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def block(language: str, holding: str) -> str:
    """The code block of that language that holds those words."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(b for b in blocks if holding in b)


def test_the_worked_method_runs_repeats_and_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distilled.py").write_text(block("python", "class Distilled"), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "distilled", raising=False)
    config = tiny("distilled", method={"distilled": {"kind": "distilled:Distilled"}})
    report = start(config | {"compute": {"workers": 2}}, tmp_path / "a")
    start(config, tmp_path / "b")
    assert left_by(tmp_path / "a") == left_by(tmp_path / "b")
    (trial,) = report.trials
    assert not trial.failures
    assert 4 * 100 <= trial.up_bytes / 2 < 4 * 100 + 200  # a table of 10 × 10 a round


def test_the_worked_method_is_found_where_it_was_saved(tmp_path: Path) -> None:
    """By the installed command, whose own folder, not the working directory, is on the import path."""
    (tmp_path / "distilled.py").write_text(block("python", "class Distilled"), "utf-8")
    config = tiny("distilled", method={"distilled": {"kind": "distilled:Distilled"}}, compute={"workers": 1})
    (tmp_path / "c.toml").write_text(tomli_w.dumps(config))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "genfed").write_text("from genfed.cli.main import main\nmain()\n")
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "genfed"), "run", "c.toml", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_command_of_the_readme_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each `genfed` line names a command and options that there are."""
    lines = [line.split("#")[0].split() for line in README.splitlines() if line.startswith("genfed ")]
    assert len(lines) >= 6
    for _, command, *words in lines:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert all(word in told for word in words if word.startswith("--"))
    for path in re.findall(r"configs/\w+\.toml", README):
        read_config(ROOT / path)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
