"""What the gateway forwards to a SuperLink, and what a site learns from it."""

import asyncio
import base64
import contextlib
import datetime
import http.client
import http.server
import json
import os
import re
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from genfed._version import __version__
from genfed.core.errors import GenfedError

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node

from genfed.deployment import gateway, link_check, listener
from genfed.deployment.certificate_check import read_private_key, read_public_keys
from genfed.deployment.certificates import make_keys
from genfed.deployment.processes import Address, free_port
from genfed.deployment.site_settings import LocatedSite, read_site
from genfed.engines.flower import fleet

pytestmark = pytest.mark.flower


class Link:
    """A SuperLink that notes what reaches it."""

    def __init__(self, alive: bool = True) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self._alive = alive

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self._alive:
            raise httpx.ConnectError("down")
        if request.url.path == "/health":
            return httpx.Response(200)
        self.got.append((request.method, request.url.raw_path.decode(), request.content))
        return httpx.Response(412, headers={"content-type": "x/y", "keep-alive": "1"}, stream=httpx.ByteStream(b"no"))


def header_of(keys: Path, name: str) -> str:
    """A public key as Flower's nodes send it."""
    key = serialization.load_ssh_public_key((keys / f"{name}.pub").read_bytes())
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return base64.b64encode(key.public_bytes(*form)).decode()


def signed(keys: Path, name: str, late: float = 0.0, signer: str = "") -> dict[str, str]:
    """The headers of a request of a node, signed `late` seconds ago, with the private key of `signer`."""
    at = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=late)).isoformat()
    key = serialization.load_ssh_private_key((keys / (signer or name)).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = base64.b64encode(key.sign(at.encode(), ec.ECDSA(hashes.SHA256()))).decode()
    return {"flwr-public-key": header_of(keys, name), "flwr-timestamp": at, "flwr-signature": signature}


def answers(*replies: tuple[str, int], node: int = 7) -> bytes:
    """A push of messages of a node, each with what it answers and who it says sent it."""
    about = [Metadata(run_id=1, message_id="m", reply_to_message_id=to, src_node_id=by) for to, by in replies]
    request = PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[Message(metadata=metadata) for metadata in about],
        message_object_trees=[ObjectTree(object_id="m") for _ in about],
    )
    return bytes(request.SerializeToString())


def an_object(size: int) -> bytes:
    return bytes(PushObjectRequest(node=Node(node_id=7), object_content=b"x" * size).SerializeToString())


def ask(link: Link, keys: Path | None, method: str, path: str, **given: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.MockTransport(link)) as inside:
            app = gateway.make_gateway("https://127.0.0.1:1", gateway.AdmittedKeys(keys), inside)
            outside = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=outside, base_url="https://server") as client:
                return await client.request(method, path, **given)

    return asyncio.run(once())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway")
    make_keys(folder / "keys", ["north", "south"])
    make_keys(folder / "others", ["east"])
    (folder / "others" / "east.pub").rename(folder / "east.pub")
    return folder / "keys"


def test_the_calls_of_a_site_are_forwarded_with_what_is_answered(keys: Path) -> None:
    headers = signed(keys, "north") | {"connection": "close"}
    for call in gateway.CALLS:
        link = Link()
        body = answers(("instruction", 7)) if call == "push-messages" else fleet.REQUESTS[call]().SerializeToString()
        answer = ask(link, keys, "POST", f"/v1/fleet/{call}?x=y", content=body, headers=headers)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (412, b"no", "x/y")
        assert "keep-alive" not in answer.headers
        assert link.got == [("POST", f"/v1/fleet/{call}", body)]
    assert ask(Link(alive=False), keys, "POST", "/v1/fleet/get-run", headers=headers).status_code == 503


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet//get-run",
        "/v1/fleet/get-run/../../control/start-run",
        "/v1/fleet/get-run%0a",
        "//v1/control/start-run",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_nothing_else_reaches_the_superlink(path: str, keys: Path) -> None:
    link = Link()
    for method in ("GET", "POST", "PUT", "CONNECT"):
        answer = ask(link, keys, method, path, headers=signed(keys, "north"))
        assert answer.status_code in (404, 405) or (path.endswith("%0a") and answer.status_code == 412)
    assert {called for _, called, _ in link.got} <= {"/v1/fleet/get-run"}


