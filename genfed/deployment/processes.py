"""Starts and ends Flower's programs."""

import contextlib
import ipaddress
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.text import one_line
from genfed.experiment.environment import send_at_parents_end

APP = Path(__file__).parent / "flower_app"
"""Folder of the app that `flwr run` sends to the SuperLink. It names genfed, which is installed at server and sites."""
NAME = "genfed"
"""Name of the connection in Flower's configuration."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""Environment of Flower's programs: no telemetry, no downloads, and short waits."""


@dataclass(frozen=True)
class Address:
    """The address at which a SuperLink listens."""

    host: str
    port: int

    @staticmethod
    def of(text: str) -> "Address":
        """Reads host:port.

        Raises:
            GenfedError: the text is something else.
        """
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


def find_program(name: str) -> str:
    """Returns the path of one of Flower's commands; this Python environment comes before PATH.

    Raises:
        GenfedError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise GenfedError(f"{name} is not installed; install it with: pip install 'genfed[flower]'")
    return found


# Flower's commands run in a folder of their own. Given the name of a connection, a command takes a folder of that name
# in the working directory, such as a clone of genfed, for an app of an older version of Flower.
def flower_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of Flower's commands, whose folder is `home`: they find what this process can import.
    `extra` overrides single variables.
    """
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


def allow_open_files(wanted: int) -> int:
    """Lets this process, and those that it starts, open as many files at once as wanted, or as many as the system
    allows. Returns how many of the wanted ones it may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def end_with_parent() -> None:
    """Sets that this new child process gets SIGTERM when its parent ends, even if the parent is killed (on Linux)."""
    send_at_parents_end(signal.SIGTERM)


def end_process(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> None:
    """Ends a process that was started in a session of its own, and all processes of that session. Each signal gets
    `patience` seconds.
    """
    for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, patience)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if sign == signal.SIGTERM:
                time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_listening(address: Address) -> bool:
    """Returns whether a program accepts connections at the address."""
    host = "127.0.0.1" if address.host == "0.0.0.0" else "::1" if address.host == "[::]" else address.host.strip("[]")
    try:
        socket.create_connection((host, address.port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Returns a port of this machine at which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_line(log: bytes) -> str:
    """Returns the last line of a log that is not blank, with control characters escaped, and 300 of its characters."""
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    return one_line(lines[-1].strip(), 300) if lines else "it printed nothing"
