"""Flower's own commands, started for a federation: the SuperLink and `flwr run` at the server, the SuperNode at a site.

Thin: docs/deployment.md has the same commands, to be given by hand.
"""

import contextlib
import ctypes
import http.client
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from genfed.app.keys import AUTHORITY, SERVER, SERVER_KEY
from genfed.app.serving import SAID, Outcome, Wanted, to_settings
from genfed.app.site_file import Here
from genfed.core.errors import GenfedError

APP = Path(__file__).parent / "flower_app"
"""What `flwr run` sends to the link: two lines that name genfed, installed at server and sites."""
NAME = "genfed"
"""Of the connection in Flower's configuration."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}


@dataclass(frozen=True)
class Address:
    """Where a SuperLink listens."""

    host: str
    port: int

    @staticmethod
    def of(text: str) -> "Address":
        """Reads host:port."""
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise GenfedError(f"{text!r} is no address; host:port is, such as 127.0.0.1:9092")
        return Address(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def _program(name: str) -> str:
    """One of Flower's commands, of this environment before any other."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise GenfedError(f"{name} is not installed; install it with: pip install 'genfed[flower]'")
    return found


# Flower's commands run in their home: one that is given the name of a link takes a folder of that name, such as a clone
# of genfed where the user stands, for an app of an older Flower's.


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of Flower's commands: their home, quiet, and with what this process can import."""
    paths = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p and Path(p).is_dir())
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(home.absolute()),
        "PYTHONPATH": paths,
        "PATH": programs,
        **(extra or {}),
    }


# The server.

EXPOSED = (
    "warning: whoever reaches {} can start runs there, whose code the sites run, keys or not: let only the path "
    "/v1/fleet/ through (a reverse proxy before 127.0.0.1), or the sites' addresses alone (a firewall)"
)
"""Of a SuperLink that listens beyond this machine."""


def serve(
    wanted: Wanted,
    address: Address,
    keys: Path | None,
    folder: Path,
    tell: Callable[[str], None],
    running: bool = False,
) -> Outcome:
    """Starts a SuperLink at `address`, admits the sites whose public keys are in `keys`, has the run done and stops it.

    Args:
        wanted: what to run.
        address: where sites find it.
        keys: folder of ca.crt, server.crt, server.key and a .pub per site; None: without TLS, open to anybody.
        folder: for logs and Flower's configuration.
        tell: called with each line for whoever waits.
        running: whether a SuperLink runs there already; it is used and left running.

    Raises:
        GenfedError: the port is taken, or nobody answers there, keys are missing, or the run was refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home, outcome = folder / "flower", folder / "outcome.json"
    outcome.unlink(missing_ok=True)
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(tomli_w.dumps(_connection(address, keys)))
    settings = folder / "settings.toml"
    settings.write_text(tomli_w.dumps(to_settings(Wanted(**vars(wanted) | {"outcome": str(outcome.resolve())}))))
    if not (running or address.loopback):
        tell(EXPOSED.format(address))
    if running and not _answers(address):
        raise GenfedError(f"no SuperLink answers at {address}; leave out --running to have one started")
    with contextlib.nullcontext() if running else superlink(address, keys, home, folder / "superlink.log"):
        for public in sorted(keys.glob("*.pub")) if keys else ():
            _register(public, home)
        number = _flwr_run(settings.resolve(), home, folder / "flwr-run.log", tell)
        heard = time.monotonic()
        while (
            running and not outcome.exists() and time.monotonic() - heard < SILENCE
        ):  # the link was restarted under it
            if (goes_on := _goes_on(number, home)) is False:
                break
            heard = heard if goes_on is None else time.monotonic()
            time.sleep(2)
    if not outcome.exists():
        raise GenfedError(f"Flower's run ended without a word: see {folder / 'flwr-run.log'}")
    from pydantic import TypeAdapter

    done = TypeAdapter(Outcome).validate_json(outcome.read_bytes())
    if done.error:
        raise GenfedError(done.error)
    return done


def _connection(address: Address, keys: Path | None) -> dict[str, object]:
    local = Address("127.0.0.1" if address.host in ("0.0.0.0", "[::]") else address.host, address.port)
    how = {"insecure": True} if keys is None else {"root-certificates": str((keys / AUTHORITY).resolve())}
    return {"superlink": {"default": NAME, NAME: {"address": str(local)} | how}}


def superlink_command(address: Address, keys: Path | None) -> list[str]:
    """Starts a SuperLink."""
    command = [_program("flower-superlink"), "--host", address.host.strip("[]"), "--port", str(address.port)]
    command += ["--disable-runtime-dependency-installation"]
    if keys is None:
        return [*command, "--insecure"]
    for name in (AUTHORITY, SERVER, SERVER_KEY):
        if not (keys / name).exists():
            raise GenfedError(f"{keys / name} is missing; `genfed federation keys {keys} NAME…` makes keys for a trial")
    command += ["--ssl-ca-certfile", str(keys / AUTHORITY), "--ssl-certfile", str(keys / SERVER)]
    return [*command, "--ssl-keyfile", str(keys / SERVER_KEY), "--enable-supernode-auth"]


@contextlib.contextmanager
def superlink(address: Address, keys: Path | None, home: Path, logged: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that runs as long as the block."""
    command = superlink_command(address, keys)
    _check_free(address)
    with logged.open("ab") as output:
        link = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(home),
            start_new_session=True,
            preexec_fn=_tied,
        )
    try:
        until = time.monotonic() + 120
        while not _answers(address):
            if link.poll() is not None:
                raise GenfedError(f"the SuperLink did not start ({_last_line(logged)}); see {logged}")
            if time.monotonic() > until:
                raise GenfedError(f"the SuperLink does not answer at {address} after two minutes; see {logged}")
            time.sleep(0.2)
        yield link
    finally:
        end(link)


