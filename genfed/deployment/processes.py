"""Starts and ends Flower's programs."""

import contextlib
import ctypes
import ipaddress
import os
import shlex
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
def flower_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
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


def _tied() -> None:
    """Called in a child: it is told to end when this process does, even by a kill. Linux alone knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_process(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> None:
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


def shell_line(command: list[str]) -> str:
    """As one would type it."""
    return shlex.join([Path(command[0]).name, *command[1:]])
