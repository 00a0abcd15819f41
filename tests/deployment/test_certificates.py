"""Keys for a trial do what TLS and Flower ask of them."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from genfed.core.errors import GenfedError

pytest.importorskip("cryptography", reason="Flower is not installed: pip install 'genfed[flower]'")
from genfed.deployment.certificates import make_keys

pytestmark = pytest.mark.flower


def handshake(keys: Path, authority: Path, host: str) -> None:
    """One connection by TLS to a server with these keys."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "server.crt", keys / "server.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ssl.create_default_context(cafile=str(authority)).wrap_socket(ours, server_hostname=host).close()
    finally:
        ours.close()
        thread.join(10)


def test_the_authority_vouches_for_the_server_alone_under_its_names(tmp_path: Path) -> None:
    make_keys(tmp_path / "a", ["north"], ["server.example.org", "10.0.0.7"])
    make_keys(tmp_path / "b", ["north"])
    for host in ("localhost", "127.0.0.1", "server.example.org", "10.0.0.7"):
        handshake(tmp_path / "a", tmp_path / "a" / "ca.crt", host)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path / "a", tmp_path / "a" / "ca.crt", "elsewhere.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "a", tmp_path / "b" / "ca.crt", "localhost")


def test_private_keys_are_private_and_nothing_is_overwritten(tmp_path: Path) -> None:
    files = make_keys(tmp_path / "keys", ["north", "south"])
    names = {"ca.crt", "server.crt", "server.key", "north", "north.pub", "south", "south.pub"}
    assert {file.name for file in files} == names == {file.name for file in (tmp_path / "keys").iterdir()}
    for name in ("server.key", "north", "south"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    assert (tmp_path / "keys" / "north.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    before = (tmp_path / "keys" / "north").read_bytes()
    with pytest.raises(GenfedError, match="is there already; delete it or choose another folder"):
        make_keys(tmp_path / "keys", ["north"])
    assert (tmp_path / "keys" / "north").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "ca.crt"])
def test_a_site_s_name_is_fit_for_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="cannot name a site"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()
