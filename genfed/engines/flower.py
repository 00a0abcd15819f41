"""Clients behind Flower: simulated on this machine with Ray, or SuperNodes on machines of their own.

The only importer of flwr. What crosses is a letter: a dict of JSON and a packed record, in a `RecordDict`. The record's
tensors go as bytes of safetensors, an array per field, so bfloat16 keeps its bits, and a field that all clients are
sent alike is uploaded once (Flower stores arrays by their content).
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, StorageError
from genfed.core.record import Packed, from_bytes, to_bytes
from genfed.engines.ask import Failure
from genfed.engines.site import Answer, Site, Step

SUPPORTED = ((1, 41), (1, 43))
"""Versions of Flower that work: from the first, below the second."""
# Neither may call home from a site's network; both read this when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is Ray's: beside any other work clients would stand still
# A simulated client that asks for no GPU of Ray's still sees those that there are: device = "cuda" is genfed's to give.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

_EXTRA = "install it with: pip install 'genfed[flower]'"


def _check(found: str) -> None:
    first, beyond = (".".join(map(str, part)) for part in SUPPORTED)
    if not SUPPORTED[0] <= tuple(map(int, found.split(".")[:2])) < SUPPORTED[1]:
        raise GenfedError(f"Flower {found} is installed, and genfed needs {first} up to below {beyond}; {_EXTRA}")


try:
    _check(importlib.metadata.version("flwr"))
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
except (ImportError, importlib.metadata.PackageNotFoundError):
    raise GenfedError(f"Flower is not installed; {_EXTRA}") from None

log = logging.getLogger(__name__)
Head = dict[str, Any]
"""What a letter says, as JSON has it."""
EMPTY = Packed({}, "{}")
PATIENCE = 3600.0
"""Seconds that a node has for an answer where nothing else is said; Flower's own limit is 12 hours."""
LATE = 30.0
"""Seconds by which Flower forgets a letter later than we do; what it says of one that it forgot reads like a loss."""
IN_FLIGHT = 2**30
"""Bytes of letters on their way at once, of which Flower holds about three times as many; a larger one goes alone."""


# Letters.


def to_content(head: Head, body: Packed, arrays: Callable[[str, Packed], Array] | None = None) -> RecordDict:
    """A letter as Flower carries it. `arrays` makes the array of one field; None: afresh."""
    fields: dict[str, Packed] = {}
    for path, tensor in body.tensors.items():
        name = path.partition(".")[2].partition("[")[0].partition(".")[0]
        fields.setdefault(name, Packed({}, "")).tensors[path] = tensor
    make = arrays or (lambda name, part: _array(part))
    record = ArrayRecord({name: make(name, part) for name, part in fields.items()})
    text = ConfigRecord({"head": json.dumps(head), "skeleton": body.skeleton})
    return RecordDict({"letter": text, "tensors": record})