def test_who_has_no_admitted_key_or_no_signature_is_refused_before_the_body_is_read(keys: Path) -> None:
    good, read = signed(keys, "north"), list[bytes]()

    async def body() -> AsyncIterator[bytes]:
        read.append(b"x")
        yield b"x"

    stranger = header_of(keys.parent, "east")
    forged = [
        {**good, "flwr-public-key": key} for key in (stranger, "", "rubbish", base64.b64encode(b"rubbish").decode())
    ]
    forged += [
        {"flwr-public-key": good["flwr-public-key"]},
        {**good, "flwr-signature": ""},
        {**good, "flwr-signature": "é"},
        {**good, "flwr-signature": base64.b64encode(b"rubbish").decode()},
        {**good, "flwr-timestamp": ""},
        {**good, "flwr-timestamp": datetime.datetime.now(datetime.UTC).isoformat() + "+00:00"},
        {**good, "flwr-timestamp": datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat()},
        {**good, "flwr-timestamp": datetime.datetime.now(datetime.UTC).isoformat()},
        {**good, "flwr-timestamp": "0001-01-01T00:00:00+23:59"},
        {**good, "flwr-timestamp": "9" * 5000},
        signed(keys, "north", signer="south"),
        signed(keys, "north", late=400),
        signed(keys, "north", late=-60),
    ]
    for headers in forged:
        link = Link()
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        assert ask(link, keys, "POST", "/v1/fleet/push-object", headers=raw, content=body()).status_code == 401, headers
        assert not link.got
        assert not read
    assert ask(Link(), keys, "POST", "/v1/fleet/push-object", headers=good, content=body()).status_code == 400
    assert read, "a body that counts is read"
    link = Link()
    assert ask(link, None, "POST", "/v1/fleet/register-node").status_code == 412, "a trial without keys"
    assert link.got


def test_a_key_of_another_kind_signs_nothing(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    at = datetime.datetime.now(datetime.UTC).isoformat()
    sent = (base64.b64encode(part).decode() for part in (key.public_key().public_bytes(*form), key.sign(at.encode())))
    assert not fleet.is_signed(next(sent), at, next(sent))


@pytest.mark.parametrize("open_to_anyone", [False, True])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (answers(("", 1)), "reply_to_message_id is empty"),
        (answers(("", 7)), "reply_to_message_id is empty"),
        (answers(("instruction", 1)), "node 7 cannot send as node 1"),
        (answers(("instruction", 8)), "node 7 cannot send as node 8"),
        (answers(("instruction", 7), node=0), "node 0 cannot send as node 7"),
        (answers(("instruction", 7), ("", 1)), "not 2"),
        (answers(("instruction", 7)) + answers(("", 1)), "not 2"),
        (answers(), "not 0"),
        (PushMessagesRequest(messages_list=[Message()]).SerializeToString(), "one message at a time"),
        (b"", "not 0"),
        (b"rubbish", "no request of the kind push-messages"),
        (answers(("instruction", 7))[:-1], "no request of the kind push-messages"),
    ],
)
def test_a_site_sends_answers_of_its_own_and_nothing_else(
    body: bytes, says: str, open_to_anyone: bool, keys: Path
) -> None:
    """A SuperLink stores a message that answers none as an instruction of the server, for any other site."""
    link = Link()
    admitted = None if open_to_anyone else keys
    answer = ask(link, admitted, "POST", "/v1/fleet/push-messages", content=body, headers=signed(keys, "north"))
    assert answer.status_code == 400
    assert re.search(says, answer.text)
    assert not link.got


def test_what_is_no_request_is_refused_for_every_call(keys: Path) -> None:
    assert set(fleet.REQUESTS) == {*gateway.CALLS, *gateway.OPEN_CALLS}
    for call in fleet.REQUESTS:
        link = Link()
        assert ask(link, None, "POST", f"/v1/fleet/{call}", content=b"\xff" * 9).status_code == 400
        assert not link.got


