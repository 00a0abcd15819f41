"""Keys and certificates for a trial: an authority, the server's certificate, and a key pair per site."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genfed.core.errors import GenfedError, require
from genfed.core.files import make_folder, write_file
from genfed.core.text import NAME, one_line
from genfed.deployment.site_settings import SITE_NAME

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY, SERVER, SERVER_KEY = "ca.crt", "server.crt", "server.key"
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names and addresses that every certificate of a server is for."""
_ISSUER = "genfed trial authority"


def make_keys(folder: Path, sites: Sequence[str], hosts: Sequence[str] = (), days: int = 365) -> list[Path]:
    """Writes ca.crt, server.crt and server.key, and NAME and NAME.pub for each site; returns the files. Private keys
    are readable by their owner alone. The authority's own key is not stored, so that no one can sign another server in
    its name.

    Args:
        folder: the folder to write to; it is made where it is missing. Existing files are not overwritten.
        sites: names of the sites.
        hosts: names and addresses of the server besides localhost and 127.0.0.1.
        days: the days for which the certificates are valid.

    Raises:
        GenfedError: the folder has such files, a name cannot be used, or the extra is not installed.
    """
    require("cryptography", extra="flower", what="making keys")
    from cryptography.hazmat.primitives.asymmetric import ec

    _check_names(folder, sites)
    make_folder(folder)
    contents = _new_certificates(hosts, days)
    for site in sites:
        key = ec.generate_private_key(ec.SECP384R1())
        contents |= {site: _private_bytes(key, openssh=True), f"{site}.pub": _public_bytes(key)}
    return [_write_new(folder / name, content) for name, content in contents.items()]


def renew_certificates(folder: Path, hosts: Sequence[str] = (), days: int = 365) -> list[Path]:
    """Replaces ca.crt, server.crt and server.key by new ones; returns the files. The keys of sites stay. Every site
    needs the new ca.crt, since the authority's own key was not stored.

    Args:
        folder: the folder with the files.
        hosts: names and addresses of the server besides those of the old certificate.
        days: the days for which the certificates are valid.

    Raises:
        GenfedError: the folder has no certificate of `make_keys`, or the extra is not installed.
    """
    require("cryptography", extra="flower", what="making certificates")
    try:
        old = _read_old(folder / SERVER)
    except (OSError, ValueError):
        raise GenfedError(f"{folder / SERVER}: no certificate to renew; `genfed federation keys` makes one") from None
    contents = _new_certificates((*old, *hosts), days)
    for name, content in contents.items():
        write_file(folder / name, content)
        (folder / name).chmod(_mode(name))
    return [folder / name for name in contents]


def _read_old(file: Path) -> list[str]:
    """Returns the hosts of a certificate."""
    from cryptography import x509

    read = x509.load_pem_x509_certificate(file.read_bytes())
    if read.issuer != _distinguished(_ISSUER):
        raise GenfedError(f"{file} is a certificate of your own: have it renewed by the authority that signed it")
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _new_certificates(hosts: Sequence[str], days: int) -> dict[str, bytes]:
    """Returns ca.crt, server.crt and server.key of a new authority and a new server."""
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    try:
        return {
            AUTHORITY: _sign_certificate(_ISSUER, authority, authority, days),
            SERVER: _sign_certificate("genfed server", server, authority, days, (*LOCAL, *hosts)),
            SERVER_KEY: _private_bytes(server, openssh=False),
        }
    except ValueError as error:
        raise GenfedError(f"hosts: {error}") from None


def _check_names(folder: Path, sites: Sequence[str]) -> None:
    """Refuses names of sites that cannot be names of files, and files that exist already."""
    if invalid := [name for name in sites if not re.fullmatch(SITE_NAME, name)]:
        raise GenfedError(
            f"{one_line(repr(invalid[0]), NAME)} cannot name a site: use up to 64 letters, digits and - _, a letter or "
            "digit first"
        )
    if reserved := [name for name in sites if name in (AUTHORITY, SERVER, SERVER_KEY)]:
        raise GenfedError(f"{reserved[0]!r} cannot name a site: the server has a file of that name")
    names = [AUTHORITY, SERVER, SERVER_KEY, *(file for site in sites for file in (site, f"{site}.pub"))]
    if there := [name for name in names if (folder / name).exists()]:
        raise GenfedError(f"{folder / there[0]} is there already; delete it or choose another folder")


def _sign_certificate(
    subject: str,
    key: "EllipticCurvePrivateKey",
    signer: "EllipticCurvePrivateKey",
    days: int,
    hosts: Sequence[str] = (),
) -> bytes:
    """Returns a certificate as PEM: of a server at `hosts`, or of an authority where there are none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_distinguished(subject))
        .issuer_name(_distinguished(_ISSUER))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None if hosts else 0), critical=True)
        .add_extension(_key_usage(signs_certificates=not hosts), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        names = [_host_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _distinguished(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_bytes(key: "EllipticCurvePrivateKey", *, openssh: bool) -> bytes:
    """Returns a private key as OpenSSH has it, or in PKCS #8."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _public_bytes(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*openssh) + b"\n"


def _mode(name: str) -> int:
    """Returns the permission bits of a file of this name: a private key is readable by its owner alone."""
    return 0o644 if name.endswith((".crt", ".pub")) else 0o600


def _write_new(file: Path, content: bytes) -> Path:
    """Writes a file that must not exist; a private key is readable by its owner alone."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _mode(file.name)), "wb") as handle:
        handle.write(content)
    return file
