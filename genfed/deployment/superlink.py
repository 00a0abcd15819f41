"""Flower's own commands, started for a federation: the SuperLink and `flwr run` at the server, the SuperNode at a site.

Thin: docs/deployment.md has the same commands, to be given by hand.
"""

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tomli_w

from genfed.core.errors import GenfedError
from genfed.deployment.certificates import AUTHORITY, SERVER, SERVER_KEY
from genfed.deployment.processes import (
    APP,
    NAME,
    Address,
    _answers,
    _last_line,
    _program,
    _tied,
    end_process,
    flower_environment,
)
from genfed.deployment.server import SAID, Outcome, ServeRequest, to_settings

# The server.
EXPOSED = (
    "warning: whoever reaches {} can start runs there, whose code the sites run, keys or not: let only the path "
    "/v1/fleet/ through (a reverse proxy before 127.0.0.1), or the sites' addresses alone (a firewall)"
)
"""Of a SuperLink that listens beyond this machine."""


def serve(
    wanted: ServeRequest,
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
    settings.write_text(tomli_w.dumps(to_settings(ServeRequest(**vars(wanted) | {"outcome": str(outcome.resolve())}))))
    if not (running or address.loopback):
        tell(EXPOSED.format(address))
    if running and not _answers(address):
        raise GenfedError(f"no SuperLink answers at {address}; leave out --running to have one started")
    with contextlib.nullcontext() if running else open_superlink(address, keys, home, folder / "superlink.log"):
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
def open_superlink(address: Address, keys: Path | None, home: Path, logged: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that runs as long as the block."""
    command = superlink_command(address, keys)
    _check_free(address)
    with logged.open("ab") as output:
        link = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=flower_environment(home),
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
        end_process(link)


def _check_free(address: Address) -> None:
    host = address.host.strip("[]")
    try:
        ((family, kind, proto, _, place), *_) = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise GenfedError(f"cannot listen at {address}: {error.strerror or error}; choose another --address") from None


def _register(public: Path, home: Path) -> None:
    command = [_program("flwr"), "supernode", "register", str(public.absolute()), NAME, "--name", public.stem]
    done = subprocess.run(command, cwd=home, env=flower_environment(home), capture_output=True, text=True, timeout=120)
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
            env=flower_environment(home) | {"NO_COLOR": "1", "COLUMNS": "400"},
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
        done = subprocess.run(
            command, cwd=home, env=flower_environment(home), capture_output=True, text=True, timeout=60
        )
        (run,) = json.loads(done.stdout)["runs"]
        return not str(run["status"]).startswith("finished")
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None if number else False
