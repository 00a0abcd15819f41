"""What a source read reaches the caller, the log, the report and its page."""

from dataclasses import replace
from pathlib import Path

import pytest

import genfed
from genfed.data.dataset import Dataset
from genfed.data.digits import Digits
from genfed.experiment.run_folder import RunFolder
from genfed.preprocessing.source_summary import SourceSummary
from tests.conftest import tiny

SAID = SourceSummary(("a.csv: 60 rows",), ("a.csv: column <id> has 60 texts; name it in drop",))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Digits.load

    def tell(self: Digits) -> Dataset:
        return replace(load(self), summary=SAID)

    monkeypatch.setattr(Digits, "load", tell)


@pytest.mark.usefixtures("told", "page")
def test_reading_is_told_logged_and_reported(tmp_path: Path) -> None:
    heard: list[SourceSummary] = []
    report = genfed.run(tiny("fedavg"), out=tmp_path / "run", tell=heard.append)
    assert heard == [SAID]
    assert report.data_summary == SAID
    log = (tmp_path / "run" / "run.log").read_text("utf-8")
    assert "INFO read: a.csv: 60 rows" in log
    assert "WARNING read: a.csv: column <id> has 60 texts" in log
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "column &lt;id&gt; has 60 texts" in page
    assert RunFolder(tmp_path / "run").read_report() == report


@pytest.mark.usefixtures("told")
def test_without_a_listener_only_warnings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    genfed.run(tiny("fedavg"), out=tmp_path / "run")
    assert [r.message for r in caplog.records if "60" in r.message] == [
        "a.csv: column <id> has 60 texts; name it in drop"
    ]
