"""The only door of a server: it lets sites through to the SuperLink's Fleet API, and nothing else to anything else.

Flower's SuperLink has one port for everything: sites fetch their messages there (`/v1/fleet`), and anyone who reaches
it starts runs there (`/v1/control`) without a key. So the SuperLink listens on this machine's loopback alone, and this
gateway listens for sites. It forwards the few calls of a site by a fixed list of paths, and only under a key that is
admitted and has signed. It reads what it forwards: a site sends answers of its own, and never a request to other sites.
"""

import asyncio
import base64
import binascii
import collections
import contextlib
import functools
import logging
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from genfed._version import __version__
from genfed.core.errors import GenfedError
from genfed.deployment.certificate_check import read_public_key, read_public_keys
from genfed.deployment.certificates import SERVER, SERVER_KEY
from genfed.deployment.link_check import HELLO, KEY_HEADER
from genfed.deployment.listener import IDLE_SECONDS, BoundedServer, Connection, count_connections
from genfed.deployment.processes import Address
from genfed.engines.flower.fleet import check_call, is_signed

FLEET = "/v1/fleet"
CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""Calls of the Fleet API that a site with a key needs."""
OPEN_CALLS = ("register-node", "unregister-node")
"""Further calls, of sites without keys."""
LARGEST = 2**26
"""Bytes of a request; Flower sends arrays in parts of 5 MiB."""
LARGEST_WITHOUT_ARRAYS = 2**22
"""Bytes of any other request than `push-object`; the ids of 30,000 arrays fit."""
HELD_AT_ONCE = 2**29
"""Bytes of all requests that are being read or forwarded."""
HELD_BY_ONE = 2**27
"""Bytes of those of them that are under one key."""
BODY_SECONDS = 300.0
"""How long a request may take to arrive, from its head on. A SuperLink calls older signatures too old."""
log = logging.getLogger(__name__)
_FLOWER_KEY, _FLOWER_TIME, _FLOWER_SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
_NOT_FORWARDED = {"host", "connection", "transfer-encoding", "content-length", "keep-alive", "upgrade", "te", "trailer"}


class AdmittedKeys:
    """The public keys in a folder, read again when a file has come, gone or changed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` has a NAME.pub for each site. None: sites have no keys, and anyone is admitted."""
        self.folder = folder
        self._files, self._names = list[tuple[str, int, int, int]](), dict[str, str]()

    def name_of(self, key: str) -> str | None:
        """Returns the name of the site with a public key (kind and content). None: the key is not admitted, or sites
        have no keys.
        """
        if self.folder is None:
            return None
        if (files := _list_versions(self.folder)) != self._files:
            self._names, self._files = self._read(self.folder), files
        return self._names.get(key)

    def _read(self, folder: Path) -> dict[str, str]:
        """Returns the names of the sites by their keys. A file that cannot be read, such as one that is being written,
        admits nobody, and keeps nobody else admitted or out. Of two files with one key the one that was there counts.
        """
        names = dict[str, str]()
        for file in sorted(folder.glob("*.pub")):
            try:
                key = read_public_key(file)
            except (OSError, GenfedError) as error:
                log.warning("%s: admits nobody", error)
                continue
            if key not in names or self._names.get(key) == file.stem:
                names[key] = file.stem
        return names

    def admits(self, key: str) -> bool:
        """Returns whether requests under a key (kind and content) are admitted."""
        return self.folder is None or self.name_of(key) is not None


def _read_key(header: str) -> str:
    """Returns the public key (kind and content) in a header, as Flower writes it: PEM in base64. One key has many such
    spellings, and one result. Empty: the header holds none.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    try:
        key = serialization.load_pem_public_key(base64.b64decode(header, validate=True))
        return key.public_bytes(*openssh).decode()
    except (ValueError, binascii.Error, UnsupportedAlgorithm):
        return ""


class _Bodies:
    """The bodies of requests, which take bounded memory together."""

    def __init__(self) -> None:
        self._held = collections.Counter[str]()
        """Bytes, by the key of their sender."""

    @contextlib.asynccontextmanager
    async def read(self, request: Request, sender: str, largest: int) -> AsyncIterator[bytes]:
        """Gives the body of a request. It counts as held until the context ends.

        Args:
            request: the request.
            sender: its key (kind and content).
            largest: largest number of bytes.

        Raises:
            HTTPException: it is too large (413), too slow (408) or not all there (400), or all are too large (503).
        """
        body, counted = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for part in request.stream():
                        counted += len(part)
                        self._held[sender] += len(part)
                        if counted > largest:
                            raise HTTPException(413, f"too large: at most {largest} bytes")
                        if self._held[sender] > HELD_BY_ONE or self._held.total() > HELD_AT_ONCE:
                            raise HTTPException(503, "too many requests at once")
                        body += part
            except TimeoutError:
                raise HTTPException(408, f"too slow: at most {BODY_SECONDS:g} s") from None
            except ClientDisconnect:
                raise HTTPException(400, "the request ended early") from None
            content = bytes(body)
            body.clear()
            yield content
        finally:
            self._held[sender] -= counted
            if not self._held[sender]:
                del self._held[sender]


def _list_versions(folder: Path) -> list[tuple[str, int, int, int]]:
    """Returns name, times and size of each public key. A file that is overwritten in place does not change the folder,
    and one that is copied with its times keeps all but the time of its last change of any kind.
    """
    found = list[tuple[str, int, int, int]]()
    for file in sorted(folder.glob("*.pub")):
        with contextlib.suppress(OSError):  # deleted meanwhile, or a link that leads nowhere
            about = file.stat()
            found.append((file.name, about.st_mtime_ns, about.st_ctime_ns, about.st_size))
    return found


class _Gateway:
    """Answers the requests of sites."""

    def __init__(self, link: str, keys: AdmittedKeys, client: httpx.AsyncClient) -> None:
        self._link, self._keys, self._client, self._bodies = link, keys, client, _Bodies()

    async def forward(self, call: str, request: Request) -> Response:
        """Forwards one call of the Fleet API; `call` is one of a fixed list."""
        sender = self._check_sender(request)
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_FORWARDED]
        largest = LARGEST if call == "push-object" else LARGEST_WITHOUT_ARRAYS
        async with self._bodies.read(request, sender, largest) as content:
            try:
                check_call(call, content)
                sent = self._client.build_request(
                    "POST", f"{self._link}{FLEET}/{call}", headers=headers, content=content
                )
                answer = await self._client.send(sent, stream=True)
            except GenfedError as error:
                return PlainTextResponse(str(error), 400)
            except httpx.HTTPError:
                return PlainTextResponse("the SuperLink does not answer", 503)
        kept = {name: value for name, value in answer.headers.items() if name not in _NOT_FORWARDED}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    def _check_sender(self, request: Request) -> str:
        """Returns the key (kind and content) of who sends a request. Refuses who has no admitted key: a public key
        alone is known to many, so a signature of it counts.

        Raises:
            HTTPException: with status 401.
        """
        key, signed_at, signature = (
            request.headers.get(name, "") for name in (_FLOWER_KEY, _FLOWER_TIME, _FLOWER_SIGNATURE)
        )
        if not self._keys.admits(sender := _read_key(key)):
            raise HTTPException(401, "this key is not admitted")
        if self._keys.folder is not None and not is_signed(key, signed_at, signature):
            raise HTTPException(401, "the key has not signed the time, or its clock is not the server's")
        return sender

    async def hello(self, request: Request) -> Response:
        """Says what the server knows of the site with a key, for `check_link`."""
        key = " ".join(request.headers.get(KEY_HEADER, "").split()[:2])
        try:
            alive = (await self._client.get(f"{self._link}/health", timeout=3.0)).status_code < 500
        except httpx.HTTPError:
            alive = False
        return JSONResponse(
            {
                "genfed": __version__,
                "keys": self._keys.folder is not None,
                "name": self._keys.name_of(key),
                "link": alive,
                "clock": time.time(),
            }
        )


def make_gateway(link: str, keys: AdmittedKeys, client: httpx.AsyncClient) -> Starlette:
    """Returns the application.

    Args:
        link: URL of the SuperLink, without a path.
        keys: who is admitted.
        client: reaches the SuperLink.
    """
    gateway = _Gateway(link, keys, client)
    calls = CALLS if keys.folder is not None else CALLS + OPEN_CALLS
    forwarded = (
        Route(f"{FLEET}/{call}", functools.partial(gateway.forward, call), methods=["POST"], name=call)
        for call in calls
    )
    return Starlette(routes=[*forwarded, Route(HELLO, gateway.hello, methods=["GET"])])


def run_gateway(address: Address, link: Address, keys: Path | None, authority: Path | None) -> None:
    """Serves sites until this process is stopped.

    Args:
        address: where sites find the server.
        link: where the SuperLink listens.
        keys: folder with server.crt, server.key and a .pub per site. None: no TLS, open to anyone.
        authority: the certificate of the authority that signed the SuperLink's. None: it is reached without TLS.

    Raises:
        GenfedError: a public key cannot be read, or the address cannot be used.
    """
    if keys is not None:
        read_public_keys(keys)
    verify = ssl.create_default_context(cafile=str(authority)) if authority else False
    scheme, at_once = "https" if authority else "http", count_connections()
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=64, keepalive_expiry=4.0)
    client = httpx.AsyncClient(verify=verify, timeout=httpx.Timeout(60.0), limits=limits)
    gateway = make_gateway(f"{scheme}://{link}", AdmittedKeys(keys), client)
    with contextlib.suppress(KeyboardInterrupt):
        BoundedServer(configure_server(gateway, keys), address, at_once).run()


def configure_server(gateway: Starlette, keys: Path | None) -> uvicorn.Config:
    """Returns how connections are served: over TLS if there are keys."""
    return uvicorn.Config(
        gateway,
        http=Connection,
        ws="none",
        ssl_certfile=None if keys is None else str(keys / SERVER),
        ssl_keyfile=None if keys is None else str(keys / SERVER_KEY),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
    )
