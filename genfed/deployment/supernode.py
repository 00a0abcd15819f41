"""A site's side of Flower: its SuperNode, and checks of its connection to the server."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.files import make_folder
from genfed.deployment.processes import Address, end_process, end_with_parent, find_program, flower_environment
from genfed.deployment.site_settings import LocatedSite


def supernode_command(site: LocatedSite, port: int) -> list[str]:
    """Returns the command that starts the site's SuperNode, which its own processes reach at `port` of this machine.

    Raises:
        GenfedError: a file that the settings name is missing, or Flower is not installed.
    """
    link = site.config.link
    command = [find_program("flower-supernode"), "--superlink", link.address, "--port", str(port)]
    command += ["--node-config", f'site="{site.file}"']
    if link.insecure:
        return [*command, "--insecure"]
    if link.certificate:
        command += ["--root-certificates", str(_existing_file(site, "link.certificate", link.certificate))]
    if link.key:
        command += ["--auth-supernode-private-key", str(_existing_file(site, "link.key", link.key))]
    return command


def _existing_file(site: LocatedSite, key: str, name: str) -> Path:
    file = site.root / name
    if not file.is_file():
        raise GenfedError(f"{site.file}: {key} = {name!r}: no such file")
    return file


def free_port() -> int:
    """Returns a port of this machine at which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_link(site: LocatedSite) -> str:
    """Tries the connection to the server. Returns a line of text where no server answers yet. Empty: it works.

    Raises:
        GenfedError: a server answers otherwise than the site's file says.
    """
    link, address = site.config.link, Address.of(site.config.link.address)
    host = address.host.strip("[]")
    try:
        with socket.create_connection((host, address.port), 5) as plain:
            if link.insecure:
                _check_plain(plain, address)
                return ""
            roots = _existing_file(site, "link.certificate", link.certificate) if link.certificate else None
            try:
                context = ssl.create_default_context(cafile=None if roots is None else str(roots))
            except ssl.SSLError:
                raise GenfedError(f"{site.file}: link.certificate = {link.certificate!r}: not a certificate") from None
            with context.wrap_socket(plain, server_hostname=host):
                return ""
    except ssl.SSLCertVerificationError as error:
        raise GenfedError(
            f"the certificate of {address} is not signed by link.certificate = {link.certificate!r} "
            f"({error.verify_message}); get ca.crt from the operator of the server"
        ) from None
    except ssl.SSLError:
        raise GenfedError(f"{address} does not speak TLS; for a trial without TLS set link.insecure = true") from None
    except OSError as error:
        return f"no server answers at {address} yet ({error.strerror or error}); waiting"


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
"""Seconds until a site whose SuperNode ended starts it again."""


def join(site: LocatedSite, notify: Callable[[str], None]) -> None:
    """Runs a SuperNode until this process gets SIGINT or SIGTERM. A SuperLink refuses a key that it does not know yet,
    or whose node was killed a moment ago; the SuperNode then ends, and is started again. `notify` is called with each
    line of text for the user.
    """
    home = site.folder / "flower"
    make_folder(home)
    # The site's own architecture stands beside its file.
    paths = f"{site.root}{os.pathsep}{flower_environment(home)['PYTHONPATH']}"
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.is_set():
            node = subprocess.Popen(
                supernode_command(site, free_port()),
                stdin=subprocess.DEVNULL,
                env=flower_environment(home, {"PYTHONPATH": paths}),
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
            try:
                while node.poll() is None and not stopped.is_set():
                    stopped.wait(0.2)
            finally:
                end_process(node)
            if not stopped.is_set():
                notify(
                    f"the SuperNode ended (exit code {node.returncode}): the server does not know the key of "
                    f"{site.config.name}, or refuses it for up to 90 s after a hard stop; trying again in {AGAIN:g} s"
                )
                stopped.wait(AGAIN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
