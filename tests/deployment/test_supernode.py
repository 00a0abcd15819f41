"""What a site says and does when it cannot connect."""

import itertools
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

from genfed.core.errors import GenfedError

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.deployment import supernode
from genfed.deployment.certificates import make_keys
from genfed.deployment.processes import free_port
from genfed.deployment.site_settings import LocatedSite, read_site

pytestmark = pytest.mark.flower


@pytest.fixture
def site(tmp_path: Path) -> LocatedSite:
    link = {"address": f"127.0.0.1:{free_port()}", "insecure": True}
    about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
    (tmp_path / "north.toml").write_text(tomli_w.dumps(about))
    return read_site(tmp_path / "north.toml")


class Clock:
    """A clock that tests turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(supernode, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_an_obstacle_is_said_at_once_and_then_every_minute(site: LocatedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    now = ["no server answers"]
    monkeypatch.setattr(supernode, "check_link", lambda site: now[0])
    watch = supernode.LinkWatch(site, said.append)
    pauses = []
    for _ in range(20):
        assert not watch.look()
        pauses.append(watch.pause)
        clock.now += 9.0
    assert said == ["no server answers; trying again"] * 3, "at 0, 63 and 126 seconds"
    assert pauses[0] == 1.0
    assert pauses == sorted(pauses)
    assert max(pauses) == 10.0
    now[0] = "its certificate has expired"
    watch.look()
    assert said[3:] == ["its certificate has expired; trying again"]
    now[0] = ""
    assert watch.look()
    watch.connected()
    watch.connected()
    assert said[4:] == [f"connected to {site.config.link.address}"]
    assert watch.pause < 1.0
    now[0] = "no server answers"
    watch.look()
    assert said[5:] == ["no server answers; trying again"]


def test_a_site_gives_up_after_its_wait_and_a_connection_starts_it_anew(
    site: LocatedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    watch = supernode.LinkWatch(site, lambda line: None, wait=100.0)
    clock.now += 99
    watch.report("no server answers")
    watch.connected()
    clock.now += 99
    watch.report("no server answers")
    clock.now += 1
    with pytest.raises(GenfedError, match=r"^no server answers; gave up after 100 s$"):
        watch.report("no server answers")


def test_what_can_never_work_ends_a_site_unless_it_worked_before(
    site: LocatedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def never(site: LocatedSite) -> str:
        raise GenfedError("the server knows this key as site 'south'")

    monkeypatch.setattr(supernode, "check_link", never)
    with pytest.raises(GenfedError, match="knows this key as site 'south'"):
        supernode.join(site, said.append)
    assert said == []
    watch = supernode.LinkWatch(site, said.append)
    watch.connected()
    assert not watch.look()
    assert said[1:] == ["the server knows this key as site 'south'; trying again"]


def test_lines_of_the_server_that_repeat_are_shown_once_a_minute(
    site: LocatedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    watch = supernode.LinkWatch(site, said.append)
    watch.tell(["a", "a", "b", "b"])
    clock.now += 61
    watch.tell(["b"])
    assert said == ["a", "b", "b"]


def test_join_ends_with_2_and_one_line_where_no_server_is(
    site: LocatedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    from genfed.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["join", str(site.file), "--wait", "0"])
    assert ended.value.code == 2
    *told, last = capsys.readouterr().err.splitlines()
    assert any(line.startswith("site north: linear, ") for line in told)
    assert last.startswith(f"genfed: no server answers at {site.config.link.address} (")
    assert last.endswith("); gave up after 0 s")


def test_a_node_runs_no_apps(site: LocatedSite, tmp_path: Path) -> None:
    command = supernode.supernode_command(site, 9094, tmp_path / "secret")
    assert command[command.index("--isolation") + 1] == "process"
    assert command[command.index("--superexec-auth-secret-file") + 1] == str(tmp_path / "secret")
    first, second = (supernode._new_secret(tmp_path / "secret").read_bytes() for _ in range(2))
    assert len(first) == 32
    assert first != second
    assert (tmp_path / "secret").stat().st_mode & 0o77 == 0


def test_the_end_of_a_node_is_explained(site: LocatedSite) -> None:
    why = supernode._explain_end(site, 1, b"INFO : x\n[code: 2004] Failed to activate SuperNode.\n\n")
    assert why.startswith("the server does not admit north now: ")
    why = supernode._explain_end(site, 3, b"INFO : x\nERROR :   \x1b[31mit broke" + b"!" * 999 + b"\n")
    assert why.startswith("the SuperNode ended (exit code 3): ERROR :   \\x1b[31mit broke!!!")
    assert len(why.splitlines()) == 1
    assert len(why) < 500
    assert "it printed nothing; see " in supernode._explain_end(site, 1, b"")
    assert supernode._explain_end(site, 0, b"INFO").startswith("the server ended the connection of north: ")


def test_a_node_that_ends_is_started_again(site: LocatedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its messages and their processes with it."""
    said: list[str] = []
    numbers = itertools.count()

    def command(*words: Any) -> list[str]:
        if next(numbers) == 3:
            raise KeyboardInterrupt
        return ["sh", "-c", "echo 'it has no memory left' >&2; exit 7"]

    monkeypatch.setattr(supernode, "check_link", lambda site: "")
    monkeypatch.setattr(supernode, "supernode_command", command)
    monkeypatch.setattr(supernode.LinkWatch, "pause", 0.01)
    with pytest.raises(KeyboardInterrupt):
        supernode.join(site, said.append)
    node_log = site.folder / "node.log"
    assert said == [f"the SuperNode ended (exit code 7): it has no memory left; see {node_log}; trying again"]
    assert node_log.read_text() == "it has no memory left\n" * 3


def test_the_token_of_a_message_is_on_no_command_line(
    site: LocatedSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []
    popen = subprocess.Popen

    def record(command: list[str], **how: Any) -> Any:
        started.append(command)
        return popen(["cat"], **how)

    monkeypatch.setattr("subprocess.Popen", record)
    site.folder.mkdir()
    with (tmp_path / "out").open("wb") as log:
        supernode._start_answer(site, "127.0.0.1:1", "s3cret", log.fileno()).wait(10)
    assert (tmp_path / "out").read_text() == "s3cret\n"
    assert not any("s3cret" in word for word in started[0])


def test_a_site_with_keys_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genfed.cli.main import main

    make_keys(tmp_path / "keys", ["north"])
    for link, says in (
        ({"certificate": "no.crt", "key": "keys/north"}, "link.certificate = 'no.crt': no such file"),
        ({"certificate": "keys/ca.crt", "key": "keys/ca.crt"}, "keys/ca.crt: not a private key in OpenSSH's format"),
    ):
        about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
        (tmp_path / "north.toml").write_text(tomli_w.dumps(about))
        with pytest.raises(SystemExit) as ended:
            main(["join", str(tmp_path / "north.toml")])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


def test_a_node_that_gives_no_messages_is_no_silence(tmp_path: Path) -> None:
    import http.server
    import threading

    from genfed.engines.flower.tasks import TaskQueue

    statuses = [503, 401]

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(statuses.pop(0))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    (tmp_path / "secret").write_bytes(b"x")
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        queue = TaskQueue(f"127.0.0.1:{server.server_port}", tmp_path / "secret")
        assert queue.next() is None
        with pytest.raises(GenfedError, match=r"the SuperNode gives no messages \(HTTP status 401\)"):
            queue.next()
        queue.close()
        server.shutdown()
    assert TaskQueue(f"127.0.0.1:{free_port()}", tmp_path / "secret").next() is None
