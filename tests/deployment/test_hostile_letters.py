"""What a server says is in a site's logs, and what a site says in the server's: on one line, bounded, doing nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from genfed.core.errors import GenfedError

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.cli import main as cli
from genfed.core.record import Packed
from genfed.core.text import LINE
from genfed.deployment import audit_log, site_settings
from genfed.deployment.certificates import make_keys
from genfed.deployment.processes import last_line
from genfed.deployment.roster import SiteDescription
from genfed.engines.flower.engine import METRICS, _read_reply
from genfed.engines.round import Failure
from genfed.preprocessing.source_summary import show
from tests.deployment.test_sites import asked, letter, sites, some
from tests.fuzz.hostile import bounded

ESCAPE = "\x1b[2K\x1b[1A\x1b[2K"
EMPTY = Packed({}, "{}")


def test_no_line_of_a_sites_logs_is_the_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file, *_) = sites(some("fedavg"), tmp_path / "sites")
    good = letter(some("fedavg"))
    forged = f"{ESCAPE}\n2026-01-01T00:00:00+00:00  hello 1 bytes\r\u2028"
    about = json.loads(good["open"])
    letters = [
        good | {"ask": forged},
        good | {"open": json.dumps(about | {"run": forged})},
        good | {"open": json.dumps(about | {"label": forged, "method": {"kind": forged}})},
        good | {"open": json.dumps(about | {"run": ".."})},
        good | {"open": json.dumps(about | {"label": "x" * 5000})},
        good | {"step": {"phase": forged * 1000, "round": 0, "number": 0}},
        good | {"open": '{"run":' + "[" * 100_000},
    ]
    for each in letters:
        with pytest.raises(GenfedError) as raised:
            asked(file, each, EMPTY)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) <= 400
    folder = site_settings.read_site(file).folder
    assert len((folder / "audit.jsonl").read_text().splitlines()) == len(letters)
    log = (folder / "site.log").read_text()
    assert "\x1b" not in log
    entries = [line for line in log.splitlines() if line and not line.startswith("    ")]
    assert len(entries) == len(letters)
    assert all(re.match(r"20\d\d-\d\d-\d\dT\S+ \{", line) for line in entries)
    assert all(len(line) < 2 * LINE for line in log.splitlines())
    with (folder / "audit.jsonl").open("a") as opened:  # as earlier versions wrote it
        row: dict[str, Any] = dict.fromkeys(audit_log.WORDS, forged)
        opened.write(json.dumps(row | {"bytes": 1, "says": [forged], "fields": [forged]}) + "\n")
    with pytest.raises(SystemExit):
        cli.main(["site", "audit-log", str(file)])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(letters) + 1
    assert "\x1b" not in shown


def test_a_request_is_described_without_building_what_it_says() -> None:
    large = '{"run": "r", "x": [' + "[]," * 2**20 + "[]]}"
    with bounded():
        said = audit_log.describe_request({"open": large, "ask": "work"})
    assert said == {"run": "", "method": "", "seed": "", "phase": "?", "round": ""}
    assert audit_log.describe_request({"open": '{"run": "r"}', "ask": "work"})["run"] == "r"


def test_the_last_line_of_a_log_is_one_line_that_moves_no_cursor() -> None:
    assert last_line(b"first\nboom\x1b[2K\xff\n \n") == "boom\\x1b[2K\ufffd"
    assert len(last_line(b"x" * 10**6)) == 300
    assert last_line(b" \n") == "it printed nothing"
    assert show("a\n\x1b[2Kb\u202e") == "a\\n\\x1b[2Kb\\u202e", "names in files too"
    assert len(show("x" * 999)) == 60


HERE: dict[str, Any] = {
    "name": "a",
    "architecture": "linear",
    "kind": "image",
    "shape": [1, 8, 8],
    "classes": ["x"],
    "examples": 1,
    "held_out": 1,
    "torch": "2",
    "device": "cpu",
    "memory": 0,
    "clock": 0.0,
    "demands": False,
    "node": 1,
    "heard": 0.0,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": f"a{ESCAPE}"},
        {"name": "a\n"},
        {"name": ""},
        {"architecture": "x" * 201},
        {"classes": ["x" * 201]},
        {"classes": ["x"] * 100_001},
        {"shape": [1] * 11},
        {"torch": "2" * 1000},
        {"clock": 1.7e308},
        {"clock": float("nan")},
        {"examples": 2**60},
        {"memory": -1},
    ],
)
def test_a_description_of_a_site_is_bounded(wrong: dict[str, Any]) -> None:
    read = TypeAdapter(SiteDescription).validate_python
    assert read(HERE).architecture == "linear"
    assert read(HERE | {"architecture": f"net{ESCAPE}"}).architecture == "net\\x1b[2K\\x1b[1A\\x1b[2K"
    with pytest.raises(ValidationError):
        read(HERE | wrong)


def test_metrics_of_a_client_are_bounded() -> None:
    head = {"weight": 1.0, "seconds": 0.0}
    reply = _read_reply((head | {"metrics": {f"loss{ESCAPE}\n" + "x" * 1000: 1.0}}, EMPTY))
    assert not isinstance(reply, Failure)
    assert all(name.isprintable() and len(name) <= 64 for name in reply.metrics)
    many = _read_reply((head | {"metrics": {str(i): 1.0 for i in range(METRICS + 1)}}, EMPTY))
    assert many == Failure("its answer holds 101 metrics; 100 are allowed")


@pytest.mark.parametrize("name", ["a/b", f"a{ESCAPE}", "a\n", "..", "x" * 65, ""])
def test_keys_are_made_for_names_of_sites(tmp_path: Path, name: str) -> None:
    pytest.importorskip("cryptography")
    with pytest.raises(GenfedError, match="cannot name a site") as raised:
        make_keys(tmp_path / "keys", [name])
    assert str(raised.value).isprintable()
    assert not (tmp_path / "keys").exists()