def test_a_body_that_is_too_large_is_refused(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = signed(keys, "north")
    for call, name in (("push-object", "LARGEST"), ("pull-object", "LARGEST_WITHOUT_ARRAYS")):
        body = an_object(10) if call == "push-object" else b"\x12\x05abcde"
        for spare, status in ((0, 412), (-1, 413)):
            link = Link()
            monkeypatch.setattr(gateway, name, len(body) + spare)
            assert ask(link, keys, "POST", f"/v1/fleet/{call}", content=body, headers=headers).status_code == status
            assert bool(link.got) == (status == 412)


def push_at_once(
    keys: Path,
    bodies: list[AsyncIterator[bytes]],
    names: tuple[str, ...] = ("north",) * 3,
    head: Callable[[Path, str], dict[str, str]] = signed,
) -> list[int]:
    """What the gateway answers to objects that are pushed one after the other, while earlier ones still arrive."""

    async def all_of_them() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(Link())) as inside:
            outside = httpx.ASGITransport(gateway.make_gateway("https://h", gateway.AdmittedKeys(keys), inside))
            async with httpx.AsyncClient(transport=outside, base_url="https://server") as client:
                sent = [
                    asyncio.create_task(client.post("/v1/fleet/push-object", content=body, headers=head(keys, name)))
                    for name, body in zip(names, bodies, strict=False)
                ]
                return [answer.status_code for answer in await asyncio.gather(*sent)]

    return asyncio.run(all_of_them())


def test_bodies_together_take_bounded_memory_and_bounded_time(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = an_object(100)

    async def arriving(seconds: float) -> AsyncIterator[bytes]:
        yield body[:80]
        await asyncio.sleep(seconds)
        yield body[80:]

    monkeypatch.setattr(gateway, "HELD_AT_ONCE", 2 * len(body))
    assert push_at_once(keys, [arriving(0.2), arriving(0.3), arriving(0.1)]) == [412, 412, 503]
    assert push_at_once(keys, [arriving(0.1), arriving(0.1)]) == [412, 412]
    monkeypatch.setattr(gateway, "HELD_BY_ONE", len(body))
    names = ("north", "north", "south")
    assert push_at_once(keys, [arriving(0.2), arriving(0.1), arriving(0.1)], names) == [412, 503, 412]
    monkeypatch.setattr(gateway, "HELD_BY_ONE", 2 * len(body))
    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.1)
    assert push_at_once(keys, [arriving(0.0), arriving(5.0)]) == [412, 408]


def test_one_key_has_one_share_of_the_memory_however_it_is_spelled(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, spelled = an_object(100), iter(range(4))

    def spell(keys: Path, name: str) -> str:
        return base64.b64encode(base64.b64decode(header_of(keys, name)) + b"\n" * next(spelled)).decode()

    def send(keys: Path, name: str) -> dict[str, str]:
        return signed(keys, name) | {"flwr-public-key": spell(keys, name)}

    async def arriving(seconds: float) -> AsyncIterator[bytes]:
        yield body[:80]
        await asyncio.sleep(seconds)
        yield body[80:]

    monkeypatch.setattr(gateway, "HELD_BY_ONE", len(body))
    names = ("north", "north", "north", "south")
    sent = [arriving(0.2), *(arriving(0.1) for _ in range(3))]
    assert push_at_once(keys, sent, names, send) == [412, 503, 503, 412]


def test_keys_that_come_and_go_count_at_once(keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["north"])
    admitted = gateway.AdmittedKeys(tmp_path / "keys")
    east = " ".join((keys.parent / "east.pub").read_text().split()[:2])
    assert admitted.name_of(east) is None
    (tmp_path / "keys" / "east.pub").write_text((keys.parent / "east.pub").read_text())
    assert admitted.name_of(east) == "east"
    (tmp_path / "keys" / "broken.pub").write_text("rubbish")
    assert admitted.name_of(east) == "east"
    (tmp_path / "keys" / "west.pub").symlink_to("none")
    (tmp_path / "keys" / "east.pub").unlink()
    assert admitted.name_of(east) is None
    (tmp_path / "keys" / "east.pub").write_text((keys.parent / "east.pub").read_text())
    assert admitted.name_of(east) == "east"
    (tmp_path / "keys" / "copy.pub").write_text((keys.parent / "east.pub").read_text())
    assert admitted.name_of(east) == "east"  # a second file with the key takes no name away
    (tmp_path / "keys" / "east.pub").write_text("rubbish")
    (tmp_path / "keys" / "copy.pub").unlink()
    assert admitted.name_of(east) is None


def test_a_key_that_is_overwritten_in_place_counts_at_once(keys: Path, tmp_path: Path) -> None:
    texts = {name: (keys / f"{name}.pub").read_text().split()[:2] for name in ("north", "south")}
    north, south = (" ".join(texts[name]) for name in ("north", "south"))
    file = tmp_path / "site.pub"
    file.write_text(north)
    admitted, before = gateway.AdmittedKeys(tmp_path), file.stat()
    assert admitted.name_of(north) == "site"
    file.write_text(south)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p does; the size is the same too
    assert admitted.name_of(north) is None
    assert admitted.name_of(south) == "site"


# Whoever reaches the port.


@contextlib.contextmanager
def a_gateway(
    monkeypatch: pytest.MonkeyPatch, keys: Path | None = None, loop: str = "auto", **bounds: float
) -> Iterator[int]:
    """A gateway that listens at a port, with other bounds."""
    for name, value in bounds.items():
        monkeypatch.setattr(gateway if hasattr(gateway, name) else listener, name, value)
    address = Address("127.0.0.1", free_port())
    client = httpx.AsyncClient(transport=httpx.MockTransport(Link()))
    app = gateway.make_gateway("https://127.0.0.1:1", gateway.AdmittedKeys(keys), client)
    config = gateway.configure_server(app, keys)
    config.loop = loop
    server = listener.BoundedServer(config, address, listener.count_connections())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield address.port
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), 5, (source, 0))
    link.settimeout(5)
    return link


