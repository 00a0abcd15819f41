"""Flower's simulation on one machine."""

import contextlib
import functools
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.engines.client_runner import ClientRunner
from genfed.engines.flower import EXTRA
from genfed.engines.flower.client import handle_work, make_client_app
from genfed.engines.flower.engine import FlowerEngine, MessageLink
from genfed.engines.flower.messages import MessageHeader

_RESOURCES = {"num_cpus": 1, "num_gpus": 0.0}
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


class _OpenRunner(Hashable, Protocol):
    def __call__(self, text: str, /) -> ClientRunner: ...


@functools.lru_cache(maxsize=1)
def _open_once(open_runner: _OpenRunner, threads: int, text: str) -> ClientRunner:
    import torch

    torch.set_num_threads(threads)
    return open_runner(text)


def _handle(
    open_runner: _OpenRunner, threads: int, head: MessageHeader, body: Packed, node: Mapping[str, Any]
) -> tuple[MessageHeader, Packed]:
    return handle_work(_open_once(open_runner, threads, head["open"]), head, body)


@contextlib.contextmanager
def open_simulation(
    clients: int, workers: int, threads: int, open_runner: _OpenRunner, timeout: float | None = None
) -> Iterator[FlowerEngine]:
    """Yields an engine whose nodes Ray simulates on this machine.

    Args:
        clients: the number of nodes.
        workers: the number of processes.
        threads: the number of torch's threads in each process.
        open_runner: makes the client runner of the trial that `FlowerEngine.open` names.
        timeout: seconds that a client may take for a round. None: an hour.

    Raises:
        GenfedError: the extra is not installed, or Ray does not start.
    """
    _demand_token()
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError:
        raise GenfedError(f"Flower's simulation needs Ray; {EXTRA}") from None
    # Flower calls the server, and here the server calls Flower: its main lends the grid and waits until the end.
    lent: queue.Queue[Grid | BaseException] = queue.Queue()
    done, server = threading.Event(), ServerApp()

    @server.main()  # type: ignore[untyped-decorator]
    def _(grid: Grid, context: Context) -> None:
        lent.put(grid)
        done.wait()

    def simulate() -> None:
        try:
            run_simulation(
                server,
                make_client_app(functools.partial(_handle, open_runner, threads)),
                num_supernodes=clients,
                backend_config={"client_resources": _RESOURCES, "init_args": _QUIET | {"num_cpus": workers}},
            )
            lent.put(GenfedError("Flower's simulation ended by itself"))
        except BaseException as error:
            lent.put(error)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    thread = threading.Thread(target=simulate, name="flower-simulation", daemon=True)
    thread.start()
    try:
        yield _make_engine(lent, clients, workers, timeout)
    finally:
        done.set()
        thread.join(60)


def _demand_token() -> None:
    """Has Ray's processes refuse calls without a secret of this process. They listen on all networks of the machine,
    and would otherwise run code for anyone who reaches them. What a user has set for Ray counts, and a Ray that was
    imported before stays as it is: it reads its environment once.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _make_engine(
    lent: "queue.Queue[Grid | BaseException]", clients: int, workers: int, timeout: float | None
) -> FlowerEngine:
    """Returns the engine on a simulation's grid, once the simulation has put it into `lent` and its nodes are there."""
    grid = lent.get()
    if isinstance(grid, BaseException):
        raise GenfedError(f"Flower's simulation did not start: {grid}")
    link = MessageLink(_WatchedGrid(grid, lent), timeout, at_once=4 * workers, pause=0.02)
    nodes = _wait_for_nodes(link, clients)
    return FlowerEngine(link, lambda client: nodes[client % len(nodes)])


class _WatchedGrid:
    """A grid that raises an error when its simulation has ended."""

    def __init__(self, grid: Grid, ended: "queue.Queue[Any]") -> None:
        self._grid, self._ended = grid, ended
        self.push_messages, self.get_node_ids = grid.push_messages, grid.get_node_ids

    def pull_messages(self, names: Sequence[str]) -> Iterable[Message]:
        """See `Grid`."""
        with contextlib.suppress(queue.Empty):
            raise GenfedError(f"Flower's simulation stopped: {self._ended.get_nowait()}")
        replies: Iterable[Message] = self._grid.pull_messages(names)
        return replies


def _wait_for_nodes(link: MessageLink, count: int, patience: float = 60.0) -> list[int]:
    started = time.monotonic()
    while len(nodes := link.nodes()) < count:
        if time.monotonic() - started > patience:
            raise GenfedError(f"Flower's simulation has {len(nodes)} of {count} nodes after {patience:g} s")
        time.sleep(0.05)
    return nodes
