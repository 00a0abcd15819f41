"""What a site has, as its SITE.toml on its own disk says."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, InstanceOf

from genfed.config.reader import build_settings
from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Source
from genfed.privacy.settings import LifetimeBudget


@settings
class Link:
    """The way to the server."""

    address: Annotated[str, Field(pattern=r"^[^/:\s]+:\d{1,5}$")] = "127.0.0.1:9092"
    """host:port of its SuperLink."""
    certificate: str = ""
    """Certificate (PEM) of the authority that vouches for the server: ca.crt. Empty: those that this machine trusts."""
    key: str = ""
    """The site's private key, by which the server knows it; empty: it shows none, and most servers refuse it."""
    insecure: bool = False
    """Without TLS: anybody on the way reads all that travels. For a trial on one machine."""


@settings
class SiteSettings:
    """A site: its data, its model, its machine. None of it leaves but its name, its architecture's name, the number of
    its examples, the names of its classes and, when it is scored, how many held-out examples it has of each.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """By which the server and its report know the site: letters, digits, - and _."""
    architecture: str
    """Of its classifier: a name of the zoo, or its own "package.module:Class", which stands beside this file or is
    installed."""
    data: InstanceOf[Source]
    """Its examples, as [data] of a config; relative paths start from this file."""
    classes: tuple[str, ...] | None = None
    """Names of all classes of the federation, where the site lacks examples of some; left out: those that it has."""
    part: Literal["test", "validation"] = "test"
    """The part of its data that classifiers are scored on."""
    folder: str = ""
    """Where it keeps what must outlive a restart, and its logs; empty: the site's name, beside this file."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """"cpu", "cuda" or "cuda:1"."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of its work. Another number may change the last bits."""
    privacy: LifetimeBudget | None = None
    """What it may cost an example of the site to take part, over all runs; whoever does not train by DP-SGD is then
    refused. Left out: as the run has it."""
    minimum_group: Annotated[int, Field(ge=2)] | None = None
    """Uploads leave under masks alone ([secure]), in sums of at least so many. Left out: as the run has it."""
    allow: tuple[str, ...] = ()
    """What the server may ask for: methods and the like by "package.module:Class" (genfed's own always are), and the
    models that its methods open here, foundations (but the shipped one) and captioners, by the name that the server's
    config has for them."""
    link: Link = Field(default_factory=Link)
    """The way to the server."""

    def __post_init__(self) -> None:
        if self.link.insecure and self.link.key:
            raise GenfedError("link.insecure = true: a site without TLS shows no key; leave out link.key, or insecure")
        if self.privacy is not None and self.minimum_group is not None:
            raise GenfedError("[privacy] with minimum_group: no run has [privacy] and [secure] both; leave one out")


@dataclass(frozen=True)
class LocatedSite:
    """A site as read from its file."""

    config: SiteSettings
    file: Path

    @property
    def root(self) -> Path:
        """The folder of its file, from which its paths start."""
        return self.file.parent

    @property
    def folder(self) -> Path:
        """Where it keeps things."""
        return self.root / (self.config.folder or self.config.name)


def read_site(path: str | Path) -> LocatedSite:
    """Reads a SITE.toml.

    Raises:
        GenfedError: no such file, not TOML, or a setting that is unknown, missing, of a wrong type or out of bounds.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise GenfedError(f"{file}: {why}; give a site's TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise GenfedError(f"{file}: not TOML: {error}") from None
    try:
        return LocatedSite(build_settings(SiteSettings, table, ""), file.resolve())
    except GenfedError as error:
        raise GenfedError(f"{file}: {error}") from None