def is_closed(link: socket.socket) -> bool:
    """Whether the other side closes the connection within 5 s; what it says until then is dropped."""
    try:
        while link.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def hello_status(port: int, keys: Path | None = None, source: str = "127.0.0.1") -> int:
    about: dict[str, Any] = {"timeout": 5, "source_address": (source, 0)}
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, **about)
        if keys is None
        else http.client.HTTPSConnection(
            "127.0.0.1", port, context=ssl.create_default_context(cafile=str(keys / "ca.crt")), **about
        )
    ) as link:
        link.request("GET", link_check.HELLO)
        return link.getresponse().status


def until_admitted(port: int, keys: Path) -> None:
    give_up = time.monotonic() + 5
    while True:
        with contextlib.suppress(OSError):
            assert hello_status(port, keys) == 200
            return
        assert time.monotonic() < give_up
        time.sleep(0.05)


LOOPS = ["asyncio", "auto"]  # the second one is uvloop where it is installed
WHOLE = f"GET {link_check.HELLO} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
HALF = WHOLE[:-2]
REFUSED = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", HALF, WHOLE, WHOLE + HALF, REFUSED], ids=range(6))
def test_a_connection_without_a_whole_request_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_gateway(monkeypatch, HEAD_SECONDS=0.3, IDLE_SECONDS=1) as port, connect(port) as link:
        link.sendall(sent)
        assert is_closed(link)


@pytest.mark.parametrize("sent", [HALF, WHOLE + HALF, REFUSED], ids=range(3))
def test_a_byte_now_and_then_keeps_no_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_gateway(monkeypatch, HEAD_SECONDS=0.5) as port, connect(port) as link:
        link.sendall(sent)
        until = time.monotonic() + 4
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until:
                link.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() < until


def test_a_body_has_longer_than_a_head_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
    with a_gateway(monkeypatch, HEAD_SECONDS=0.2, BODY_SECONDS=1.0) as port:
        with connect(port) as link:
            link.sendall(head + b"a")
            time.sleep(0.5)
            link.sendall(b"b")
            assert b" 400 " in link.recv(4096)  # it came whole, and is no request
        with connect(port) as link:
            link.sendall(head + b"a")
            assert b" 408 " in link.recv(4096)
            assert is_closed(link)


