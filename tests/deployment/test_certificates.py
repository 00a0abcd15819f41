"""Keys for a trial do what TLS and Flower ask of them."""

import datetime
import shutil
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from genfed.core.errors import GenfedError
from genfed.deployment.processes import Address

pytest.importorskip("cryptography", reason="Flower is not installed: pip install 'genfed[flower]'")
from genfed.deployment import certificates
from genfed.deployment.certificate_check import check_certificates, read_private_key
from genfed.deployment.certificates import make_keys, renew_certificates
from genfed.deployment.link_check import check_link
from genfed.deployment.site_settings import read_site

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


HERE = Address("127.0.0.1", 9092)


def dated(monkeypatch: pytest.MonkeyPatch, folder: Path, start: int, days: int, names: tuple[str, ...] = ()) -> None:
    """Keys whose certificates are valid for `days` days, `start` days from now on."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Then":
            return super().now(tz) + datetime.timedelta(days=start)

    with monkeypatch.context() as patch:
        patch.setattr("datetime.datetime", Then)
        make_keys(folder, names, ["server.example.org"], days)


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The library keeps the class of dates that it meets first, which must not be one of these tests."""
    make_keys(tmp_path_factory.mktemp("keys"), [])


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["north"], ["server.example.org"])
    return tmp_path / "keys"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "server.example.org", "0.0.0.0", "[::]"])
def test_good_certificates_are_no_matter(host: str, keys: Path) -> None:
    assert check_certificates(keys, Address(host, 9092)) == ""


RENEW = "`genfed federation renew "


def _one_of(name: str, other: str) -> Callable[[Path, Path], Any]:
    return lambda keys, others: (keys / name).write_bytes((others / other).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda keys, others: (keys / "server.crt").unlink(), r"server\.crt is missing; `genfed federation keys "),
        (lambda keys, others: (keys / "server.crt").write_text("no"), r"server\.crt: not a certificate \(PEM\)"),
        (lambda keys, others: (keys / "ca.crt").write_bytes(b"\xff"), r"ca\.crt: not a certificate \(PEM\)"),
        (lambda keys, others: (keys / "server.key").write_text("no"), r"server\.key: not a private key \(PEM\)"),
        (_one_of("server.key", "server.key"), r"server\.key is not the key of .*server\.crt: .* " + RENEW),
        (_one_of("ca.crt", "ca.crt"), r"server\.crt is not signed by .*ca\.crt, which sites trust \(.*" + RENEW),
        (_one_of("server.crt", "ca.crt"), r"server\.key is not the key of .*server\.crt"),
    ],
)
def test_certificates_that_do_not_belong_together_are_refused_in_one_line(
    spoil: Callable[[Path, Path], Any], says: str, keys: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path / "others", [])
    spoil(keys, tmp_path / "others")
    with pytest.raises(GenfedError, match=says) as caught:
        check_certificates(keys, HERE)
    assert len(str(caught.value).splitlines()) == 1


def test_a_certificate_out_of_its_time_is_refused_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated(monkeypatch, tmp_path / "old", -40, 30)
    with pytest.raises(GenfedError, match=r"server\.crt expired on \d{4}-\d\d-\d\d .* \((9|10) days ago\); " + RENEW):
        check_certificates(tmp_path / "old", HERE)
    dated(monkeypatch, tmp_path / "new", 2, 30)
    with pytest.raises(
        GenfedError, match=r"server\.crt is valid only from .*, and this machine's clock says .*" + RENEW
    ):
        check_certificates(tmp_path / "new", HERE)
    dated(monkeypatch, tmp_path / "soon", 0, 5)
    assert "warning: " in (said := check_certificates(tmp_path / "soon", HERE))
    assert f"server.crt expires on {datetime.datetime.now(datetime.UTC) + datetime.timedelta(5):%Y-%m-%d}" in said


def test_a_certificate_for_another_host_is_refused_with_its_hosts(keys: Path) -> None:
    for host in ("elsewhere.org", "10.0.0.7"):
        names = r"localhost, server\.example\.org, 127\.0\.0\.1, ::1"
        with pytest.raises(GenfedError, match=rf"is for {names} and not for {host}: .* --host {host}` makes"):
            check_certificates(keys, Address(host, 9092))