def _tied() -> None:
    """Called in a child: it is told to end when this process does, even by a kill. Linux alone knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> None:
    """Ends a process that was started in a session of its own, and what it started in it."""
    for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, patience)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if sign == signal.SIGTERM:
                time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _check_free(address: Address) -> None:
    host = address.host.strip("[]")
    try:
        ((family, kind, proto, _, place), *_) = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise GenfedError(f"cannot listen at {address}: {error.strerror or error}; choose another --address") from None


def _answers(address: Address) -> bool:
    host = "127.0.0.1" if address.host == "0.0.0.0" else "::1" if address.host == "[::]" else address.host.strip("[]")
    try:
        socket.create_connection((host, address.port), 1).close()
    except OSError:
        return False
    return True


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _register(public: Path, home: Path) -> None:
    command = [_program("flwr"), "supernode", "register", str(public.absolute()), NAME, "--name", public.stem]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=120)
    if done.returncode and "already" not in (said := f"{done.stdout} {done.stderr}"):
        raise GenfedError(f"the SuperLink does not take {public}: {' '.join(said.split())[-300:]}")


def _flwr_run(settings: Path, home: Path, logged: Path, tell: Callable[[str], None]) -> str:
    """Returns the run's number; "": it was not started."""
    number = ""
    command = [_program("flwr"), "run", str(APP), NAME, "--stream", "--run-config", str(settings.absolute())]
    with logged.open("a", encoding="utf-8") as log:
        run = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(home) | {"NO_COLOR": "1", "COLUMNS": "400"},
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert run.stdout is not None
        try:
            for line in run.stdout:
                log.write(line)
                log.flush()
                if found := re.search(r"started run (\d+)", line):
                    number = found[1]
                if SAID in line:
                    tell(line.partition(SAID)[2].rstrip())
            run.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
            run.wait()
    return number


SILENCE = 600.0
"""Seconds that a link which was restarted may be silent before its run is given up."""


def _goes_on(number: str, home: Path) -> bool | None:
    """Whether a run is not finished; None: the link does not say."""
    command = [_program("flwr"), "ls", NAME, "--run-id", number, "--format", "json"]
    try:
        done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=60)
        (run,) = json.loads(done.stdout)["runs"]
        return not str(run["status"]).startswith("finished")
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None if number else False