def test_half_requests_of_one_address_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are of one address here, so the others come after these are closed."""
    with a_gateway(monkeypatch, AT_ADDRESS=8, AT_ONCE=32, HEAD_SECONDS=1.0) as port, contextlib.ExitStack() as open_:
        links = [open_.enter_context(connect(port)) for _ in range(30)]
        for link in links[:8]:
            link.sendall(HALF)
        assert all(map(is_closed, links[8:]))
        assert all(map(is_closed, links[:8]))
        assert hello_status(port) == 200


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_count_before_their_handshake(loop: str, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections of one address take its share, and no more; another address gets in meanwhile."""
    bounds = {"AT_ADDRESS": 4, "AT_ONCE": 16, "HANDSHAKE_SECONDS": 300.0}
    with a_gateway(monkeypatch, keys, loop, **bounds) as port, contextlib.ExitStack() as open_:
        links = [open_.enter_context(connect(port)) for _ in range(20)]
        assert all(map(is_closed, links[4:]))
        assert hello_status(port, keys, "127.0.0.2") == 200
        for link in links:
            link.close()
        until_admitted(port, keys)


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_of_all_addresses_are_bounded(loop: str, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"AT_ADDRESS": 4, "AT_ONCE": 16, "HANDSHAKE_SECONDS": 300.0}
    with a_gateway(monkeypatch, keys, loop, **bounds) as port, contextlib.ExitStack() as open_:
        sources = [f"127.0.0.{last}" for last in (2, 3, 4, 5) for _ in range(4)]
        links = [open_.enter_context(connect(port, source)) for source in (*sources, "127.0.0.6")]
        assert is_closed(links.pop())
        with pytest.raises((ConnectionError, ssl.SSLError)):
            hello_status(port, keys)
        for link in links:
            link.close()
        until_admitted(port, keys)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"], ids=range(2))
def test_a_handshake_that_does_not_come_is_closed(sent: bytes, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_gateway(monkeypatch, keys, HANDSHAKE_SECONDS=0.3) as port, connect(port) as link:
        link.sendall(sent)
        assert is_closed(link)
        assert hello_status(port, keys) == 200


@pytest.mark.parametrize("loop", LOOPS)
def test_a_gateway_without_an_open_file_left_says_so_once_and_goes_on(
    loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with a_gateway(monkeypatch, loop=loop) as port, contextlib.ExitStack() as open_:
        assert hello_status(port) == 200
        links = [open_.enter_context(socket.socket()) for _ in range(20)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(first_free := os.dup(0))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
            for link in links:
                link.connect(("127.0.0.1", port))
            time.sleep(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for link in links:
            link.settimeout(5)
            link.sendall(WHOLE)
            assert link.recv(4096).startswith(b"HTTP/1.1 200 ")
    (line,) = [record.getMessage() for record in caplog.records if "cannot accept" in record.getMessage()]
    assert "Too many open files" in line


def test_as_many_connections_as_the_open_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(soft: int, hard: int) -> tuple[int, list[tuple[int, int]]]:
        was_set = list[tuple[int, int]]()
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: was_set.append(limits))
        return listener.count_connections(), was_set

    endless = resource.RLIM_INFINITY
    assert counted(256, 1024) == (480, [(1024, 1024)])
    assert counted(1024, 524288) == (1024, [(2112, 524288)])
    assert counted(1024, endless) == (1024, [(2112, endless)])
    assert counted(endless, endless) == (1024, [])
    assert counted(65536, 65536) == (1024, [])
    assert counted(20, 20)[0] == 1


def test_an_address_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GenfedError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use"):
            gateway.run_gateway(Address("127.0.0.1", port), Address("127.0.0.1", 1), None, None)


def test_who_counts_as_one_party() -> None:
    def one(*hosts: str) -> bool:
        return len({listener.network_of(host) for host in hosts}) == 1

    assert one("10.0.0.1", "::ffff:10.0.0.1")
    assert one("2001:db8::1", "2001:db8::ffff:1")
    assert not one("10.0.0.1", "10.0.0.2")
    assert not one("2001:db8::1", "2001:db8:0:1::1")


def test_two_sites_do_not_share_a_key(keys: Path, tmp_path: Path) -> None:
    for name in ("north", "south"):
        (tmp_path / f"{name}.pub").write_text(f"{(keys / 'north.pub').read_text().strip()} {name}@somewhere\n")
    with pytest.raises(GenfedError, match=r"north\.pub and .*south\.pub hold the same key"):
        read_public_keys(tmp_path)


# What a site hears.


def hear(said: dict[str, Any], site: LocatedSite) -> str:
    key = link_check.public_key(site)
    good: dict[str, Any] = {
        "genfed": __version__,
        "keys": True,
        "name": site.config.name,
        "link": True,
        "clock": time.time(),
    }
    return link_check._judge(site, good | said, key)


@pytest.fixture
def site(keys: Path, tmp_path: Path) -> LocatedSite:
    link = {"address": "127.0.0.1:9", "certificate": str(keys / "ca.crt"), "key": str(keys / "north")}
    about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
    (tmp_path / "north.toml").write_text(tomli_w.dumps(about))
    return read_site(tmp_path / "north.toml")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ({}, ""),
        ({"name": None}, r"does not know the key of north \(SHA256:.{43}\): its operator needs north\.pub"),
        ({"link": False}, "is starting or has no run"),
        ({"ahead": 3600}, r"this machine's clock is 3\d\d\d s behind the server's"),
        ({"ahead": -3600}, r"this machine's clock is 3\d\d\d s ahead of the server's"),
    ],
)
def test_a_site_hears_what_may_pass(said: dict[str, Any], heard: str, site: LocatedSite) -> None:
    if "ahead" in said:  # of the moment when the test runs, not of that when its cases are made
        said = {"clock": time.time() + said["ahead"]}
    assert re.search(heard, hear(said, site)) if heard else hear(said, site) == ""


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ({"genfed": "9.9"}, f"has genfed '9.9', and this site has {__version__}"),
        ({"genfed": "\x1b[2J" + "x" * 999}, r"has genfed '\\x1b\[2Jx{31}…, and"),
        ({"name": "south"}, "knows this key as site 'south', and .* says name = 'north'"),
        ({"name": "\x1b" + "x" * 999}, r"knows this key as site '\\x1bx{74}…, and"),
    ],
)
def test_a_site_hears_what_cannot_pass(said: dict[str, Any], heard: str, site: LocatedSite) -> None:
    with pytest.raises(GenfedError, match=heard):
        hear(said, site)