def test_renewed_certificates_keep_hosts_and_the_keys_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "keys"
    dated(monkeypatch, folder, -40, 30, ("north",))
    before = {name: (folder / name).read_bytes() for name in ("north", "north.pub", "server.key")}
    (folder / "server.key").chmod(0o644)
    (folder / "ca.crt").unlink()
    renew_certificates(folder, ["10.0.0.7"])
    modes = {name: (folder / name).stat().st_mode & 0o777 for name in ("ca.crt", "server.crt", "server.key")}
    assert modes == {"ca.crt": 0o644, "server.crt": 0o644, "server.key": 0o600}
    assert check_certificates(folder, HERE) == ""
    for host in ("localhost", "127.0.0.1", "server.example.org", "10.0.0.7"):
        handshake(folder, folder / "ca.crt", host)
    assert {name: (folder / name).read_bytes() == old for name, old in before.items()} == {
        "north": True,
        "north.pub": True,
        "server.key": False,
    }
    with pytest.raises(GenfedError, match="no certificate to renew"):
        renew_certificates(tmp_path)


def test_serve_names_an_expired_certificate_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genfed.cli.main import main

    dated(monkeypatch, tmp_path / "keys", -40, 30, ("north",))
    (tmp_path / "run.toml").write_text('methods = ["fedavg"]\nbaselines = []\n[data]\nkind = "digits"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "run.toml", "--keys", "keys"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("genfed: keys/server.crt expired on ")
    assert said.endswith("`genfed federation renew keys` makes new certificates for the same keys of sites\n")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda keys, file: file.write_text("no"),
            "not a private key in OpenSSH's format without a password",
        ),
        (lambda keys, file: shutil.copy(keys / "north.pub", file), "not a private key in OpenSSH's format"),
        (lambda keys, file: shutil.copy(keys / "server.key", file), "not a private key in OpenSSH's format"),
    ],
)
def test_a_site_s_key_that_is_none(make: Callable[[Path, Path], Any], says: str, keys: Path, tmp_path: Path) -> None:
    make(keys, tmp_path / "key")
    with pytest.raises(GenfedError, match=says):
        read_private_key(tmp_path / "key")


def test_the_public_key_of_a_site_is_that_of_its_file(keys: Path) -> None:
    assert read_private_key(keys / "north") == (keys / "north.pub").read_text().strip()


def test_a_key_in_the_place_of_the_site_s_folder_is_refused_by_name(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    shutil.copy(keys / "north", tmp_path / "site" / "north")
    link = {"address": "127.0.0.1:9", "certificate": "ca.crt", "key": "north"}
    about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
    file = tmp_path / "site" / "north.toml"
    file.write_text(tomli_w.dumps(about))
    with pytest.raises(GenfedError, match=r"north\.toml: folder = '': .* a file has that name: move the file"):
        read_site(file)
    file.write_text(tomli_w.dumps({**about, "folder": "stored"}))
    assert read_site(file).folder == tmp_path / "site" / "stored"


def meet(keys: Path, tmp_path: Path, host: str = "127.0.0.1", authority: Path | None = None) -> str:
    """What a site says of a server with these keys that closes the connection after the handshake."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "server.crt", keys / "server.key")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            for _ in range(2):  # the second time the site looks at the certificate
                try:
                    with listening.accept()[0] as one, server.wrap_socket(one, server_side=True):
                        pass
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        link = {"address": f"{host}:{listening.getsockname()[1]}", "certificate": str(authority or keys / "ca.crt")}
        about = {"name": "north", "architecture": "linear", "data": {"kind": "digits"}, "link": link}
        (tmp_path / "north.toml").write_text(tomli_w.dumps(about))
        return check_link(read_site(tmp_path / "north.toml"))


def test_a_site_says_what_is_wrong_with_the_server_s_certificate(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated(monkeypatch, tmp_path / "old", -40, 30)
    assert "expired on 2" in (said := meet(tmp_path / "old", tmp_path))
    assert said.endswith("the operator of the server renews it, or a clock is wrong")
    dated(monkeypatch, tmp_path / "new", 2, 30)
    assert "is valid only from 2" in meet(tmp_path / "new", tmp_path)
    make_keys(tmp_path / "others", [])
    with pytest.raises(
        GenfedError, match=r"is not signed by link\.certificate = '.*others/ca\.crt' \(.*\); get ca\.crt"
    ):
        meet(keys, tmp_path, authority=tmp_path / "others" / "ca.crt")
    monkeypatch.setattr(certificates, "LOCAL", ())
    make_keys(tmp_path / "elsewhere", [], ["server.example.org"])
    with pytest.raises(GenfedError, match=r"is for server\.example\.org: set link\.address to one of these names, or"):
        meet(tmp_path / "elsewhere", tmp_path, host="127.0.0.1")
    with pytest.raises(GenfedError, match=r"is for server\.example\.org: set link\.address"):
        meet(tmp_path / "elsewhere", tmp_path, host="localhost")
    assert "no server answers at 127.0.0.1:" in meet(keys, tmp_path), "it closes the connection"
