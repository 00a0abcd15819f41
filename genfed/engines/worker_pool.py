"""All clients on this machine, shared out over worker processes.

The result is the same to the bit for any number of workers, and as that of `in_process`: random streams are named after
clients, each process computes with a fixed number of threads, and replies are folded along a fixed tree.
"""

import contextlib
import json
import logging
import math
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, describe_error
from genfed.core.record import from_bytes, to_bytes
from genfed.engines.client_runner import ClientRunner
from genfed.engines.in_process import attempt_work
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job

log = logging.getLogger(__name__)
EncodedJob = tuple[ClientInfo, bytes]
READY = b"ready"
"""A worker's message that it has opened a trial: the client's time begins to count."""
STOP = b"stop"
"""A worker's message that it was interrupted: the run is to stop."""
START_SECONDS = 600.0
"""Seconds that a worker may take to start and to open a trial."""
EXIT_SECONDS = 10.0
"""Seconds that a worker whose pipe has closed may take to end by itself, and so to show how it ended."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    opening: int = 0
    """Number of trials that it has still to open: it is not ready for a job until it has."""
    job: EncodedJob | None = None
    since: float = 0.0
    """Start of the job on the monotonic clock. Until the worker is ready, the time at which it got the job."""


class _Dispatcher:
    """The jobs of one exchange, given to workers as these become free."""

    def __init__(self, jobs: Iterator[EncodedJob]) -> None:
        self._jobs = jobs
        self._next = next(jobs, None)  # packed ahead, so that a free worker waits only for the bytes
        self._again: deque[EncodedJob] = deque()
        self._lost_once: set[int] = set()

    def give(self, worker: _Worker) -> None:
        """Gives a free worker the next job that is packed, if there is one."""
        if self._again:
            worker.job = self._again.popleft()
        else:
            worker.job, self._next = self._next, None
        if worker.job:
            worker.since = time.monotonic()
            with contextlib.suppress(OSError):  # the worker is dead, which waiting for it will show
                worker.pipe.send_bytes(worker.job[1])

    def pack_ahead(self) -> None:
        """Packs the job after those that were given, unless it is packed already."""
        self._next = self._next or next(self._jobs, None)

    def retry(self, job: EncodedJob) -> bool:
        """Queues a job whose worker died. False: it was queued once before, and is given up."""
        if job[0].id in self._lost_once:
            return False
        self._lost_once.add(job[0].id)
        self._again.append(job)
        return True


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
        """Starts `command FD` for each worker.

        Args:
            command: a program that calls `serve_worker` on the file descriptor that it is given.
            count: the number of workers.
            output: a file for what workers print. None: this process's output.
            environment: the workers' environment. None: this process's.
            timeout: seconds that a client may take for a round. None: no limit.
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
        worker = _Worker(process, pipe)
        if self._opening is not None:
            with contextlib.suppress(OSError):  # the worker is dead, which its first job will show
                self._send_opening(worker)
        return worker

    def _send_opening(self, worker: _Worker) -> None:
        assert self._opening is not None
        worker.opening += 1
        worker.pipe.send_bytes(self._opening.encode())

    def open(self, trial: str) -> None:
        """Has every worker open the next trial; `trial` is the text that the workers' `open_runner` takes."""
        self._opening = json.dumps({"open": trial})
        for place, worker in enumerate(self._workers):
            try:
                self._send_opening(worker)
            except OSError:
                self._workers[place], _ = self._replace(worker)

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """See `Engine`. A worker that dies is replaced and its client's job done once more; one that exceeds the
        timeout is replaced and its client excluded.

        Raises:
            GenfedError: a worker does not start.
            KeyboardInterrupt: a worker was interrupted.
        """
        for place, worker in enumerate(self._workers):
            if worker.job:  # its reply to an exchange that was given up must not pass for one to this
                self._workers[place], _ = self._replace(worker, "was busy with a round that was given up")
        dispatcher = _Dispatcher((job.info, _encode_job(step, job)) for job in jobs)
        while True:
            for worker in self._workers:
                if worker.job is None:
                    dispatcher.give(worker)
                    dispatcher.pack_ahead()
            busy = {worker.pipe: place for place, worker in enumerate(self._workers) if worker.job}
            if not busy:
                return
            for pipe in wait(list(busy), self._seconds_left()):
                assert isinstance(pipe, Connection)
                if (outcome := self._receive(busy[pipe], dispatcher)) is not None:
                    yield outcome
                    dispatcher.pack_ahead()
            yield from self._end_overdue()

    def _receive(self, place: int, dispatcher: _Dispatcher) -> tuple[ClientInfo, PackedReply | Failure] | None:
        """Takes a worker's message and gives it its next job. None: the client's reply is still to come."""
        worker = self._workers[place]
        assert worker.job is not None
        job = worker.job
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            worker, fate = self._replace(worker)
            self._workers[place] = worker
            if dispatcher.retry(job):
                return None
            message = _encode_outcome(Failure(f"its worker process died twice ({fate})"))
        if message == STOP:
            raise KeyboardInterrupt
        if message == READY:
            worker.opening, worker.since = worker.opening - 1, time.monotonic()
            return None
        worker.job = None
        dispatcher.give(worker)
        return job[0], _decode_outcome(message)

    def _end_overdue(self) -> Iterator[tuple[ClientInfo, Failure]]:
        """Replaces the workers that exceed the timeout; yields their clients' failures.

        Raises:
            GenfedError: a worker exceeds the time to start.
        """
        for place, worker in enumerate(self._workers):
            if worker.job is None or time.monotonic() <= self._deadline(worker):
                continue
            if worker.opening:
                raise GenfedError(
                    f"a worker process did not start within {START_SECONDS:g} s; workers.log may say why, and "
                    "compute.workers = 0 starts none. Every finished round is saved: go on with --resume"
                )
            info = worker.job[0]
            self._workers[place], _ = self._replace(worker, "was too slow")
            yield info, Failure(f"took longer than {self._timeout:g} s")

    def _deadline(self, worker: _Worker) -> float:
        """Returns the time until which a worker may be busy with what it does, on the monotonic clock."""
        limit = START_SECONDS if worker.opening else self._timeout
        return math.inf if limit is None else worker.since + limit

    def _seconds_left(self) -> float | None:
        """Returns the seconds until the first busy worker is overdue. None: none ever is."""
        first = min((self._deadline(worker) for worker in self._workers if worker.job), default=math.inf)
        return None if math.isinf(first) else max(0.0, first - time.monotonic())

    def _replace(self, worker: _Worker, event: str = "died") -> tuple[_Worker, str]:
        """Ends a worker, starts another one and notes why; `event` completes "a worker process …". Returns the other
        one, and how the worker ended.
        """
        fate = _end(worker, EXIT_SECONDS if event == "died" else 0.0)
        during = f" while client {worker.job[0].id} was working" if worker.job else ""
        self._lost.append(f"a worker process {event} ({fate}){during}; started another")
        log.warning(self._lost[-1])
        return self._start(), fate

    def describe(self, info: ClientInfo, reason: str) -> str:
        """See `Engine`."""
        return reason

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


