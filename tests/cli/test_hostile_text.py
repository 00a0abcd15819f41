"""What other parties say is shown, and does nothing: in the terminal, logs, reports, cells and names of folders."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.cli import main as cli
from genfed.cli.common import open_console
from genfed.core.errors import GenfedError
from genfed.core.text import LINE
from genfed.engines.in_process import InProcess
from genfed.engines.round import Failure
from genfed.report.formatting import TextTable, format_markdown
from tests.conftest import start, tiny, with_page

ESCAPE = "\x1b[2K\x1b[1A"
CLASSES = [
    "<script>alert(1)</script>",
    f"{ESCAPE}=cmd|'/C calc'!A0",
    "../up",
    "a/b",
    "CON",
    "grid.png",
    "-1",
    "x" * 300,
]
REASON = f"<script>alert(3)</script>\nWARNING forged line{ESCAPE}" + "y" * 10**6


class _Hostile(InProcess):
    def exchange(self, step: Any, jobs: Iterable[Any]) -> Iterator[Any]:
        for info, answer in super().exchange(step, jobs):
            yield info, Failure(REASON) if info.id == 2 and step.phase == "train" else answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (160, 8, 8)).astype(np.uint8), np.array(CLASSES)[np.arange(160) % len(CLASSES)]
    np.savez(folder / "d.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    data = {"kind": "npz", "path": str(folder / "d.npz"), "validation": 0.0}
    config = tiny("gefl", baselines=["local"], data=data)
    config["federation"].pop("max_examples", None)
    with pytest.MonkeyPatch.context() as patch, with_page():
        patch.setattr("genfed.experiment.local_clients.InProcess", _Hostile)
        start(config, folder / "run")
    return folder / "run"


def test_a_page_shows_names_and_runs_none_of_them(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "x" * 100 not in page


def test_a_log_holds_no_line_that_a_client_forged(run: Path) -> None:
    text = (run / "run.log").read_text()
    assert "WARNING forged line" in text
    assert "\x1b" not in text
    assert all(re.match(r"\d{4}-\d\d-\d\d |    ", line) for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 2 * LINE
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(len(reason) for row in rows for reason in row.get("failed", {}).values()) <= LINE


def test_a_terminal_gets_no_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console()
    console.print(f"site {ESCAPE}\u202e", soft_wrap=True)
    assert capsys.readouterr().out == "site \\x1b[2K\\x1b[1A\\u202e\n"
    with pytest.raises(SystemExit):
        cli.main(["export", str(run), "--method", f"{ESCAPE}\nforged", "--out", str(run.parent / "none")])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 1


def test_samples_lie_in_folders_of_the_given_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "samples"
    with pytest.raises(SystemExit):
        cli.main(["sample", str(run), "--method", "gefl", "-n", str(len(CLASSES)), "--out", str(out)])
    assert len(list(out.iterdir())) == len(CLASSES)
    assert all(folder.is_dir() and len(list(folder.iterdir())) == 1 for folder in out.iterdir())
    assert {path.name for path in run.parent.iterdir()} >= {"samples", "run", "d.npz"}
    assert not (run.parent / "up").exists()


def test_no_cell_of_predictions_is_a_formula(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = run.parent / "new.npz", run.parent / "p.csv"
    np.savez(file, x=np.random.default_rng(1).integers(0, 255, (40, 8, 8)).astype(np.uint8))
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(run), str(file), "--method", "gefl", "--out", str(out)])
    assert ended.value.code == 0
    with out.open(newline="") as opened:
        head, *rows = csv.reader(opened)
    assert len(rows) == 40
    for cell in [*head, *(cell for row in rows for cell in row)]:
        assert cell == "-1" or cell[:1] not in tuple("=+-@\t\r")
    assert "\\x1b" in out.read_text()  # in the head, which names the classes
    assert "\x1b" not in out.read_text()


def test_markdown_holds_no_html() -> None:
    text = format_markdown(TextTable(("a|b",), [["<img src=x>\nnew"]]), "<script>")
    assert "<" not in text
    assert text.splitlines()[2] == r"| &lt;img src=x> new |"


@pytest.mark.parametrize("name", ["a\nb", "x" * 100, f"a{ESCAPE}"])
def test_a_name_of_a_run_can_be_shown(name: str) -> None:
    with pytest.raises(GenfedError, match="it names a folder") as raised:
        start({**tiny("fedavg"), "name": name}, Path("unused"))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("label", ["con", "a\nb", "x" * 65, "..", "é" * 64 + "x"])
def test_a_label_can_name_a_folder(label: str) -> None:
    with pytest.raises(GenfedError, match="is no label"):
        start(tiny(label, methods=[label]), Path("unused"))
