"""What a site can find out about its connection to the server, before and while it takes part."""

import http.client
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from genfed._version import __version__
from genfed.core.errors import GenfedError
from genfed.core.text import one_line
from genfed.deployment.certificate_check import describe_validity, host_names, key_fingerprint, read_private_key
from genfed.deployment.processes import Address
from genfed.deployment.site_settings import LocatedSite

HELLO = "/genfed/site"
"""Path at which the gateway of `genfed serve` says what it knows of a site."""
KEY_HEADER = "genfed-key"
"""Header with the site's public key, as its .pub file has it."""
_SECONDS = 5.0
_BOUND = 4096
_AHEAD, _BEHIND = 4.0, 300.0  # how far a site's clock may differ: Flower accepts signatures of the last 305 s
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64  # OpenSSL's codes


def existing_file(site: LocatedSite, key: str, name: str) -> Path:
    """Returns a file that the site's settings name.

    Raises:
        GenfedError: there is no such file.
    """
    file = site.root / name
    if not file.is_file():
        raise GenfedError(f"{site.file}: {key} = {name!r}: no such file")
    return file


def check_link(site: LocatedSite) -> str:
    """Tries the connection to the server. Returns why it does not work now, though it may later. Empty: it works.

    Raises:
        GenfedError: it cannot work before a setting of the site or a certificate is changed.
    """
    address = Address.of(site.config.link.address)
    try:
        with socket.create_connection((address.host.strip("[]"), address.port), _SECONDS) as plain:
            if site.config.link.insecure:
                return _ask_plain(site, plain, address)
            return _ask_over_tls(site, plain, address)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"no server answers at {address} ({why})"


def _ask_over_tls(site: LocatedSite, plain: socket.socket, address: Address) -> str:
    link, host = site.config.link, address.host.strip("[]")
    roots = existing_file(site, "link.certificate", link.certificate) if link.certificate else None
    try:
        context = ssl.create_default_context(cafile=None if roots is None else str(roots))
    except ssl.SSLError:
        raise GenfedError(f"{site.file}: link.certificate = {link.certificate!r}: not a certificate") from None
    try:
        with context.wrap_socket(plain, server_hostname=host) as secured:
            return _ask(site, secured, address)
    except ssl.SSLCertVerificationError as error:
        return _explain_certificate(site, address, error)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"):
            raise GenfedError(
                f"{address} does not speak TLS; for a trial without TLS set link.insecure = true"
            ) from None
        return f"the TLS handshake with {address} failed ({error.reason or error})"


def _explain_certificate(site: LocatedSite, address: Address, error: ssl.SSLCertVerificationError) -> str:
    """Returns what is wrong with the server's certificate, where time or its operator can mend it.

    Raises:
        GenfedError: the site's own settings do not fit the certificate.
    """
    try:
        shown = ssl.get_server_certificate((address.host.strip("[]"), address.port), timeout=_SECONDS).encode()
    except OSError:
        shown = b""
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        why = describe_validity(shown) or error.verify_message
        return f"the certificate of {address} {why}: the operator of the server renews it, or a clock is wrong"
    if error.verify_code in (_OTHER_HOST, _OTHER_ADDRESS):
        raise GenfedError(
            f"the certificate of {address} is for {', '.join(host_names(shown)) or 'another host'}: set link.address "
            f"to one of these names, or have the server's operator add this one (`genfed federation renew`)"
        )
    raise GenfedError(
        f"the certificate of {address} is not signed by link.certificate = {site.config.link.certificate!r} "
        f"({error.verify_message}); get ca.crt from the operator of the server"
    )


def _ask_plain(site: LocatedSite, plain: socket.socket, address: Address) -> str:
    try:
        return _ask(site, plain, address)
    except (http.client.HTTPException, ConnectionError):
        raise GenfedError(
            f"{address} speaks TLS and link.insecure = true: set link.certificate (ca.crt) and link.key instead"
        ) from None


def _ask(site: LocatedSite, link: socket.socket, address: Address) -> str:
    """Asks the server what it knows of the site. Servers without a gateway of genfed say nothing."""
    connection = http.client.HTTPConnection(address.host.strip("[]"), address.port, timeout=_SECONDS)
    connection.sock = link
    key = public_key(site)
    connection.request("GET", HELLO, headers={} if key is None else {KEY_HEADER: key})
    answer = connection.getresponse()
    if answer.status != 200:
        return "" if answer.status == 404 else f"the server at {address} answers with HTTP status {answer.status}"
    try:
        said = json.loads(answer.read(_BOUND))
        if not isinstance(said, dict):
            raise TypeError
        return _judge(site, said, key)
    except (ValueError, TypeError, RecursionError):
        return f"{address} answers, and is no server of genfed"


def public_key(site: LocatedSite) -> str | None:
    """Returns the site's public key, as its .pub file has it. None: it has no key.

    Raises:
        GenfedError: its file is missing, or holds no key that Flower can use.
    """
    if not site.config.link.key:
        return None
    return read_private_key(existing_file(site, "link.key", site.config.link.key))


def _judge(site: LocatedSite, said: dict[str, Any], key: str | None) -> str:
    """Returns why the server, which said this, does not admit the site now. Empty: it does.

    Raises:
        GenfedError: the server cannot admit this site with these settings.
    """
    address, name = site.config.link.address, site.config.name
    version, knows, clock = said.get("genfed"), said.get("name"), float(said.get("clock", 0.0))
    if version != __version__:
        raise GenfedError(
            f"the server at {address} has genfed {one_line(repr(version), 40)}, and this site has {__version__}"
        )
    if said.get("keys") is True:
        if key is None:
            raise GenfedError(f"the server at {address} admits only sites with a key: set link.key in {site.file}")
        if not isinstance(knows, str):
            return (
                f"the server at {address} does not know the key of {name} ({key_fingerprint(key)}): its operator "
                f"needs {name}.pub in the folder of keys, and starts `genfed serve` again"
            )
        if knows != name:
            raise GenfedError(
                f"the server at {address} knows this key as site {one_line(repr(knows), 80)}, and {site.file} says "
                f"name = {name!r}: use the key of {name}, or that name"
            )
    if said.get("link") is not True:
        return f"the server at {address} is starting or has no run"
    if not -_AHEAD < (behind := clock - time.time()) < _BEHIND:
        return (
            f"this machine's clock is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'} the server's, "
            "which then refuses the site: set the clocks"
        )
    return ""
