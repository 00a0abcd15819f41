"""What CI makes of an answer of the index of vulnerabilities."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / ".ci" / "audit.py"


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_audit", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BAD = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}
GOOD = {"name": "y", "version": "1", "vulns": []}
UNKNOWN = {"name": "z", "version": "1", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code"),
    [([BAD, GOOD, UNKNOWN], 1), ([GOOD, UNKNOWN], 0), ([UNKNOWN], 0), (None, 0)],
)
def test_only_a_vulnerability_fails(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], packages: object, code: int
) -> None:
    def answer(report: Path) -> str:
        if packages is not None:
            report.write_text(json.dumps({"dependencies": packages}))
        return "ConnectionError: no route"

    monkeypatch.setattr(audit, "ask_index", answer)
    assert audit.main() == code
    out = capsys.readouterr().out
    assert ("NOT CHECKED" in out) == (packages in ([UNKNOWN], None))
    assert ("x 1: PYSEC-1, mended in 2" in out) == (code == 1)


def test_an_accepted_vulnerability_fails_nothing(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "its code is not imported")
    assert audit.judge([BAD]) == ([], 1)
