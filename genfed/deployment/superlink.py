"""The server's side of Flower: its SuperLink and `flwr run`. docs/deployment.md has the same commands, to be given by
hand.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import tomli_w
from pydantic import TypeAdapter

from genfed.core.errors import GenfedError
from genfed.core.files import make_folder, open_file, write_file
from genfed.core.text import one_line
from genfed.deployment.certificate_check import check_certificates, read_public_keys
from genfed.deployment.certificates import AUTHORITY, SERVER, SERVER_KEY, make_keys
from genfed.deployment.processes import (
    APP,
    NAME,
    Address,
    allow_open_files,
    end_process,
    end_with_parent,
    find_program,
    flower_environment,
    free_port,
    is_listening,
    last_line,
)
from genfed.deployment.server import SAID, Outcome, ServeRequest, to_settings
from genfed.experiment.environment import python_command

OPEN = "warning: without keys and TLS, anyone who reaches {} takes part as a site and reads all messages"
"""Warning for a server without keys that listens beyond this machine."""
OPEN_FILES = 4096
"""Open files of the programs that `serve` starts, where the system allows them."""
SILENCE = 600.0
"""Seconds for which a SuperLink that was restarted may not answer before its run is given up."""


def serve(
    wanted: ServeRequest,
    address: Address,
    keys: Path | None,
    folder: Path,
    notify: Callable[[str], None],
    running: bool = False,
) -> Outcome:
    """Starts a SuperLink and its gateway at `address`, admits the sites whose public keys are in `keys`, does the run
    and stops both.

    Args:
        wanted: what to run.
        address: where sites find the server.
        keys: folder of ca.crt, server.crt, server.key and a .pub per site. None: no TLS, open to anyone.
        folder: folder for logs and for Flower's configuration.
        notify: called with each line of text for the user.
        running: whether a SuperLink runs at `address` already; it is used and left running.

    Raises:
        GenfedError: the port is taken, nothing answers there, keys or certificates are missing or wrong, or the run was
            refused.
    """
    if keys is not None:
        _check_keys(keys, address, notify)
    elif not (running or address.loopback):
        notify(OPEN.format(address))
    make_folder(folder)
    home, outcome, settings = folder / "flower", folder / "outcome.json", folder / "settings.toml"
    outcome.unlink(missing_ok=True)
    make_folder(home)
    write_file(settings, tomli_w.dumps(to_settings(replace(wanted, outcome=str(outcome.resolve())))))
    if running and not is_listening(address):
        raise GenfedError(f"no SuperLink answers at {address}; without --running, one is started")
    with _connect(address, keys, home) if running else _open_server(address, keys, home, folder):
        for public in sorted(keys.glob("*.pub")) if keys else ():
            _register(public, home)
        run_id = _start_run(settings.resolve(), home, folder / "flwr-run.log", notify)
        if running:
            _await_outcome(outcome, run_id, home)
    if not outcome.exists():
        raise GenfedError(f"Flower's run ended without a result: see {folder / 'flwr-run.log'}")
    done = TypeAdapter(Outcome).validate_json(outcome.read_bytes())
    if done.error:
        raise GenfedError(done.error)
    return done


def _await_outcome(outcome: Path, run_id: str, home: Path) -> None:
    """Waits for a run whose SuperLink may be restarted under it, until the run ends or the SuperLink stays silent."""
    last_answer = time.monotonic()
    while not outcome.exists() and time.monotonic() - last_answer < SILENCE:
        goes_on = _is_running(run_id, home)
        if goes_on is False:
            return
        last_answer = last_answer if goes_on is None else time.monotonic()
        time.sleep(2)


def _check_keys(keys: Path, address: Address, notify: Callable[[str], None]) -> None:
    """Refuses certificates and keys with which sites could not connect."""
    if warning := check_certificates(keys, address):
        notify(warning)
    if not read_public_keys(keys):
        raise GenfedError(f"{keys} has no .pub file: sites are admitted by their public keys, NAME.pub")


@contextlib.contextmanager
def _connect(address: Address, keys: Path | None, home: Path) -> Iterator[None]:
    """Has Flower's commands find the SuperLink at an address, in the block and after."""
    how = {"insecure": True} if keys is None else {"root-certificates": str((keys / AUTHORITY).resolve())}
    table = {"superlink": {"default": NAME, NAME: {"address": str(address)} | how}}
    write_file(home / "config.toml", tomli_w.dumps(table))
    yield


