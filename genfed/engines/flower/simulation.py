"""Flower's simulation on one machine."""

import contextlib
import functools
import logging
import queue
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


# Simulation.
class _Opens(Hashable, Protocol):
    def __call__(self, text: str, /) -> ClientRunner: ...


@functools.lru_cache(maxsize=1)
def _site(site_of: _Opens, threads: int, text: str) -> ClientRunner:
    import torch

    torch.set_num_threads(threads)
    return site_of(text)


def _simulated(
    site_of: _Opens, threads: int, head: MessageHeader, body: Packed, node: Mapping[str, Any]
) -> tuple[MessageHeader, Packed]:
    return handle_work(_site(site_of, threads, head["open"]), head, body)


@contextlib.contextmanager
def open_simulation(
    clients: int, workers: int, threads: int, site_of: _Opens, timeout: float | None = None
) -> Iterator[FlowerEngine]:
    """An engine whose nodes Ray simulates in `workers` processes of `threads` threads on this machine.

    Raises:
        GenfedError: the extra is not installed, or Ray does not start.
    """
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError:
        raise GenfedError(f"Flower's simulation needs Ray; {EXTRA}") from None
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
                make_client_app(functools.partial(_simulated, site_of, threads)),
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
        post = MessageLink(_Watched(grid, lent), timeout, at_once=4 * workers, pause=0.02)
        nodes = _when_there(post, clients)
        yield FlowerEngine(post, lambda client: nodes[client % len(nodes)])
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


def _when_there(post: MessageLink, count: int, patience: float = 60.0) -> list[int]:
    begun = time.monotonic()
    while len(nodes := post.nodes()) < count:
        if time.monotonic() - begun > patience:
            raise GenfedError(f"Flower's simulation has {len(nodes)} of {count} nodes after {patience:g} s")
        time.sleep(0.05)
    return nodes