def test_what_the_gateway_says_of_a_key(keys: Path, site: LocatedSite) -> None:
    key = read_private_key(keys / "north")

    def hello(link: Link, given: str) -> dict[str, Any]:
        said: dict[str, Any] = ask(link, keys, "GET", link_check.HELLO, headers={link_check.KEY_HEADER: given}).json()
        assert abs(said.pop("clock") - time.time()) < 60
        return said

    assert hello(Link(), key) == {"genfed": __version__, "keys": True, "name": "north", "link": True}
    assert hello(Link(alive=False), key)["link"] is False
    assert hello(Link(), "ecdsa-sha2-nistp384 AAAA")["name"] is None


@contextlib.contextmanager
def a_server(answer: bytes, status: int = 200) -> Iterator[int]:
    """An HTTP server that gives this answer."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (b"nothing here", 404, ""),
        (b"busy", 503, "answers with HTTP status 503"),
        (b"[]", 200, "answers, and is no server of genfed"),
        (b"[" * 4000, 200, "answers, and is no server of genfed"),
        (b"{" * 10**5, 200, "answers, and is no server of genfed"),
        (json.dumps({"genfed": __version__, "clock": "soon"}).encode(), 200, "answers, and is no server of genfed"),
        (b"NOW", 200, ""),
    ],
)
def test_whatever_answers_a_site_is_one_line(answer: bytes, status: int, says: str, tmp_path: Path) -> None:
    if answer == b"NOW":
        answer = json.dumps({"genfed": __version__, "keys": False, "link": True, "clock": time.time()}).encode()
    with a_server(answer, status) as port:
        link = {"address": f"127.0.0.1:{port}", "insecure": True}
        about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
        (tmp_path / "north.toml").write_text(tomli_w.dumps(about))
        said = link_check.check_link(read_site(tmp_path / "north.toml"))
    assert said.endswith(says)
    assert bool(said) == bool(says)


def test_a_server_that_is_not_there(site: LocatedSite) -> None:
    assert "no server answers at 127.0.0.1:9 (" in link_check.check_link(site)