def from_content(content: RecordDict) -> tuple[Head, Packed]:
    """Reads `to_content`.

    Raises:
        GenfedError: it is no letter.
    """
    try:
        text = content.config_records["letter"]
        head = json.loads(text["head"])
        tensors: dict[str, Tensor] = {}
        for array in content.array_records["tensors"].values():
            tensors |= from_bytes(array.data).tensors
        if not (isinstance(head, dict) and isinstance(text["skeleton"], str)):
            raise TypeError("a head that is no table")
        return head, Packed(tensors, text["skeleton"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise GenfedError(f"it is no letter of genfed's ({type(error).__name__}: {error})") from None


def _array(part: Packed) -> Array:
    data = to_bytes(part)
    return Array("uint8", (len(data),), "safetensors", data)


class _Once:
    """Makes a field's array once for all clients that are sent the same tensors; remembers the last of each field."""

    def __init__(self) -> None:
        # By field: its key, its tensors (held, so that no other can come to lie at their address) and the array.
        self._last: dict[str, tuple[tuple[Any, ...], Packed, Array]] = {}

    def __call__(self, name: str, part: Packed) -> Array:
        key = tuple((path, t.data_ptr(), t.dtype, tuple(t.shape)) for path, t in part.tensors.items())
        if name not in self._last or self._last[name][0] != key:
            self._last[name] = key, part, _array(part)
        return self._last[name][2]


# The clients' side.

Handler = Callable[[Head, Packed, Mapping[str, Any]], tuple[Head, Packed]]
"""(what a letter says, its record, the node's own settings) → the answer."""


def client_app(handle: Handler) -> ClientApp:
    """What a node runs. It answers whatever happens: a handler that gave Flower no message would block its node for
    ever.
    """
    app = ClientApp()
    answer = functools.partial(_answered, handle)
    app.train()(answer)
    app.query()(answer)
    return app


def _answered(handle: Handler, message: Message, context: Context) -> Message:
    try:
        head, body = from_content(message.content)
        content = to_content(*handle(head, body, context.node_config))
    except (Exception, SystemExit) as error:  # a client's own code may fail in any way
        log.warning("a letter could not be answered\n%s", traceback.format_exc())
        known = isinstance(error, GenfedError)
        reason = str(error) if known else f"{type(error).__name__}: {error}".splitlines()[0]
        content = to_content({"failed": reason, "fatal": isinstance(error, StorageError)}, EMPTY)
    return Message(content, reply_to=message)


def worked(site: Site, head: Head, body: Packed) -> tuple[Head, Packed]:
    """A client's part of a step, as the answer to the letter that asks for it.

    Raises:
        GenfedError: it does not know such a phase, or its work failed.
    """
    answer = site.work(_step(head["step"]), int(head["client"]), body)
    return {"weight": answer.weight, "metrics": answer.metrics, "seconds": answer.seconds}, answer.upload


def _step(said: Any) -> Step:
    """The step that a letter names: what it keys must be what it seems."""
    match said:
        case {"phase": str(phase), "round": int(round_), "number": int(number)} if len(said) == 3 and not (
            isinstance(round_, bool) or isinstance(number, bool) or min(round_, number) < 0
        ):
            return Step(phase, round_, number)
    raise GenfedError("a step is a phase, a round and a number from 0 on")


# The server's side.


@dataclass(frozen=True)
class Letter:
    """One to a node."""

    to: int
    """The node."""
    head: Head
    body: Packed = EMPTY


class Post:
    """Sends letters and gives their answers as they come."""

    def __init__(
        self, grid: Grid, timeout: float | None = None, at_once: int | None = None, pause: float = 0.1
    ) -> None:
        """`timeout` is the seconds that a node has to answer; None: an hour. `at_once` bounds the letters on their way;
        None: only their size does. `pause` is the seconds between two looks for answers.
        """
        self._grid, self._timeout = grid, timeout or PATIENCE
        self._at_once, self._pause = at_once, pause

    def nodes(self) -> list[int]:
        """Those that are connected, sorted."""
        return sorted(_link(self._grid.get_node_ids))

    def registered(self) -> dict[int, str]:
        """The names under which the link knows the keys of nodes; those without are left out."""
        return {node.node_id: node.name for node in _link(self._grid.get_nodes) if node.name}

    def send(
        self, kind: str, letters: Iterable[tuple[Any, Letter]], group: str = "", timeout: float | None = None
    ) -> Iterator[tuple[Any, tuple[Head, Packed] | Failure]]:
        """`letters` are (whose, letter), drawn only as fast as they can be sent; gives (whose, answer) in any order.
        `kind` is "train" or "query"; `timeout` is that of these letters, None: the post's own.
        """
        coming, once, timeout = iter(letters), _Once(), timeout or self._timeout
        flying: dict[str, tuple[Any, int, float]] = {}  # message -> (whose, bytes, deadline)
        ahead = next(coming, None)
        while ahead or flying:
            while ahead and self._room(flying, ahead[1]):
                whose, letter = ahead
                content = to_content(letter.head, letter.body, once)
                message = Message(content, letter.to, kind, ttl=timeout + LATE, group_id=group)
                pushed = [name for name in _link(self._grid.push_messages, [message]) if name]
                if pushed:
                    flying[pushed[0]] = whose, letter.body.nbytes, time.monotonic() + timeout
                else:
                    yield whose, Failure("its node is not connected, or the link took no message for it")
                ahead = next(coming, None)
            if not flying:
                continue
            heard = False
            for reply in _link(self._grid.pull_messages, list(flying)):
                if (sent := flying.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    heard = True
                    yield sent[0], _opened(reply)
            now = time.monotonic()
            for name in [name for name, (_, _, deadline) in flying.items() if now > deadline]:
                yield flying.pop(name)[0], Failure(f"took longer than {timeout:g} s")
            if not heard and flying:
                time.sleep(self._pause)

    def _room(self, flying: Mapping[str, tuple[Any, int, float]], letter: Letter) -> bool:
        if not flying:
            return True
        if self._at_once is not None and len(flying) >= self._at_once:
            return False
        return sum(size for _, size, _ in flying.values()) + letter.body.nbytes <= IN_FLIGHT


def _link(call: Callable[..., Iterable[Any]], *words: Any) -> list[Any]:
    """What the link says.

    Raises:
        GenfedError: it does not answer, though Flower has tried again.
    """
    try:
        return list(call(*words))
    except GenfedError:
        raise
    except Exception as error:  # whatever its connection raises
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise GenfedError(f"the SuperLink does not answer ({why}); go on with --resume once it does") from error


LOST = {
    3: "what was sent to it got lost",
    4: "what it answered got lost",
    5: "its node was lost",
    8: "its process died",
}
"""Flower's own reports of a message that came to nothing for no fault of the letter, by code."""


def _opened(reply: Message) -> tuple[Head, Packed] | Failure:
    if reply.has_error():
        said = " ".join(str(reply.error.reason or "").split())
        return Failure(LOST.get(reply.error.code, f"its node failed (Flower's code {reply.error.code}): {said[:200]}"))
    try:
        head, body = from_content(reply.content)
    except GenfedError as error:
        return Failure(str(error))
    if "failed" in head:
        return Failure(str(head["failed"]), head.get("fatal") is True)
    return head, body


_Job = tuple[ClientInfo, Packed]


class Flower:
    """The engine: clients at nodes."""

    def __init__(
        self, post: Post, node_of: Callable[[int], int | None], opening: Head | None = None, patience: float = 0.0
    ) -> None:
        """`node_of` says at which node a client is, None: at none that is connected; for such a one it waits `patience`
        seconds.
        """
        self._post, self._node_of, self._opening, self._patience = post, node_of, opening or {}, patience
        self._lost: list[str] = []

    def open(self, trial: str) -> None:
        """Says which trial comes next, in words that the clients' side understands."""
        self._opening = {"open": trial}

    def exchange(
        self, step: Step, jobs: Iterable[tuple[ClientInfo, Packed]]
    ) -> Iterator[tuple[ClientInfo, Answer | Failure]]:
        """See `Engine`. A client whose node or process was lost is asked once more."""
        asked_again: set[int] = set()
        waiting: list[_Job] = []
        absent: list[_Job] = []

        def letters(some: Iterable[_Job]) -> Iterator[tuple[_Job, Letter]]:
            for info, sent in some:
                if (node := self._node_of(info.id)) is None:
                    absent.append((info, sent))
                else:
                    yield (info, sent), Letter(node, self._opening | {"step": asdict(step), "client": info.id}, sent)

        some, since = jobs, time.monotonic()
        while True:
            for (info, sent), outcome in self._post.send("train", letters(some), str(step.number)):
                if isinstance(outcome, Failure) and outcome.reason in LOST.values() and info.id not in asked_again:
                    asked_again.add(info.id)
                    self._lost.append(f"client {info.id}: {outcome.reason}; asked again")
                    log.warning(self._lost[-1])
                    waiting.append((info, sent))
                else:
                    yield info, _answer(outcome)
            if absent and time.monotonic() - since > self._patience:
                for info, _ in absent:
                    yield info, Failure("it is not connected")
                absent.clear()
            if not (waiting or absent):
                return
            if not waiting:
                time.sleep(1)
            some = [*waiting, *absent]
            waiting, absent = [], []

    def lost(self) -> list[str]:
        """See `Engine`."""
        lines, self._lost = self._lost, []
        return lines


def _answer(outcome: tuple[Head, Packed] | Failure) -> Answer | Failure:
    """An answer whose head is what it should be; its record is judged by `Ask`."""
    if isinstance(outcome, Failure):
        return outcome
    head, body = outcome
    weight, metrics, seconds = head.get("weight"), head.get("metrics"), head.get("seconds")
    numbers = isinstance(metrics, dict) and all(_number(value) for value in metrics.values())
    if not (_number(weight) and _number(seconds) and numbers):
        return Failure("its answer lacks a weight, metrics or seconds that are numbers")
    given: dict[str, float] = {str(name): float(value) for name, value in head["metrics"].items()}
    return Answer(body, float(head["weight"]), given, float(head["seconds"]))


def _number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # JSON has integers that no float holds
    return isinstance(value, float)


# Simulation.


class _Opens(Hashable, Protocol):
    def __call__(self, text: str, /) -> Site: ...


@functools.lru_cache(maxsize=1)
def _site(site_of: _Opens, threads: int, text: str) -> Site:
    import torch

    torch.set_num_threads(threads)
    return site_of(text)


def _simulated(site_of: _Opens, threads: int, head: Head, body: Packed, node: Mapping[str, Any]) -> tuple[Head, Packed]:
    return worked(_site(site_of, threads, head["open"]), head, body)


@contextlib.contextmanager
def simulation(
    clients: int, workers: int, threads: int, site_of: _Opens, timeout: float | None = None
) -> Iterator[Flower]:
    """An engine whose nodes Ray simulates in `workers` processes of `threads` threads on this machine.

    Raises:
        GenfedError: the extra is not installed, or Ray does not start.
    """
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError:
        raise GenfedError(f"Flower's simulation needs Ray; {_EXTRA}") from None
    # Flower calls the server; here the server calls Flower: its main lends the grid and waits until all is done.
    lent: queue.Queue[Grid | BaseException] = queue.Queue()
    done = threading.Event()
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]
    def _(grid: Grid, context: Context) -> None:
        lent.put(grid)
        done.wait()

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "num_cpus": workers}

    def simulate() -> None:
        try:
            run_simulation(
                server,
                client_app(functools.partial(_simulated, site_of, threads)),
                num_supernodes=clients,
                backend_config={"client_resources": resources, "init_args": quiet},
            )
            lent.put(GenfedError("Flower's simulation ended by itself"))
        except BaseException as error:
            lent.put(error)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    thread = threading.Thread(target=simulate, name="flower-simulation", daemon=True)
    thread.start()
    grid = lent.get()
    try:
        if isinstance(grid, BaseException):
            raise GenfedError(f"Flower's simulation did not start: {grid}")
        post = Post(_Watched(grid, lent), timeout, at_once=4 * workers, pause=0.02)
        nodes = _when_there(post, clients)
        yield Flower(post, lambda client: nodes[client % len(nodes)])
    finally:
        done.set()
        thread.join(60)


class _Watched:
    """A grid that says so when its simulation has ended."""

    def __init__(self, grid: Grid, ended: "queue.Queue[Any]") -> None:
        self._grid, self._ended = grid, ended
        self.push_messages, self.get_node_ids = grid.push_messages, grid.get_node_ids

    def pull_messages(self, names: Sequence[str]) -> Iterable[Message]:
        """See `Grid`."""
        with contextlib.suppress(queue.Empty):
            raise GenfedError(f"Flower's simulation stopped: {self._ended.get_nowait()}")
        replies: Iterable[Message] = self._grid.pull_messages(names)
        return replies


def _when_there(post: Post, count: int, patience: float = 60.0) -> list[int]:
    begun = time.monotonic()
    while len(nodes := post.nodes()) < count:
        if time.monotonic() - begun > patience:
            raise GenfedError(f"Flower's simulation has {len(nodes)} of {count} nodes after {patience:g} s")
        time.sleep(0.05)
    return nodes


# A federation of sites.


def server_app(main: Callable[[Grid, Mapping[str, Any]], None]) -> ServerApp:
    """What the link runs: `main(grid, run settings)`."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def _(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app
