"""Federations on the loopback device: real SuperLinks and SuperNodes, with TLS and keys. Each ends what it started."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from genfed.core.errors import GenfedError
from genfed.report.results import from_json
from tests.app.test_readme import README, ROOT
from tests.conftest import start

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.app import link, own_site
from genfed.app.keys import make_keys
from tests.app.test_sites import sites, some, state_of

pytestmark = [pytest.mark.flower, pytest.mark.timeout(1200)]
TOYS = "tests.app.toys"


class Federation:
    """A folder of sites with keys, and the processes that were started for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, link.free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self, config: dict[str, Any]) -> None:
        names = ("a", "b", "c", "d")[: config["federation"]["clients"]]
        make_keys(self.folder / "keys", names)
        self.way = {
            n: {"address": f"127.0.0.1:{self.port}", "certificate": "../keys/ca.crt", "key": f"../keys/{n}"}
            for n in names
        }
        sites(config, self.folder / "sites", **{n: {"link": way} for n, way in self.way.items()})
        (self.folder / "run.toml").write_text(tomli_w.dumps(config))

    def command(self, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"{words[0]}-{len(self.running)}.log").open("wb")
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "genfed", *words],
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **options,
        )

    def join(self, name: str) -> None:
        self.running[name] = self.command("join", f"sites/{name}.toml")

    def kill(self, name: str) -> None:
        os.killpg(self.running[name].pid, signal.SIGKILL)
        self.running.pop(name).wait()

    def serve(self, *words: str) -> "subprocess.CompletedProcess[str]":
        address = f"127.0.0.1:{self.port}"
        return subprocess.run(
            [sys.executable, "-m", "genfed", *words, "--address", address, "--keys", "keys"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1000,
        )

    def end(self) -> None:
        for process in self.running.values():
            link.end(process, 5)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.end()


def until(true: Callable[[], Any], seconds: float = 300) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def test_the_readme_s_section_ends_with_gefl_trained_over_tls(tmp_path: Path) -> None:
    """Word for word, but for the installation and with fewer epochs."""
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "genfed serve" in b)
    script = "\n".join(line for line in block.splitlines() if not line.startswith("pip install"))
    few = "--set defaults.training.epochs=1 --set method.gefl.generator_epochs=1"
    script = script.replace("digits.toml ", f"digits.toml {few} ").replace(
        "127.0.0.1:9092", f"127.0.0.1:{link.free_port()}"
    )
    port = re.search(r"127\.0\.0\.1:(\d+)", script)
    assert port
    script = script.replace("--keys trial/keys --out", f"--keys trial/keys --address {port[0]} --out")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, what in (("genfed", "-m genfed"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
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


def test_faults_of_clients_are_named_and_the_round_goes_on(federation: Federation) -> None:
    """One raises, one's process is killed, one takes for ever; the other two are averaged."""
    kinds = ["linear", f"{TOYS}:Raises", f"{TOYS}:KillsAlways", f"{TOYS}:Sleeps"]
    few = {"clients": 4, "architectures": kinds, "quorum": 0.25, "timeout": 150.0, "examples": 320}
    config = some("fedavg", federation=few, defaults={"rounds": 1}, evaluation={"every": 0})
    federation.prepare(config)
    for name in "abcd":
        federation.join(name)
    done = federation.serve("serve", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = from_json((federation.folder / "run" / "report.json").read_text()).trials
    text = "\n".join(trial.failures)
    assert "train round 0: client 1 left out: ValueError; its own log says more" in text
    assert "train round 0: client 2 left out: its process died" in text
    assert "train round 0: client 3 left out: took longer than 150 s" in text
    assert "client 0" not in text
    assert "this network cannot be trained" in (federation.folder / "sites" / "b" / "site.log").read_text()


def test_a_node_that_is_killed_and_comes_back_and_a_server_that_is_killed(federation: Federation) -> None:
    config = some("gefl", federation={"quorum": 0.5, "timeout": 300.0}, evaluation={"every": 0})
    federation.prepare(config)
    start(config, federation.folder / "embedded")
    for name in "abc":
        federation.join(name)
    words = ("serve", "run.toml", "--out", "run", "--resume", "--keys", "keys")
    server = federation.command(*words, "--address", f"127.0.0.1:{federation.port}")
    federation.running["server"] = server
    metrics = federation.folder / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    server.send_signal(signal.SIGINT)  # it ends its link; a SuperLink that is left behind would hold the port
    server.wait(60)
    del federation.running["server"]
    federation.kill("b")
    federation.join("b")
    done = federation.serve("serve", "run.toml", "--out", "run", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = from_json((federation.folder / "run" / "report.json").read_text()).trials
    assert not [line for line in trial.failures if "left out" in line]
    assert state_of(federation.folder / "run", "gefl") == state_of(federation.folder / "embedded", "gefl")


def test_who_has_no_key_or_no_tls_is_not_let_in(federation: Federation) -> None:
    config = some("fedavg")
    federation.prepare(config)
    make_keys(federation.folder / "others", ["a", "b", "c"])
    for name, way in (("b", {"key": "../others/b"}), ("c", {"insecure": True})):
        file = federation.folder / "sites" / f"{name}.toml"
        about = {"address": f"127.0.0.1:{federation.port}"} | (federation.way["b"] | way if name == "b" else way)
        text = file.read_text().partition("[link]")[0] + tomli_w.dumps({"link": about})
        file.write_text(text)
    federation.join("a")
    federation.join("b")
    done = federation.serve("federation", "check", "run.toml", "--wait", "60")
    assert done.returncode == 2
    assert "1 of 3 sites are there" in done.stderr
    assert re.search(r"│ a +│ linear +│", done.stdout)
    until(lambda: "the server does not know the key of b" in (federation.folder / "join-1.log").read_text(), 120)
    home = federation.folder / "home"
    home.mkdir()
    address = link.Address("127.0.0.1", federation.port)
    with link.superlink(address, federation.folder / "keys", home, federation.folder / "link.log"):
        with pytest.raises(GenfedError, match=f"{address} speaks TLS and link.insecure = true"):
            link.check_link(own_site.read_site(federation.folder / "sites" / "c.toml"))
        wrong = federation.folder / "sites" / "b.toml"
        wrong.write_text(wrong.read_text().replace("../keys/ca.crt", "../others/ca.crt"))
        with pytest.raises(GenfedError, match=f"the certificate of {address} is not vouched for by link.certificate"):
            link.check_link(own_site.read_site(wrong))
        with (
            pytest.raises(GenfedError, match=f"cannot listen at {address}: Address already in use"),
            link.superlink(address, None, home, federation.folder / "link.log"),
        ):
            pass
        insecure = own_site.read_site(federation.folder / "sites" / "c.toml")
        plain = subprocess.run(
            [*link.supernode_command(insecure, link.free_port()), "--max-retries", "1"],
            env=link.environment(home),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert plain.returncode != 0


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
    from genfed.app import cli

    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["join", str(tmp_path / "site.toml")])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_server_s_words_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genfed.app import cli

    (tmp_path / "run.toml").write_text(tomli_w.dumps(some("fedavg")))
    run = str(tmp_path / "run.toml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, says in (
            ([], "say --keys DIR"),
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


def test_nothing_that_was_started_is_left(federation: Federation) -> None:
    """A link that is ended takes its own processes with it."""
    make_keys(federation.folder / "keys", ["a"])
    home = federation.folder / "home"
    home.mkdir()
    address = link.Address("127.0.0.1", federation.port)
    with link.superlink(address, federation.folder / "keys", home, federation.folder / "link.log"):
        assert _of(home)
    until(lambda: not _of(home), 60)


def _of(home: Path) -> list[str]:
    """Processes with this home of Flower's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}\0".encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found
