"""Keys and certificates for a trial: an authority, the server's certificate, and a key pair per site."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genfed.core.errors import GenfedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY, SERVER, SERVER_KEY = "ca.crt", "server.crt", "server.key"


def make_keys(folder: Path, sites: Sequence[str], hosts: Sequence[str] = (), days: int = 365) -> list[Path]:
    """Writes ca.crt, server.crt and server.key, and for each site NAME and NAME.pub; private keys are readable by their
    owner alone. The authority's own key is not kept, so that nobody can sign another server in its name.

    Args:
        folder: made where there is none; files that are there are not overwritten.
        sites: names of the sites.
        hosts: names and addresses of the server besides localhost and 127.0.0.1.
        days: that the certificates are valid for.

    Raises:
        GenfedError: the folder has such files, a name is none, or the extra is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise GenfedError("""keys need the extra "flower": pip install 'genfed[flower]'""") from None
    if bad := [name for name in sites if not name or name.startswith(".") or set(name) & set("/\\\0")]:
        raise GenfedError(f"{bad[0]!r} cannot name a site: it becomes a file's name")
    if reserved := [name for name in sites if name in (AUTHORITY, SERVER, SERVER_KEY)]:
        raise GenfedError(f"{reserved[0]!r} cannot name a site: the server has a file of that name")
    names = [AUTHORITY, SERVER, SERVER_KEY, *(file for site in sites for file in (site, f"{site}.pub"))]
    if there := [name for name in names if (folder / name).exists()]:
        raise GenfedError(f"{folder / there[0]} is there already; delete it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def name_of(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(
        subject: str, key: "EllipticCurvePrivateKey", signer: "EllipticCurvePrivateKey", authority: bool
    ) -> bytes:
        usage = x509.KeyUsage(
            digital_signature=not authority,
            key_cert_sign=authority,
            crl_sign=authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(name_of(subject))
            .issuer_name(name_of("genfed trial authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if not authority:
            alternatives = [_alternative(host) for host in dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts))]
            made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _alternative(host: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            return x509.DNSName(host)

    def private(key: "EllipticCurvePrivateKey", form: serialization.PrivateFormat) -> bytes:
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    try:
        contents = {
            AUTHORITY: certificate("genfed trial authority", authority, authority, True),
            SERVER: certificate("genfed server", server, authority, False),
            SERVER_KEY: private(server, serialization.PrivateFormat.PKCS8),
        }
    except ValueError as error:
        raise GenfedError(f"hosts: {error}") from None
    for site in sites:
        key = ec.generate_private_key(ec.SECP384R1())
        contents[site] = private(key, serialization.PrivateFormat.OpenSSH)
        openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        contents[f"{site}.pub"] = key.public_key().public_bytes(*openssh) + b"\n"
    written = []
    for name, content in contents.items():
        public = name.endswith((".crt", ".pub"))
        with os.fdopen(
            os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644 if public else 0o600), "wb"
        ) as f:
            f.write(content)
        written.append(folder / name)
    return written
