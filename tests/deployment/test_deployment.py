"""Federations on the loopback device: real SuperLinks and SuperNodes, with TLS and keys. They end what they started."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from genfed.core.errors import GenfedError
from genfed.report.results import from_json
from tests.cli.test_readme import README, ROOT
from tests.conftest import start

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.deployment import processes as flower_processes
from genfed.deployment import site_settings, superlink
from genfed.deployment.certificates import make_keys
from genfed.deployment.link_check import check_link
from genfed.deployment.processes import free_port
from genfed.deployment.server import ServeRequest
from tests.deployment.test_sites import sites, some, state_of

pytestmark = [pytest.mark.flower, pytest.mark.timeout(1200)]
TOYS = "tests.toys"


class Federation:
    """Three sites with keys, and the server of the systemd units, which outlives runs: started once for all tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.address, self.link = (flower_processes.Address("127.0.0.1", free_port()) for _ in range(2))
        make_keys(folder / "keys", NAMES)
        # In memory where that can be: the link waits five seconds for its data base, and a busy disk takes longer.
        self.database = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else folder))
        self.home = folder / "flower"
        self.home.mkdir()
        with superlink._connect(self.link, folder / "keys", self.home):
            pass

    def prepare(self, config: dict[str, Any], name: str, **changes: dict[str, Any]) -> None:
        """Writes NAME.toml, and sites whose data are those of its clients; `changes` by name of the site."""
        ways = {n: {"link": self.way(n)} | changes.get(n, {}) for n in NAMES}
        sites(config, self.folder / "sites", **ways)
        (self.folder / f"{name}.toml").write_text(tomli_w.dumps(config))

    def way(self, name: str) -> dict[str, Any]:
        return {"address": str(self.address), "certificate": "../keys/ca.crt", "key": f"../keys/{name}"}

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        around = {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent / 'quick'}"} | dict(env or {})
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | around,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def unit(self, name: str) -> None:
        """Starts a systemd unit's command, under another path and at another port."""
        text = (ROOT / "examples" / "deployment" / "systemd" / f"genfed-{name}.service").read_text()
        text = text.replace("\\\n", " ").replace("/srv/genfed/venv/bin", str(Path(sys.executable).parent))
        text = text.replace("/srv/genfed/state.db", str(self.database / "state.db"))
        text = text.replace("/srv/genfed", str(self.folder)).replace("0.0.0.0:9092", str(self.address))
        text = text.replace(":9093", f":{self.link.port}").replace("--port 9093", f"--port {self.link.port}")
        settings = [line.split("=", 1) for line in text.splitlines() if line.startswith(("ExecStart=", "Environment="))]
        pairs = [word for key, value in settings if key == "Environment" for word in value.split()]
        (command,) = [value for key, value in settings if key == "ExecStart"]
        self.start(name, command.split(), dict(pair.split("=", 1) for pair in pairs))

    def join(self, name: str, moods: str = "") -> None:
        (self.folder / f"{name}.moods").write_text(moods)
        moody = {"GENFED_TEST_MOODS": str(self.folder / f"{name}.moods")}
        self.start(name, [*GENFED, "join", f"sites/{name}.toml"], moody)

    def serve(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """One of the server's commands, to its end."""
        done = subprocess.run(
            [*GENFED, *words, "--address", str(self.link), "--keys", "keys", "--running"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1000,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def kill(self, *words: str) -> None:
        """Kills every process of this federation's whose command has all the words."""
        killed = [number for number in processes(f"{self.folder}") if all(w in command_of(number) for w in words)]
        assert killed
        for number in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def end(self, *names: str) -> None:
        for name in names or list(self.running):
            flower_processes.end_process(self.running.pop(name), 5)


NAMES = ("a", "b", "c")
GENFED = (sys.executable, "-m", "genfed")


def processes(home: str) -> list[int]:
    """Those whose home of Flower's is in that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"FLWR_HOME={home}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def until(true: Callable[[], Any], seconds: float = 900) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    try:
        made.unit("link")
        until(lambda: flower_processes.is_listening(made.link), 120)
        made.unit("runs")
        made.unit("gateway")
        until(lambda: flower_processes.is_listening(made.address), 120)
        for name in NAMES:
            superlink._register(made.folder / "keys" / f"{name}.pub", made.home)
        yield made
    finally:
        made.end()
        shutil.rmtree(made.database)
        until(lambda: not processes(str(made.folder)), 60)  # nothing that was started is left


@pytest.mark.federation
def test_the_readme_s_section_ends_with_gefl_trained_over_tls(tmp_path: Path) -> None:
    """Word for word, but for the installation and with fewer rounds and epochs, and no baseline."""
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "genfed serve" in b)
    script = "\n".join(line for line in block.splitlines() if not line.startswith("pip install"))
    few = "--set baselines=[] --set defaults.rounds=1 --set defaults.training.epochs=1"
    for setting in ("generator_rounds", "generator_epochs", "synthetic_epochs"):
        few += f" --set method.gefl.{setting}=1"
    script = script.replace("digits.toml ", f"digits.toml {few} ").replace("127.0.0.1:9092", f"127.0.0.1:{free_port()}")
    port = re.search(r"127\.0\.0\.1:(\d+)", script)
    assert port
    script = script.replace("--keys trial/keys --out", f"--keys trial/keys --address {port[0]} --out")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, what in (("genfed", "-m genfed"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    clone = tmp_path / "genfed"  # which Flower would take for an app: the name is that of the link
    clone.mkdir()
    (clone / "pyproject.toml").write_text('[project]\nname = "genfed"\n')
    done = subprocess.run(
        ["bash", "-emc", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert state_of(tmp_path / "trial" / "served", "gefl") == state_of(tmp_path / "trial" / "embedded", "gefl")
    table = (tmp_path / "trial" / "compare" / "compare.md").read_text()
    assert "trial/served" in table
    assert "trial/embedded" in table


@pytest.mark.federation
def test_who_has_no_key_or_no_tls_is_not_let_in(federation: Federation) -> None:
    federation.prepare(some("fedavg", federation={"architectures": ["linear"]}), "plain")
    make_keys(federation.folder / "others", ["b"])
    ways = {
        "stranger": federation.way("b") | {"key": "../others/b"},
        "open": {"address": str(federation.address), "insecure": True},
        "misled": federation.way("b") | {"certificate": "../others/ca.crt"},
    }
    there = {name: federation.folder / "sites" / f"{name}.toml" for name in ways}
    for name, way in ways.items():
        text = (federation.folder / "sites" / "b.toml").read_text().partition("[link]")[0]
        there[name].write_text(text + tomli_w.dumps({"link": way}))
    with pytest.raises(GenfedError, match=f"{federation.address} speaks TLS and link.insecure = true"):
        check_link(site_settings.read_site(there["open"]))
    with pytest.raises(GenfedError, match=f"the certificate of {federation.address} is not signed by link.cert"):
        check_link(site_settings.read_site(there["misled"]))
    federation.join("a")
    federation.start("stranger", [*GENFED, "join", str(there["stranger"])])
    log = federation.folder / "stranger.log"
    until(lambda: "does not know the key of b" in text_of(log), 120)
    assert len(text_of(log).partition("site b: ")[2].splitlines()) == 2, "a line about the site, and one about the key"
    assert federation.running["stranger"].poll() is None, "its key may be admitted yet"
    federation.end("stranger")
    done = federation.serve("federation", "check", "plain.toml", "--wait", "40", check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("genfed: 1 of 3 sites have joined\n")
    assert re.search(r"│ a +│ linear +│", done.stdout)
    federation.end("a")


HOSTILE = {
    "pyproject.toml": """
[project]
name = "hostile"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "hostile"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "at_the_server:app"
clientapp = "at_a_site:app"
[tool.flwr.app.config]
says = ""
marker = ""
""",
    "at_the_server.py": """
import pathlib, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    content = RecordDict({"message": ConfigRecord({"head": '{"ask": "hello"}', "skeleton": "{}"})})
    replies = grid.send_and_receive([Message(content, node, "query") for node in nodes], timeout=120)
    said = [str(reply.error) if reply.has_error() else reply.content["message"]["head"] for reply in replies]
    pathlib.Path(context.run_config["says"]).write_text("\\n".join(said))
""",
    "at_a_site.py": """
import os, pathlib
from flwr.clientapp import ClientApp
pathlib.Path("MARKER").touch()
app = ClientApp()
""",
}
"""An app that leaves a mark on every machine whose node loads it."""


@pytest.mark.federation
def test_neither_a_site_nor_the_server_runs_code_at_a_site(federation: Federation) -> None:
    """A site with a key of its own finds no way to start an app; one that the SuperLink sends is not looked at."""
    folder, marker, says = federation.folder, federation.folder / "marker", federation.folder / "says"
    federation.prepare(some("fedavg", federation={"architectures": ["linear"]}), "plain")
    (folder / "hostile").mkdir()
    for name, text in HOSTILE.items():
        (folder / "hostile" / name).write_text(text.replace("MARKER", str(marker)))
    federation.join("a")
    until(lambda: "connected to" in text_of(folder / "a.log"), 120)
    with contextlib.chdir(folder / "hostile"):
        for where, admitted in ((federation.address, False), (federation.link, True)):
            home = folder / f"home-{where.port}"
            home.mkdir()
            with superlink._connect(where, folder / "keys", home):
                about = f'says="{says}" marker="{marker}"'
                command = [
                    flower_processes.find_program("flwr"),
                    "run",
                    ".",
                    "genfed",
                    "--stream",
                    "--run-config",
                    about,
                ]
                done = subprocess.run(
                    command, env=flower_processes.flower_environment(home), capture_output=True, text=True, timeout=300
                )
            assert ("started run" in done.stdout) == admitted, done.stdout + done.stderr
    until(lambda: bool(text_of(says)), 400)  # it is there before it is written
    assert "it is no message of genfed" in says.read_text(), "the site answered by itself"
    assert not marker.exists()
    outside = ssl.create_default_context(cafile=str(folder / "keys" / "ca.crt"))
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/docs"):
        door = http.client.HTTPSConnection("127.0.0.1", federation.address.port, context=outside, timeout=30)
        with contextlib.closing(door):
            door.request("POST", path, b"")
            assert door.getresponse().status == 404
    with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
        elsewhere.connect(("127.0.0.2", federation.link.port))  # the SuperLink listens at 127.0.0.1 alone
    federation.end("a")


@pytest.mark.federation
def test_what_goes_wrong_at_sites_is_named_and_the_round_goes_on(federation: Federation) -> None:
    """Handlers that raise, answer with rubbish, wrong shapes or NaN, a process that dies, one that takes too long."""
    # An hour: a busy site is no straggler. It passes at once (deployment/quick) when only the sleeping one is left.
    few = {"architectures": ["linear", f"{TOYS}:Unruly", f"{TOYS}:Unruly"], "quorum": 0.3, "timeout": 3600.0}
    federation.prepare(some("fedavg", federation=few, defaults={"rounds": 3}, evaluation={"every": 0}), "unruly")
    federation.join("a")
    federation.join("b", "raise shape kill")
    federation.join("c", "nan rubbish sleep")
    federation.start("serve", [*GENFED, "serve", "unruly.toml", "--address", str(federation.link), "--keys", "keys",
                               "--running", "--out", "unruly"])  # fmt: skip
    report = federation.folder / "unruly" / "report.json"
    late = "took longer than 3600 s"
    until(lambda: late in text_of(federation.folder / "unruly" / "run.log"))
    (federation.folder / "c.moods.awake").touch()
    assert federation.running.pop("serve").wait(600) == 0, text_of(federation.folder / "serve.log")
    (trial,) = from_json(report.read_text()).trials
    text = "\n".join(trial.failures)
    for says in (
        "train round 1: client 1 excluded: site b: ValueError; its own log says more",
        "train round 1: client 2 excluded: ",
        "train round 2: client 1 excluded: ",
        "train round 2: client 2 excluded: site c: it is no message of genfed (RecordError: not a packed record",
        "client 1: site b: its process died; sent again",
        f"train round 3: client 2 excluded: site c: {late}",
    ):
        assert says in text
    assert "numbers that are not finite" in text
    assert "client 0" not in text
    assert "train round 3: client 1 excluded" not in text, "it was sent again and answered"
    assert "this network cannot be trained" in (federation.folder / "sites" / "b" / "site.log").read_text()
    federation.end(*NAMES)


@pytest.mark.federation
def test_a_node_a_link_and_a_server_are_killed_and_the_bits_stay(federation: Federation) -> None:
    config = some("gefl", federation={"timeout": 300.0}, evaluation={"every": 0})
    federation.prepare(config, "killed")
    start(some("gefl", evaluation={"every": 0}), federation.folder / "embedded")  # a timeout is for processes
    for name in NAMES:
        federation.join(name)
    words = ("serve", "killed.toml", "--address", str(federation.link), "--keys", "keys", "--running")
    federation.start("serve", [*GENFED, *words, "--out", "killed"])
    out = federation.folder / "killed"
    rows = out / "metrics.jsonl"

    def rounds() -> int:
        return len({(row["phase"], row["round"]) for row in map(json.loads, text_of(rows).splitlines())})

    until(lambda: rounds() == 1)
    federation.kill("flower-supernode", "sites/b/")
    until(lambda: rounds() == 2)
    federation.kill("flower-superlink")
    federation.running.pop("link").wait()
    time.sleep(3)
    federation.unit("link")
    until(lambda: rounds() == 3)
    federation.kill("flwr-serverapp")
    assert federation.running.pop("serve").wait(600) == 2, text_of(federation.folder / "serve.log")
    assert not (out / "report.json").exists()
    federation.serve("serve", "killed.toml", "--out", "killed", "--resume")
    (trial,) = from_json((out / "report.json").read_text()).trials
    assert not [line for line in trial.failures if "excluded" in line]
    assert state_of(out, "gefl") == state_of(federation.folder / "embedded", "gefl")
    federation.end(*NAMES)


@pytest.mark.federation
def test_a_method_of_ones_own_under_masks_survives_a_kill_and_a_late_site(federation: Federation) -> None:
    """A site is killed within the five exchanges of a round; another one joins that the run does not need."""
    config = some("mine", method={"mine": {"kind": f"{TOYS}:Paired"}}, federation={"architectures": ["linear"]},
                  secure_aggregation={}, evaluation={"every": 0})  # fmt: skip
    start(config, federation.folder / "alone")
    allow = {name: {"allow": [f"{TOYS}:Paired"]} for name in NAMES}
    federation.prepare(config, "masked", **allow)
    for name in NAMES:
        federation.join(name)
    words = ("serve", "masked.toml", "--address", str(federation.link), "--keys", "keys", "--running")
    federation.start("serve", [*GENFED, *words, "--out", "masked"])
    seen = federation.folder / "sites" / "b" / "audit.jsonl"
    until(lambda: '"phase": "train.' in text_of(seen))
    federation.kill("flower-supernode", "sites/b/")
    late = federation.folder / "sites" / "late.toml"
    late.write_text((federation.folder / "sites" / "a.toml").read_text().replace('name = "a"', 'name = "late"'))
    federation.start("late", [*GENFED, "join", str(late)])
    assert federation.running.pop("late").wait(120) == 2
    assert "knows this key as site 'a', and " in text_of(federation.folder / "late.log")
    make_keys(federation.folder / "more", ["late"])
    shutil.copy(federation.folder / "more" / "late.pub", federation.folder / "keys")
    superlink._register(federation.folder / "keys" / "late.pub", federation.home)
    late.write_text(late.read_text().replace("../keys/a", "../more/late"))
    federation.start("late", [*GENFED, "join", str(late)])
    until(lambda: "connected to" in text_of(federation.folder / "late.log"), 120)
    if federation.running.pop("serve").wait(900):  # a machine so busy that b came back after its two minutes
        assert "2 clients of architecture linear are left" in text_of(federation.folder / "serve.log")
        federation.serve("serve", "masked.toml", "--out", "masked", "--resume")
    assert state_of(federation.folder / "masked", "mine") == state_of(federation.folder / "alone", "mine")
    (federation.folder / "keys" / "late.pub").unlink()
    federation.end(*NAMES, "late")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = 3", "name = 3: expected text"),
        ('name = "a"', "this setting is required"),
        (
            'name = "a"\narchitecture = "linear"\n[data]\nkind = "digits"\n[link]\nadress = "x"',
            "did you mean 'address'",
        ),
        ('name = "a/b"\narchitecture = "linear"\n[data]\nkind = "digits"', "name = 'a/b': "),
        ('name = "a"\narchitecture = "linear"\n[data]\nkind = "npz"\npath = "no.npz"', "no.npz"),
        ('name = "a"\narchitecture = "no"\n[data]\nkind = "digits"', "no such architecture: 'no'"),
        (
            'name = "a"\narchitecture = "linear"\n[data]\nkind = "digits"\n[link]\nkey = "k"',
            "link.key = 'k': no such file",
        ),
        (
            'name = "a"\narchitecture = "linear"\n[data]\nkind = "digits"\n[link]\nkey = "k"\ninsecure = true',
            "a site without TLS shows no key",
        ),
        ("name", "not TOML"),
    ],
)
def test_a_site_s_file_that_is_wrong(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genfed.cli import main as cli

    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["join", str(tmp_path / "site.toml")])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_server_s_words_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genfed.cli import main as cli

    (tmp_path / "run.toml").write_text(tomli_w.dumps(some("fedavg")))
    run = str(tmp_path / "run.toml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, says in (
            ([], "give --keys DIR"),
            (["--keys", str(tmp_path)], f"{tmp_path}/ca.crt is missing; `genfed federation keys"),
            (["--insecure", "--address", "here"], "'here' is no address"),
            (["--insecure", "--address", f"127.0.0.1:{port}"], f"cannot listen at 127.0.0.1:{port}"),
            (["--insecure", "--set", 'methods=["centralised"]'], "centralised pools all data"),
        ):
            with pytest.raises(SystemExit) as ended:
                cli.main(["serve", run, "--out", str(tmp_path / "out"), *words])
            assert ended.value.code == 2
            assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("0.0.0.0", True),
        ("[::]", True),
        ("192.0.2.7", True),
        ("server.example.org", True),
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("[::1]", False),
        ("localhost", False),
    ],
)
def test_a_server_without_keys_that_others_reach_is_warned_of(
    host: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: Any) -> Any:
        raise GenfedError("enough")

    monkeypatch.setattr(superlink, "_open_server", stop)
    said: list[str] = []
    with pytest.raises(GenfedError, match=r"^enough$"):
        superlink.serve(
            ServeRequest("run.toml"), flower_processes.Address.of(f"{host}:9092"), None, tmp_path, said.append
        )
    assert (
        said
        == [
            f"warning: without keys and TLS, anyone who reaches {host}:9092 takes part as a site and reads all messages"
        ]
        * warned
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "server.example.org"])
def test_a_superlink_listens_for_this_machine_alone(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_keys(tmp_path / "keys", ["a"], ["server.example.org"])
    started: list[list[str]] = []

    @contextlib.contextmanager
    def record(command: list[str], *words: Any) -> Iterator[None]:
        started.append(command)
        yield

    monkeypatch.setattr(superlink, "_run_listener", record)
    monkeypatch.setattr(superlink, "_check_free", lambda address: None)
    monkeypatch.setattr(superlink, "_register", lambda public, home: None)
    monkeypatch.setattr(superlink, "_start_run", lambda *words: "")
    with pytest.raises(GenfedError, match="ended without a result"):
        superlink.serve(
            ServeRequest("run.toml"), flower_processes.Address(host, 9092), tmp_path / "keys", tmp_path, print
        )
    link, gateway = started
    assert link[link.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in link
    assert gateway[gateway.index("--address") + 1] == f"{host}:9092"
    assert gateway[gateway.index("--link") + 1] == f"127.0.0.1:{link[link.index('--port') + 1]}"
    assert link[link.index("--ssl-ca-certfile") + 1] != str(tmp_path / "keys" / "ca.crt")


@pytest.mark.federation
def test_nothing_that_was_started_is_left_even_by_a_server_that_is_killed(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["a"])
    (tmp_path / "run.toml").write_text(tomli_w.dumps(some("fedavg")))
    words = ["serve", "run.toml", "--keys", "keys", "--address", f"127.0.0.1:{free_port()}", "--out", "out"]
    server = subprocess.Popen([*GENFED, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    until(lambda: "waiting for 3 sites" in text_of(tmp_path / ".out-link" / "flwr-run.log"), 120)
    assert processes(str(tmp_path))
    server.kill()
    server.wait()
    until(lambda: not processes(str(tmp_path)), 90)
