"""`genfed predict` on the very training file gives what the evaluation counted, and says what does not fit."""

import csv
from pathlib import Path

import pytest

from genfed.cli import main as cli
from genfed.report.results import from_json
from tests.conftest import start, tiny

N = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A time of day and a truth value say the class."""
    folder = tmp_path_factory.mktemp("clock")
    ill = [i % 2 == 0 for i in range(N)]
    times = [("08:00", "09:30")[i // 2 % 2] if sick else ("16:00", "22:15")[i // 2 % 2] for i, sick in enumerate(ill)]
    rows = [
        f"{time},{sick},{30 + i * 7 % 40},{'ill' if sick else 'well'}"
        for i, (time, sick) in enumerate(zip(times, ill, strict=True))
    ]
    (folder / "a.csv").write_text("\n".join(["shift,smoker,age,label", *rows]))
    data = {"kind": "table", "path": str(folder / "a.csv"), "label": "label", "categorical": ["shift", "smoker"]}
    defaults = {"rounds": 6, "training": {"epochs": 5, "learning_rate": 0.1}}
    start(tiny("centralised") | {"data": data, "defaults": defaults}, folder / "run")
    return folder


def predict(folder: Path, inputs: str, out: Path) -> list[dict[str, str]]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(folder / "run"), str(folder / inputs), "--out", str(out)])
    assert ended.value.code == 0
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_training_file_is_classified_as_in_training(folder: Path, tmp_path: Path) -> None:
    report = from_json((folder / "run" / "report.json").read_text())
    assert report.trials[0].clients[0].accuracy == 1
    rows = predict(folder, "a.csv", tmp_path / "p.csv")
    assert [row["label"] for row in rows] == ["ill" if i % 2 == 0 else "well" for i in range(N)]


def test_another_word_is_told_and_costs_its_own_cell(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{time},{smoker},40" for time, smoker in (("8:00:00", "TRUE"), ("22:15", "unknown"), ("16:00:00", "false"))
    ]
    (folder / "b.csv").write_text("\n".join(["shift,smoker,age", *rows]))
    found = predict(folder, "b.csv", tmp_path / "p.csv")
    assert [row["label"] for row in found] == ["ill", "well", "well"]
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "b.csv: column 'smoker': of 3, 1 value was not in the training rows" in said
    assert "unknown" not in said  # a log holds no data
