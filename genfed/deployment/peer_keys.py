"""The keys with which sites sign under secure aggregation, and by which they know one another."""

from genfed.core.errors import GenfedError
from genfed.deployment.site_settings import LocatedSite
from genfed.secure_aggregation.crypto import Signer, read_public_key, read_signer


def load_signer(site: LocatedSite) -> Signer | None:
    """Returns what signs with the site's own key, and trusts the keys in its folder `peer_keys`. None: the site has no
    key, and signs with a new one in every round.

    Raises:
        GenfedError: a file is missing or is no such key, or the folder has no keys.
    """
    link, folder = site.config.link, site.config.peer_keys
    if not link.key:
        return None
    trusted: frozenset[str] | None = None
    if folder:
        files = sorted((site.root / folder).glob("*.pub"))
        if not files:
            raise GenfedError(f"peer_keys = {folder!r}: there are no keys (NAME.pub) of other sites")
        trusted = frozenset(_read_peer(site, folder, file.name) for file in files)
    try:
        return read_signer(_read(site, "link.key", link.key), trusted)
    except GenfedError as error:
        raise GenfedError(f"link.key = {link.key!r}: {error}") from None


def _read_peer(site: LocatedSite, folder: str, name: str) -> str:
    try:
        return read_public_key(_read(site, "peer_keys", f"{folder}/{name}"))
    except GenfedError as error:
        raise GenfedError(f"peer_keys = {folder!r}: {name}: {error}") from None


def _read(site: LocatedSite, key: str, name: str) -> bytes:
    try:
        return (site.root / name).read_bytes()
    except OSError as error:
        raise GenfedError(f"{key}: {name}: {error.strerror}") from None
