"""What certificates and keys say, and whether the server's are fit for use."""

import base64
import datetime
import hashlib
import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from genfed.core.errors import GenfedError, require
from genfed.deployment.certificates import AUTHORITY, SERVER, SERVER_KEY
from genfed.deployment.processes import Address

if TYPE_CHECKING:
    from cryptography import x509

SOON = datetime.timedelta(days=30)
"""Time before a certificate expires from which `genfed serve` warns."""


def check_certificates(keys: Path, address: Address) -> str:
    """Checks that sites which trust ca.crt will accept the server's certificate at `address`. Returns a warning where
    it expires soon. Empty: there is nothing to warn of.

    Raises:
        GenfedError: a file is missing or is something else, the certificate has expired, is not valid yet, is not for
            the host of `address` (unless this is a wildcard such as 0.0.0.0), is not signed by the authority, or
            belongs to another key.
    """
    require("cryptography", extra="flower", what="serving sites with TLS")
    for name in (AUTHORITY, SERVER, SERVER_KEY):
        if not (keys / name).is_file():
            raise GenfedError(f"{keys / name} is missing; `genfed federation keys {keys} NAME…` makes keys for a trial")
    again = f"`genfed federation renew {keys}` makes new certificates for the same keys of sites"
    for name in (SERVER, AUTHORITY):
        _read_certificate(keys / name)
        if why := describe_validity((keys / name).read_bytes()):
            raise GenfedError(f"{keys / name} {why}; {again}")
    _check_key(keys, again)
    _check_signature(keys, again)
    certificate, host = _read_certificate(keys / SERVER), address.host.strip("[]")
    names = host_names((keys / SERVER).read_bytes())
    if not (_is_wildcard(host) or _is_named(host, names)):
        raise GenfedError(
            f"{keys / SERVER} is for {', '.join(names) or 'no host'} and not for {host}: sites would refuse it; "
            f"`genfed federation renew {keys} --host {host}` makes new certificates for the same keys of sites"
        )
    left = certificate.not_valid_after_utc - _now()
    return f"warning: {keys / SERVER} expires on {_day(_now() + left)}; {again}" if left < SOON else ""


def _read_certificate(file: Path) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        raise GenfedError(f"{file}: not a certificate (PEM)") from None


def _check_key(keys: Path, again: str) -> None:
    """Refuses a private key that is none, needs a password, or belongs to another certificate."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    file, certificate = keys / SERVER_KEY, _read_certificate(keys / SERVER)
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except TypeError:
        raise GenfedError(f"{file}: it needs a password; store the key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise GenfedError(f"{file}: not a private key (PEM)") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise GenfedError(
            f"{file} is not the key of {keys / SERVER}: put the key there with which it was made; {again}"
        )


def _check_signature(keys: Path, again: str) -> None:
    """Refuses a server's certificate that the authority did not sign, by a handshake in memory as sites do it."""
    there, here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    here.check_hostname = False
    try:
        there.load_cert_chain(keys / SERVER, keys / SERVER_KEY)
        here.load_verify_locations(keys / AUTHORITY)
        _shake_hands(there, here)
    except ssl.SSLCertVerificationError as error:
        raise GenfedError(
            f"{keys / SERVER} is not signed by {keys / AUTHORITY}, which sites trust ({error.verify_message}): "
            f"put the authority there that signed it; {again}"
        ) from None
    except ssl.SSLError as error:
        raise GenfedError(f"{keys}: TLS does not work with these certificates ({error.reason}); {again}") from None


def _shake_hands(there: ssl.SSLContext, here: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = there.wrap_bio(to_server, to_client, server_side=True)
    client = here.wrap_bio(to_client, to_server)
    for _ in range(8):
        waits = 0
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waits += 1
        if not waits:
            return


def describe_validity(certificate: bytes) -> str:
    """Returns since when a certificate (PEM) is not valid any more, or from when it will be. Empty: it is valid now, or
    is no certificate.
    """
    from cryptography import x509

    try:
        read = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        return ""
    if _now() > read.not_valid_after_utc:
        ago = (_now() - read.not_valid_after_utc).days
        return f"expired on {_day(read.not_valid_after_utc)} ({ago} days ago)"
    if _now() < read.not_valid_before_utc:
        return f"is valid only from {_day(read.not_valid_before_utc)} on, and this machine's clock says {_day(_now())}"
    return ""


def host_names(certificate: bytes) -> list[str]:
    """Returns the names and addresses of hosts that a certificate (PEM) is for. Empty: it names none."""
    from cryptography import x509

    try:
        names = (
            x509.load_pem_x509_certificate(certificate)
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_named(host: str, names: list[str]) -> bool:
    """Returns whether a certificate with these names is for the host; *.example.org is for one label in its place."""
    host = host.lower()
    return any(
        host == name.lower() or (name.startswith("*.") and host.partition(".")[2] == name[2:].lower()) for name in names
    )


def read_private_key(file: Path) -> str:
    """Returns the public key of a site's private key, as its .pub file has it: kind and content.

    Raises:
        GenfedError: the file holds no P-384 key in OpenSSH's format, or one that needs a password.
    """
    require("cryptography", extra="flower", what="a site's key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    make = 'make one with: ssh-keygen -t ecdsa -b 384 -N "" -f NAME'
    try:
        key = serialization.load_ssh_private_key(file.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise GenfedError(f"{file}: not a private key in OpenSSH's format without a password; {make}") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise GenfedError(f"{file}: Flower needs an ECDSA key on the curve P-384; {make}")
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*openssh).decode()


def read_public_key(file: Path) -> str:
    """Returns the public key (kind and content) in a file.

    Raises:
        GenfedError: the file holds no public key in OpenSSH's format.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    try:
        return serialization.load_ssh_public_key(file.read_bytes()).public_bytes(*openssh).decode()
    except (ValueError, UnsupportedAlgorithm):
        raise GenfedError(f"{file}: not a public key in OpenSSH's format") from None


def read_public_keys(folder: Path) -> dict[str, str]:
    """Returns the names of the sites that are admitted, by their public keys (kind and content): each NAME.pub.

    Raises:
        GenfedError: a file holds no public key, or two hold the same.
    """
    names: dict[str, str] = {}
    for file in sorted(folder.glob("*.pub")):
        if (key := read_public_key(file)) in names:
            raise GenfedError(
                f"{folder / names[key]}.pub and {file} hold the same key: each site needs a key of its own"
            )
        names[key] = file.stem
    return names


def key_fingerprint(key: str) -> str:
    """Returns the fingerprint of a public key as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _day(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