@contextlib.contextmanager
def _open_server(address: Address, keys: Path | None, home: Path, folder: Path) -> Iterator[None]:
    """Runs a SuperLink that only this machine reaches, and the gateway by which sites reach it, for the block."""
    _check_free(address)
    allow_open_files(OPEN_FILES)
    inside, own = Address("127.0.0.1", free_port()), None if keys is None else folder.absolute() / "loopback"
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
        make_keys(own, (), days=3650)
    with (
        open_superlink(inside, own, home, folder / "superlink.log"),
        _open_gateway(address, inside, keys, own, home, folder / "gateway.log"),
        _connect(inside, own, home),
    ):
        yield


@contextlib.contextmanager
def _open_gateway(
    address: Address, link: Address, keys: Path | None, own: Path | None, home: Path, logged: Path
) -> Iterator[None]:
    """Runs the gateway for the block; `own` has the certificates of the SuperLink."""
    command = python_command("genfed", "federation", "gateway", "--address", str(address), "--link", str(link))
    if keys is None or own is None:
        command.append("--insecure")
    else:
        command += ["--keys", str(keys.absolute()), "--link-certificate", str((own / AUTHORITY).absolute())]
    with _run_listener(command, address, home, logged, "the gateway"):
        yield


def superlink_command(address: Address, keys: Path | None) -> list[str]:
    """Returns the command that starts a SuperLink.

    Raises:
        GenfedError: Flower is not installed.
    """
    command = [find_program("flower-superlink"), "--host", address.host.strip("[]"), "--port", str(address.port)]
    command += ["--disable-runtime-dependency-installation"]
    if keys is None:
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", str(keys / AUTHORITY), "--ssl-certfile", str(keys / SERVER)]
    return [*command, "--ssl-keyfile", str(keys / SERVER_KEY), "--enable-supernode-auth"]


@contextlib.contextmanager
def open_superlink(address: Address, keys: Path | None, home: Path, logged: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a SuperLink for the block; it writes to the log `logged`.

    Raises:
        GenfedError: the address cannot be used, or the SuperLink does not start.
    """
    with _run_listener(superlink_command(address, keys), address, home, logged, "the SuperLink") as link:
        yield link


@contextlib.contextmanager
def _run_listener(
    command: list[str], address: Address, home: Path, logged: Path, what: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Runs a program for the block, which begins once it listens at the address.

    Raises:
        GenfedError: it does not start; the line names `what`.
    """
    begun = logged.stat().st_size if logged.exists() else 0
    with open_file(logged, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=flower_environment(home),
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        until = time.monotonic() + 120
        while not is_listening(address):
            if process.poll() is not None:
                said = last_line(logged.read_bytes()[begun:])
                raise GenfedError(f"{what} did not start ({said}); see {logged}")
            if time.monotonic() > until:
                raise GenfedError(f"{what} does not answer at {address} after two minutes; see {logged}")
            time.sleep(0.2)
        yield process
    finally:
        end_process(process)


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
    command = [find_program("flwr"), "supernode", "register", str(public.absolute()), NAME, "--name", public.stem]
    done = subprocess.run(command, cwd=home, env=flower_environment(home), capture_output=True, text=True, timeout=120)
    if done.returncode and "already" not in (said := f"{done.stdout} {done.stderr}"):
        raise GenfedError(f"the SuperLink does not take {public}: {one_line(' '.join(said.split())[-300:])}")


def _start_run(settings: Path, home: Path, logged: Path, notify: Callable[[str], None]) -> str:
    """Does a run and shows what the server says. Returns the run's number. Empty: it was not started."""
    number = ""
    command = [find_program("flwr"), "run", str(APP), NAME, "--stream", "--run-config", str(settings.absolute())]
    with open_file(logged, "a") as log:
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
                    notify(line.partition(SAID)[2].rstrip())
            run.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
            run.wait()
    return number


def _is_running(number: str, home: Path) -> bool | None:
    """Returns whether a run goes on. None: the SuperLink does not say."""
    command = [find_program("flwr"), "ls", NAME, "--run-id", number, "--format", "json"]
    try:
        done = subprocess.run(
            command, cwd=home, env=flower_environment(home), capture_output=True, text=True, timeout=60
        )
        (run,) = json.loads(done.stdout)["runs"]
        return not str(run["status"]).startswith("finished")
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None if number else False
