"""The connections of the gateway, within bounds of number and time. They count from the moment they are accepted: a TLS
handshake that never comes takes an open file too.
"""

import asyncio
import collections
import contextlib
import ipaddress
import logging
import socket
import time

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from genfed.core.errors import GenfedError
from genfed.deployment.processes import Address, allow_open_files

AT_ONCE = 1024
"""Connections at once; fewer where the system allows too few open files."""
AT_ADDRESS = 256
"""Connections at once of one address, or of one network /64 of IPv6. Sites behind one router share an address."""
HANDSHAKE_SECONDS = 10.0
"""Seconds that a TLS handshake may take."""
HEAD_SECONDS = 10.0
"""Seconds that a connection has to send the head of a request, from its handshake or from the last answer."""
IDLE_SECONDS = 5
"""Seconds after an answer after which a connection that sends nothing is closed."""
SPARE_FILES = 64
"""Open files that are no connections: modules, keys, logs."""
log = logging.getLogger(__name__)
_PAUSE = 0.2  # seconds without a try where the system has no room for another connection
_REPEAT = 60.0  # seconds between two lines of one kind


def count_connections() -> int:
    """Returns how many connections there may be at once, with the open files that the system allows: each connection of
    a site may need another one to the SuperLink.
    """
    files = allow_open_files(2 * AT_ONCE + SPARE_FILES)
    allowed = max(1, min(AT_ONCE, (files - SPARE_FILES) // 2))
    if allowed < AT_ONCE:
        log.warning("the system allows %d open files (ulimit -n): at most %d connections at once", files, allowed)
    return allowed


class BoundedServer(uvicorn.Server):
    """A server that closes at once what is beyond the bounds, and accepts again when there is room."""

    def __init__(self, config: uvicorn.Config, address: Address, at_once: int) -> None:
        """Serves at `address`; `at_once` is how many connections there may be at once."""
        super().__init__(config)
        self._address, self._at_once = address, at_once
        self._held = collections.Counter[str]()
        """Connections, by their network."""
        self._accepting, self._tasks = list[asyncio.Task[None]](), set[asyncio.Task[None]]()
        self._said = dict[str, float]()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections.

        Raises:
            GenfedError: the address cannot be used.
        """
        listening = _listen(self._address)
        await super().startup(sockets=[])
        self._accepting = [asyncio.create_task(self._accept(each)) for each in listening]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more connections, and ends those that there are."""
        for task in (*self._accepting, *self._tasks):
            task.cancel()
        await super().shutdown(sockets=[])

    async def _accept(self, listening: socket.socket) -> None:
        """Accepts connections until it is cancelled. Where the system has no open file or memory left, they wait."""
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    link, place = await loop.sock_accept(listening)
                except ConnectionError:
                    continue  # it ended before it was accepted
                except OSError as error:
                    self._say("system", f"cannot accept connections now: {error.strerror or error}")
                    await asyncio.sleep(_PAUSE)
                    continue
                self._admit(link, network_of(place[0]))

    def _admit(self, link: socket.socket, network: str) -> None:
        """Serves a connection, or closes it where there are too many."""
        share = max(1, min(AT_ADDRESS, self._at_once // 4))
        if self._held.total() >= self._at_once:
            self._say("all", f"refused a connection: there are {self._at_once} at once")
            link.close()
        elif self._held[network] >= share:
            self._say("address", f"refused a connection of {network}, which has {share} at once")
            link.close()
        else:
            self._held[network] += 1
            task = asyncio.create_task(self._hold(link, network))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _hold(self, link: socket.socket, network: str) -> None:
        """Serves a connection to its end, and counts it until then."""
        config, state = self.config, self.server_state
        made = Connection(config, state, self.lifespan.state)
        limits = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": HANDSHAKE_SECONDS}
        try:
            with contextlib.suppress(OSError):  # also: a handshake that failed, or took too long
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: made, link, ssl=config.ssl, **(limits if config.ssl else {})
                )
                await made.closed.wait()
        finally:
            self._held[network] -= 1
            if not self._held[network]:
                del self._held[network]

    def _say(self, kind: str, line: str) -> None:
        """Logs a line, unless one of its kind was logged in the last minute."""
        if (now := time.monotonic()) - self._said.get(kind, -_REPEAT) >= _REPEAT:
            log.warning("%s", line)
            self._said[kind] = now


def _listen(address: Address) -> list[socket.socket]:
    """Returns sockets that listen at all addresses of a host.

    Raises:
        GenfedError: one of them cannot be used.
    """
    found = list[socket.socket]()
    try:
        host = address.host.strip("[]")
        for family, _, _, _, place in socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM):
            found.append(socket.create_server(place, family=family, backlog=AT_ONCE))
            found[-1].setblocking(False)
    except OSError as error:
        for each in found:
            each.close()
        raise GenfedError(f"cannot listen at {address}: {error.strerror or error}") from None
    return found


def network_of(host: str) -> str:
    """Returns the network that counts as one party: an address of IPv4, or the first 64 bits of one of IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


class Connection(H11Protocol):
    """One connection after its handshake. It is closed where it does not send the whole head of a request in time: half
    requests of one party would otherwise take all connections for ever. (h11 bounds the size of a head; httptools,
    which uvicorn prefers, does not.)
    """

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *about: object) -> None:
        super().__init__(*about)  # type: ignore[arg-type]  # what uvicorn gives it
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        self.closed.set()

    def _watch(self) -> None:
        """Starts the time for a head, unless it runs; stops it while a request is answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self._stop_watching()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