# A site.


def supernode_command(site: Here, port: int) -> list[str]:
    """Starts the site's SuperNode, whose own processes find it at `port` of the loopback device."""
    link = site.config.link
    command = [_program("flower-supernode"), "--superlink", link.address, "--port", str(port)]
    command += ["--node-config", f'site="{site.file}"']
    if link.insecure:
        return [*command, "--insecure"]
    if link.certificate:
        command += ["--root-certificates", str(_there(site, "link.certificate", link.certificate))]
    if link.key:
        command += ["--auth-supernode-private-key", str(_there(site, "link.key", link.key))]
    return command


def _there(site: Here, key: str, name: str) -> Path:
    file = site.root / name
    if not file.is_file():
        raise GenfedError(f"{site.file}: {key} = {name!r}: no such file")
    return file


def free_port() -> int:
    """One of the loopback device that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_link(site: Here) -> str:
    """Tries the way to the server. Returns a line where nobody answers (yet); "" where it can be used.

    Raises:
        GenfedError: somebody answers, and not as the site's file says.
    """
    link, address = site.config.link, Address.of(site.config.link.address)
    host = address.host.strip("[]")
    try:
        with socket.create_connection((host, address.port), 5) as plain:
            if link.insecure:
                _check_plain(plain, address)
                return ""
            roots = _there(site, "link.certificate", link.certificate) if link.certificate else None
            try:
                context = ssl.create_default_context(cafile=None if roots is None else str(roots))
            except ssl.SSLError:
                raise GenfedError(f"{site.file}: link.certificate = {link.certificate!r}: not a certificate") from None
            with context.wrap_socket(plain, server_hostname=host):
                return ""
    except ssl.SSLCertVerificationError as error:
        raise GenfedError(
            f"the certificate of {address} is not vouched for by link.certificate = {link.certificate!r} "
            f"({error.verify_message}); get ca.crt from whoever runs the server"
        ) from None
    except ssl.SSLError:
        raise GenfedError(f"{address} does not speak TLS; if it is a trial without, set link.insecure = true") from None
    except OSError as error:
        return f"nobody answers at {address} yet ({error.strerror or error}); waiting"


def _check_plain(plain: socket.socket, address: Address) -> None:
    connection = http.client.HTTPConnection(address.host.strip("[]"), address.port, timeout=5)
    connection.sock = plain
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except (http.client.HTTPException, ConnectionError):
        raise GenfedError(
            f"{address} speaks TLS and link.insecure = true: set link.certificate (ca.crt) and link.key instead"
        ) from None


AGAIN = 10.0
"""Seconds after which a site whose SuperNode ended tries again."""


def join(site: Here, tell: Callable[[str], None]) -> None:
    """Has a SuperNode run until this process is told to stop. A SuperLink turns away a key that it does not know (yet),
    or whose node was killed a moment ago, and the SuperNode then ends; so it is started again.
    """
    home = site.folder / "flower"
    home.mkdir(parents=True, exist_ok=True)
    # The user's own architecture stands beside the site's file.
    paths = f"{site.root}{os.pathsep}{environment(home)['PYTHONPATH']}"
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.is_set():
            node = subprocess.Popen(
                supernode_command(site, free_port()),
                stdin=subprocess.DEVNULL,
                env=environment(home, {"PYTHONPATH": paths}),
                start_new_session=True,
                preexec_fn=_tied,
            )
            try:
                while node.poll() is None and not stopped.is_set():
                    stopped.wait(0.2)
            finally:
                end(node)
            if not stopped.is_set():
                tell(
                    f"the SuperNode ended (exit code {node.returncode}): the server does not know the key of "
                    f"{site.config.name}, or refuses it for up to 90 s after a hard stop; trying again in {AGAIN:g} s"
                )
                stopped.wait(AGAIN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shown(command: list[str]) -> str:
    """As one would type it."""
    return shlex.join([Path(command[0]).name, *command[1:]])