def _end(worker: _Worker, patience: float) -> str:
    """Ends a worker after `patience` seconds, in which it may end by itself. Returns how it ended."""
    worker.pipe.close()
    try:
        code = worker.process.wait(patience)
    except subprocess.TimeoutExpired:
        worker.process.kill()  # what this gives as its end says nothing about the worker
        worker.process.wait()
        return "ended by genfed" if patience == 0 else f"it closed its pipe and had not ended {patience:g} s later"
    if code >= 0:
        return f"exit code {code}"
    sign = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {sign}" + ("; out of memory?" if code == -signal.SIGKILL else "")


def serve_worker(descriptor: int, open_runner: Callable[[str], ClientRunner]) -> None:
    """Opens trials and does clients' work until the pipe closes: the whole life of a worker process.

    Args:
        descriptor: the file descriptor of the pipe to the main process.
        open_runner: makes the client runner of the trial that `WorkerPool.open` names.
    """
    pipe = Connection(descriptor)
    with contextlib.suppress(OSError):  # the main process has ended
        try:
            _serve(pipe, open_runner)
        except KeyboardInterrupt:
            pipe.send_bytes(STOP)


def _serve(pipe: Connection, open_runner: Callable[[str], ClientRunner]) -> None:
    runner: ClientRunner | None = None
    reason = "no trial is open"
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        if message.startswith(b'{"open"'):
            try:
                runner = open_runner(json.loads(message)["open"])
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # reported with the first job; a user's own code may fail in any way
                known = isinstance(error, GenfedError)
                runner, reason = None, f"a worker cannot open the trial: {error if known else describe_error(error)}"
            pipe.send_bytes(READY)
            continue
        head, body = _split(message)
        step = RoundId(**head["work"])
        outcome = attempt_work(runner, step, head["client"], from_bytes(body)) if runner else Failure(reason)
        pipe.send_bytes(_encode_outcome(outcome))


def _encode_job(step: RoundId, job: Job) -> bytes:
    return _frame({"work": asdict(replace(step, since=job.since)), "client": job.info.id}, to_bytes(job.sent))


def _encode_outcome(outcome: PackedReply | Failure) -> bytes:
    if isinstance(outcome, Failure):
        return _frame({"failed": outcome.reason, "fatal": outcome.fatal}, b"")
    head = {"weight": outcome.weight, "metrics": outcome.metrics, "seconds": outcome.seconds}
    return _frame(head, to_bytes(outcome.upload))


def _decode_outcome(message: bytes) -> PackedReply | Failure:
    head, body = _split(message)
    if "failed" in head:
        return Failure(head["failed"], head["fatal"])
    return PackedReply(from_bytes(body), head["weight"], head["metrics"], head["seconds"])


def _frame(head: Mapping[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(4, "little") + text + body


def _split(message: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + size]), message[4 + size :]
