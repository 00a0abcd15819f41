"""All clients on this machine: in this process, or shared out over worker processes.

The outcome is the same to the bit for any number of workers: a client's draws are named after it, each process
computes with a fixed number of threads, and replies are folded along a fixed tree.
"""

import contextlib
import json
import logging
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from genfed.core.aggregate import ClientInfo
from genfed.core.record import Packed, from_bytes, to_bytes
from genfed.engines.client_runner import ClientRunner
from genfed.engines.in_process import _attempt
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure

log = logging.getLogger(__name__)
Job = tuple[ClientInfo, bytes]
READY = b"ready"
"""A worker's first message: it has started up, and clients' time begins to count."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    job: Job | None = None
    ready: bool = False
    since: float | None = None
    """When it could begin the job, on the monotonic clock; None while it is starting up."""


class WorkerPool:
    """Worker processes that live as long as this object. Nothing is pickled: messages are JSON and safetensors."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        output: Any = None,
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Starts `command FD` for each worker; it must call `serve` on that file descriptor. `output` is a file that
        takes what they print; None: they print where this process does. `environment` None: this process's.
        `timeout` is the seconds that a client may take for a step; None: for ever.
        """
        self._timeout = timeout
        self._command, self._output, self._environment = list(command), output, environment
        self._opening: str | None = None
        self._lost: list[str] = []
        self._workers = [self._start() for _ in range(count)]

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the main process's to handle
            )
            pipe = Connection(ours.detach())
        if self._opening is not None:
            with contextlib.suppress(OSError):  # dead already: whoever gives it a job finds out
                pipe.send_bytes(self._opening.encode())
        return _Worker(process, pipe)

    def open(self, trial: str) -> None:
        """Tells every worker which trial comes next, in the words that `serve`'s `open_runner` understands."""
        self._opening = json.dumps({"open": trial})
        for place, worker in enumerate(self._workers):
            try:
                worker.pipe.send_bytes(self._opening.encode())
            except OSError:
                self._workers[place] = self._replace(worker, "died")

    def exchange(
        self, step: RoundId, jobs: Iterable[tuple[ClientInfo, Packed]]
    ) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """See `Engine`. A worker that dies is replaced and its client asked once more; one that takes too long is
        replaced and its client left out.
        """
        for place, worker in enumerate(self._workers):
            if worker.job:  # of an exchange that was given up: its answer must not be taken for one to this
                self._workers[place] = self._replace(worker, "was busy with a round that was given up")
        coming = ((info, _message(step, info, packed)) for info, packed in jobs)
        again: deque[Job] = deque()
        retried: set[int] = set()
        # One job is packed ahead, so that a worker that is done waits only for the bytes.
        ahead = next(coming, None)

        def give(worker: _Worker) -> None:
            nonlocal ahead
            if again:
                worker.job = again.popleft()
            else:
                worker.job, ahead = ahead, None
            if worker.job:
                worker.since = time.monotonic() if worker.ready else None
                with contextlib.suppress(OSError):  # it is dead; the wait below finds out
                    worker.pipe.send_bytes(worker.job[1])

        while True:
            for worker in self._workers:
                if worker.job is None:
                    give(worker)
                    ahead = ahead or next(coming, None)
            busy = {w.pipe: place for place, w in enumerate(self._workers) if w.job}
            if not busy:
                return
            for pipe in wait(list(busy), self._patience()):
                assert isinstance(pipe, Connection)
                worker = self._workers[busy[pipe]]
                assert worker.job is not None
                info = worker.job[0]
                try:
                    message = pipe.recv_bytes()
                except (EOFError, OSError):
                    again_once = info.id not in retried
                    if again_once:
                        retried.add(info.id)
                        again.append(worker.job)
                    worker = self._workers[busy[pipe]] = self._replace(worker, "died")
                    if again_once:
                        continue
                    message = _answer(Failure("its worker process died twice"))
                if message == READY:
                    worker.ready, worker.since = True, time.monotonic()
                    continue
                worker.job = None
                give(worker)
                yield info, _read(message)
                ahead = ahead or next(coming, None)
            for place, worker in enumerate(self._workers):
                if worker.job and self._overdue(worker):
                    info = worker.job[0]
                    self._workers[place] = self._replace(worker, "was ended, being too slow,")
                    yield info, Failure(f"took longer than {self._timeout:g} s")

    def _overdue(self, worker: _Worker) -> bool:
        now = time.monotonic()
        return self._timeout is not None and worker.since is not None and now - worker.since > self._timeout

    def _patience(self) -> float | None:
        """Seconds until the first busy worker is out of time; None: no limit."""
        begun = [w.since for w in self._workers if w.job and w.since is not None]
        if self._timeout is None or not begun:
            return None
        return max(0.0, min(begun) + self._timeout - time.monotonic())

    def _replace(self, worker: _Worker, what: str) -> _Worker:
        """Starts another in its place and notes why: `what` the worker did or met."""
        worker.pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(0.2)  # one that is dying by itself gets to say how
        worker.process.kill()
        code = worker.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; out of memory?" if code == -signal.SIGKILL and what == "died" else ""
        about = f" while client {worker.job[0].id} was working" if worker.job else ""
        self._lost.append(f"a worker process {what} ({cause}{hint}){about}; started another")
        log.warning(self._lost[-1])
        return self._start()

    def lost(self) -> list[str]:
        """See `Engine`."""
        lines, self._lost = self._lost, []
        return lines

    def close(self) -> None:
        """Ends the workers at once."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
            worker.process.wait()


def _message(step: RoundId, info: ClientInfo, sent: Packed) -> bytes:
    return _framed({"work": asdict(step), "client": info.id}, to_bytes(sent))


def _split(message: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def _read(message: bytes) -> PackedReply | Failure:
    head, body = _split(message)
    if "failed" in head:
        return Failure(head["failed"], head["fatal"])
    return PackedReply(from_bytes(body), head["weight"], head["metrics"], head["seconds"])


def serve_worker(descriptor: int, site_of: Callable[[str], ClientRunner]) -> None:
    """A worker's whole life: opens trials and does clients' work until the pipe closes."""
    pipe = Connection(descriptor)
    with contextlib.suppress(OSError):
        pipe.send_bytes(READY)
    site: ClientRunner | None = None
    broken = "no trial is open"
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        if message.startswith(b'{"open"'):
            try:
                site = site_of(json.loads(message)["open"])
            except Exception as error:  # told with the first job: opening has no answer of its own
                site, broken = None, f"a worker cannot open the trial: {error}"
            continue
        head, body = _split(message)
        step = RoundId(**head["work"])
        outcome = _attempt(site, step, head["client"], from_bytes(body)) if site else Failure(broken)
        try:
            pipe.send_bytes(_answer(outcome))
        except OSError:
            return


def _answer(outcome: PackedReply | Failure) -> bytes:
    head: dict[str, Any]
    if isinstance(outcome, Failure):
        head, body = {"failed": outcome.reason, "fatal": outcome.fatal}, b""
    else:
        body = to_bytes(outcome.upload)
        head = {"weight": outcome.weight, "metrics": outcome.metrics, "seconds": outcome.seconds}
    return _framed(head, body)


def _framed(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(4, "little") + text + body
