"""A site's side of Flower: its SuperNode, and a process for every message that it receives."""

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.files import make_folder, open_file
from genfed.deployment.link_check import check_link, existing_file
from genfed.deployment.notices import NoticeReader
from genfed.deployment.processes import (
    end_process,
    end_with_parent,
    find_program,
    flower_environment,
    free_port,
    last_line,
)
from genfed.deployment.site_settings import LocatedSite
from genfed.engines.flower.tasks import TaskQueue
from genfed.experiment.environment import python_command

NODE_LOG = "node.log"
"""File name of the log of the SuperNode and its processes, in the folder of the site."""
_LOG_BYTES = 2**24
_REPEAT = 60.0  # seconds between two lines about the same obstacle, and between two looks at a connection that works
_LONGEST_PAUSE = 10.0
_LOOK = 0.2


def supernode_command(site: LocatedSite, port: int, secret: Path) -> list[str]:
    """Returns the command that starts the site's SuperNode. It runs no apps: `genfed join` answers its messages.

    Args:
        site: the site.
        port: the port of this machine at which `genfed join` fetches the messages.
        secret: the file that proves who fetches them.

    Raises:
        GenfedError: a file that the settings name is missing, or Flower is not installed.
    """
    link = site.config.link
    command = [find_program("flower-supernode"), "--superlink", link.address, "--port", str(port)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    if link.insecure:
        return [*command, "--insecure"]
    if link.certificate:
        command += ["--root-certificates", str(existing_file(site, "link.certificate", link.certificate))]
    if link.key:
        command += ["--auth-supernode-private-key", str(existing_file(site, "link.key", link.key))]
    return command


class LinkWatch:
    """Says what keeps a site from its server: at once, and then every minute."""

    def __init__(self, site: LocatedSite, notify: Callable[[str], None], wait: float | None = None) -> None:
        """`notify` is called with each line; `wait` is how many seconds an obstacle may last. None: for ever."""
        self._site, self._notify, self._wait = site, notify, wait
        self._well = time.monotonic()
        self._said, self._said_at, self._tries = "", 0.0, 0
        self._told, self._told_at = "", 0.0
        self._connected = False

    def look(self) -> bool:
        """Returns whether the server would admit the site, and says why not.

        Raises:
            GenfedError: it never will, or the obstacle has lasted too long.
        """
        try:
            obstacle = check_link(self._site)
        except GenfedError as error:
            if not self._connected:
                raise
            obstacle = str(error)  # it worked before, so that the server may come back as it was
        if obstacle:
            self.report(obstacle)
        return not obstacle

    def report(self, obstacle: str) -> None:
        """Says what keeps the site from the server, unless this was said in the last minute.

        Raises:
            GenfedError: it has lasted too long.
        """
        now, self._tries = time.monotonic(), self._tries + 1
        if self._wait is not None and now - self._well >= self._wait:
            raise GenfedError(f"{obstacle}; gave up after {self._wait:g} s")
        if obstacle != self._said or now - self._said_at >= _REPEAT:
            self._notify(f"{obstacle}; trying again")
            self._said, self._said_at = obstacle, now

    def tell(self, lines: Iterable[str]) -> None:
        """Shows lines that messages of the server gave rise to; one that repeats the last is shown once a minute."""
        for line in lines:
            if line != self._told or time.monotonic() - self._told_at >= _REPEAT:
                self._notify(line)
                self._told, self._told_at = line, time.monotonic()

    def connected(self) -> None:
        """Takes note that the site is connected."""
        if not self._connected or self._said:
            self._notify(f"connected to {self._site.config.link.address}")
        self._connected, self._well, self._said, self._tries = True, time.monotonic(), "", 0

    @property
    def pause(self) -> float:
        """Seconds until the next try: more after each failure, up to ten."""
        return float(min(2**self._tries / 2, _LONGEST_PAUSE))


def join(site: LocatedSite, notify: Callable[[str], None], wait: float | None = None) -> None:
    """Takes part until this process gets SIGINT or SIGTERM. A SuperNode that ends is started again.

    Args:
        site: the site.
        notify: called with each line of text for the user.
        wait: seconds without a connection after which the site gives up. None: it tries for ever.

    Raises:
        GenfedError: the server can never admit the site, or the site gives up.
    """
    make_folder(site.folder / "flower")
    watch = LinkWatch(site, notify, wait)
    with _until_signalled() as stopped:
        while not stopped.is_set():
            if watch.look():
                with _open_log(site.folder / NODE_LOG) as log:
                    ended = _run_node(site, log, stopped, watch)
                if not stopped.is_set():
                    watch.report(ended)
            stopped.wait(watch.pause)


@contextlib.contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """Yields an event that is set when this process is to stop."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda number, frame: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _open_log(file: Path) -> Iterator[int]:
    """Yields the descriptor of a log to append to; a log that has grown large makes place for a new one."""
    if file.exists() and file.stat().st_size > _LOG_BYTES:
        file.replace(file.with_suffix(".log.1"))
    with open_file(file, "ab") as log:
        yield log.fileno()


def _run_node(site: LocatedSite, log: int, stopped: threading.Event, watch: LinkWatch) -> str:
    """Runs a SuperNode and answers its messages until it ends or the site stops. Returns why it ended."""
    file, port = site.folder / NODE_LOG, free_port()
    begun = file.stat().st_size
    secret = _new_secret(site.folder / "flower" / "queue.secret")
    node = _start(supernode_command(site, port, secret), site, log)
    address = f"127.0.0.1:{port}"
    queue, answers = TaskQueue(address, secret), list[subprocess.Popen[bytes]]()
    notices, known, next_look = NoticeReader(site), False, time.monotonic() + _REPEAT
    try:
        while node.poll() is None and not stopped.is_set():
            if (token := queue.next()) is not None:
                answers.append(_start_answer(site, address, token, log))
            answers = [process for process in answers if process.poll() is None]
            if not known and (known := b"SuperNode ID:" in _text_from(file, begun)):
                watch.connected()
            watch.tell(notices.read())
            if time.monotonic() > next_look:
                if watch.look() and known:
                    watch.connected()
                next_look = time.monotonic() + _REPEAT
            stopped.wait(_LOOK)
    finally:
        queue.close()
        for process in (*answers, node):
            end_process(process)
    return _explain_end(site, node.returncode, _text_from(file, begun))


def _start(
    command: list[str], site: LocatedSite, log: int, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    """Starts a process of the site, which ends with this one."""
    home = site.folder / "flower"
    # The site's own architecture stands beside its file. Last, so that nothing there takes the place of a package.
    paths = f"{flower_environment(home)['PYTHONPATH']}{os.pathsep}{site.root}"
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=log,
        stderr=log,
        env=flower_environment(home, {"PYTHONPATH": paths}),
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _start_answer(site: LocatedSite, address: str, token: str, log: int) -> "subprocess.Popen[bytes]":
    """Starts the process that answers one message. The token, which lets a process act for the site, is not shown."""
    command = python_command("genfed.deployment.answer", address, str(site.file))
    process = _start(command, site, log, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as given:
        given.write(f"{token}\n".encode())
    return process


def _new_secret(file: Path) -> Path:
    """Writes a secret that only this user can read; returns the file."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as handle:
        handle.write(secrets.token_bytes(32))
    return file


def _text_from(file: Path, begun: int) -> bytes:
    with file.open("rb") as log:
        log.seek(begun)
        return log.read(_LOG_BYTES)


def _explain_end(site: LocatedSite, code: int, text: bytes) -> str:
    """Returns why a SuperNode ended, as well as its log says it."""
    if b"Failed to activate SuperNode" in text:
        return (
            f"the server does not admit {site.config.name} now: it registers keys when `genfed serve` starts, and "
            "refuses a site for up to 90 s after a hard stop"
        )
    if not code:  # Flower's node ends so when its requests are refused
        return f"the server ended the connection of {site.config.name}: it was started again, or it removed the key"
    return f"the SuperNode ended (exit code {code}): {last_line(text)}; see {site.folder / NODE_LOG}"
