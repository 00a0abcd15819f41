"""The settings of a site: its SITE.toml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, InstanceOf

from genfed.config.reader import build_settings
from genfed.config.toml import read_toml
from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Source
from genfed.privacy.settings import ClientNoiseDemand, LifetimeBudget

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""Pattern of the name of a site."""


@settings
class Link:
    """The connection to the server."""

    address: Annotated[str, Field(pattern=r"^[^/:\s]+:\d{1,5}$")] = "127.0.0.1:9092"
    """host:port of the server's SuperLink."""
    certificate: str = ""
    """Certificate file (PEM) of the authority that signed the server's certificate: ca.crt. Empty: the authorities that
    this machine trusts."""
    key: str = ""
    """Private key file of the site, by which the server recognizes it. Empty: no key, which most servers refuse."""
    insecure: bool = False
    """Whether to connect without TLS, so that anyone on the network can read all messages. For tests on one
    machine."""


@settings
class SiteSettings:
    """A site: its data, its model and its machine. The server learns only the site's name, the name of its
    architecture, its number of examples, the names of its classes, a summary of the columns of a table whose schema is
    agreed on and, in evaluations, its number of held-out examples per class.
    """

    name: Annotated[str, Field(pattern=SITE_NAME)]
    """Name of the site, by which the server and the report know it: letters, digits, - and _."""
    architecture: str
    """Architecture of the site's classifier: a name from `genfed list architectures`, or the site's own
    "package.module:Class", whose file is installed or stands beside this one."""
    data: InstanceOf[Source]
    """Data source of the site's examples, as [data] in a config. Relative paths start from the folder of this file."""
    classes: tuple[str, ...] | None = None
    """Names of all classes of the federation, where this site has no examples of some of them. Unset: the classes in
    the site's data."""
    part: Literal["test", "validation"] = "test"
    """Held-out examples that classifiers are evaluated on."""
    folder: str = ""
    """Folder for logs and for all that must survive a restart. Empty: a folder with the site's name, beside this
    file."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device that networks are trained on: "cpu", "cuda" or "cuda:1"."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of threads. Another number may change the last bits of the outcome."""
    privacy: LifetimeBudget | None = None
    """Privacy budget of each example of the site, over all runs together; the site then refuses runs without DP-SGD.
    Unset: no limit of its own."""
    client_privacy: ClientNoiseDemand | None = None
    """Noise of its own and budget that the site demands for its uploads; it then refuses runs without [privacy] kind =
    "dp_fedavg" and [secure_aggregation], and methods whose classifiers it would train for itself. Unset: no limit of
    its own."""
    minimum_group: Annotated[int, Field(ge=2)] | None = None
    """Smallest number of uploads that the server may sum under secure aggregation; the site then refuses runs without
    it. Unset: no limit of its own."""
    minimum_class_count: Annotated[int, Field(ge=2)] | None = None
    """Smallest number of its examples of a class that an upload of the site may tell anything of; the site then refuses
    runs in which it would upload anything but sums without smaller classes. Unset: no limit of its own."""
    least_rows: Annotated[int, Field(ge=1)] = 5
    """Smallest number of its rows that the site tells of when sites with tables agree on a schema: categories of fewer
    rows are not named, and numbers are given by the means of groups of as many."""
    peer_keys: str = ""
    """Folder with the public keys (NAME.pub) of the federation's sites, which this site got from them and not from the
    server; it then refuses a sum with any other client, and needs `minimum_group` and `link.key`. Empty: it trusts the
    server to pass on the keys of real clients."""
    allow: tuple[str, ...] = ()
    """Names of other code and models that the server may use at this site: methods and the like by
    "package.module:Class" (genfed's own are always allowed), and foundation models and captioners by the name in the
    server's config (the model "shipped" is always allowed)."""
    link: Link = Field(default_factory=Link)
    """Settings of the connection to the server."""

    def __post_init__(self) -> None:
        if self.link.insecure and self.link.key:
            raise GenfedError("link.insecure = true: a site without TLS shows no key; remove link.key, or insecure")
        if self.peer_keys and (self.minimum_group is None or not self.link.key):
            raise GenfedError("peer_keys: set minimum_group and link.key too, which sums with known sites need")
        if self.privacy is not None and (self.minimum_group is not None or self.client_privacy is not None):
            other = "minimum_group" if self.client_privacy is None else "[client_privacy]"
            raise GenfedError(
                f"[privacy] with {other}: no run has DP-SGD and [secure_aggregation] both; remove one of them"
            )

    @property
    def has_demand(self) -> bool:
        """Whether the site demands any protection of its examples."""
        demands = (self.privacy, self.client_privacy, self.minimum_group, self.minimum_class_count)
        return any(demand is not None for demand in demands)


@dataclass(frozen=True)
class LocatedSite:
    """The settings of a site, and the file that they were read from."""

    config: SiteSettings
    file: Path

    @property
    def root(self) -> Path:
        """The folder of the file, from which relative paths start."""
        return self.file.parent

    @property
    def folder(self) -> Path:
        """The folder for logs and for all that must survive a restart."""
        return self.root / (self.config.folder or self.config.name)


def read_site(path: str | Path) -> LocatedSite:
    """Reads a SITE.toml.

    Raises:
        GenfedError: there is no such file, it is not TOML, a setting is wrong, or a file has the name of the folder.
    """
    file = Path(path)
    table = read_toml(file, "a site's TOML file")
    try:
        site = LocatedSite(build_settings(SiteSettings, table, ""), file.resolve())
    except GenfedError as error:
        raise GenfedError(f"{file}: {error}") from None
    if site.folder.exists() and not site.folder.is_dir():
        raise GenfedError(
            f"{file}: folder = {site.config.folder!r}: the site stores what it needs in a folder {site.folder}, and a "
            "file has that name: move the file (a key into a folder keys), or set folder"
        )
    return site
