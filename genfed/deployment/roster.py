"""The sites that are connected, and how each describes itself."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from genfed._version import __version__
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.core.text import one_line
from genfed.deployment.site_settings import SITE_NAME
from genfed.engines.flower.engine import LOST, MessageLink
from genfed.engines.flower.messages import EMPTY, Envelope
from genfed.engines.round import Failure

ROUND_SECONDS = 15.0
"""Seconds that a new node has to describe itself while a round waits for it."""
BACK_OFF = 60.0
"""Seconds after which a node that was refused is contacted again."""
Many = Annotated[int, Field(ge=0, lt=2**60)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_line)]
"""A text of a site, which is shown."""


@dataclass(frozen=True)
class SiteDescription:
    """A site's description of itself."""

    name: Annotated[str, Field(pattern=SITE_NAME)]
    architecture: Word
    kind: Literal["image", "table", "features"]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**24)], ...], Field(min_length=1, max_length=4)]
    classes: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(min_length=1, max_length=100_000)]
    examples: Many
    held_out: Many
    torch: Word
    device: Word
    memory: Many
    """Free memory in bytes. 0: unknown."""
    clock: Annotated[float, Field(allow_inf_nan=False)]
    """Clock of the site, in seconds since 1970."""
    demands: bool
    """Whether the site demands protection. If so, it must agree to take part before training begins."""
    node: int
    heard: float
    """Clock of the server when the description came."""
    encoder: Annotated[str, Field(max_length=64)] = ""
    """Digest of how the site's raw examples become x. Empty: they are used as they are."""

    def info(self, number: int) -> ClientInfo:
        """Returns the site as client `number`."""
        return ClientInfo(number, self.architecture, self.examples)


class SiteRoster:
    """The connected sites."""

    def __init__(self, link: MessageLink) -> None:
        self._link = link
        self._known: dict[int, SiteDescription] = {}
        self.refused: dict[int, str] = {}
        """Reasons of the nodes that were refused, by node."""
        self._ask_again: dict[int, float] = {}
        """Time at which each of these nodes is contacted again, by node."""
        self._looked = 0.0

    def call(self, count: int, seconds: float, strict: bool = True) -> tuple[SiteDescription, ...]:
        """Returns the connected sites in the order of their names, once there are `count`, or after `seconds`. Without
        `strict`, sites that were refused are ignored.

        Raises:
            GenfedError: a site was refused, two have one name, or there are more than `count`.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            here = self.here()
            names = Counter(site.name for site in here)
            if twice := [name for name, times in names.items() if times > 1]:
                raise GenfedError(f"two sites are named {twice[0]}; each needs a name of its own in its SITE.toml")
            if len(here) > count:
                raise GenfedError(
                    f"{len(here)} sites are there ({', '.join(sorted(names))}) for federation.clients = {count}"
                )
            if self.refused and strict:
                raise GenfedError(next(iter(self.refused.values())))
            if len(here) == count or time.monotonic() > until:
                return tuple(sorted(here, key=lambda site: site.name))
            time.sleep(0.5)

    def look(self, seconds: float | None = None) -> None:
        """Asks new nodes to describe themselves, each within `seconds`. None: the time of a query."""
        nodes = self._connected()
        new = [n for n in nodes if n not in self._known and self._ask_again.get(n, 0.0) <= time.monotonic()]
        envelopes = [(node, Envelope(node, {"genfed": __version__, "ask": "hello"})) for node in new]
        registered = self._link.registered() if new else {}
        for node, answer in self._link.send("query", envelopes, timeout=seconds):
            if isinstance(answer, Failure):
                if answer.reason not in LOST.values():  # a lost node is contacted again at the next look
                    self._refuse(node, answer.reason)
                continue
            try:
                said = {**answer[0], "node": node, "heard": time.time()}
                site = TypeAdapter(SiteDescription).validate_python(said)
            except ValidationError as error:
                first = error.errors()[0]
                self._refuse(
                    node, f"the description of a site is wrong: {'.'.join(map(str, first['loc']))}: {first['msg']}"
                )
                continue
            if (name := registered.get(node, site.name)) != site.name:
                self._refuse(
                    node, f"the site with the key of {name} calls itself {site.name}: it uses the key of another site"
                )
                continue
            self._known[node] = site
            self.refused.pop(node, None)

    def _connected(self) -> list[int]:
        """Returns the connected nodes, and forgets all others."""
        self._looked = time.monotonic()
        nodes = sorted(self._link.nodes())
        self._known = {node: site for node, site in self._known.items() if node in nodes}
        return nodes

    def _refuse(self, node: int, reason: str) -> None:
        self.refused[node], self._ask_again[node] = reason, time.monotonic() + BACK_OFF

    def here(self) -> list[SiteDescription]:
        """Returns the connected sites that have described themselves."""
        return list(self._known.values())

    def node_of(self, name: str) -> int | None:
        """Returns the node of a site, which may have come back as another node. None: it is not connected. New nodes
        are requested to describe themselves only if the site is missing, and a round does not wait long for them.
        """
        if time.monotonic() - self._looked > 1:
            self._connected()
            if self._find(name) is None:
                self.look(ROUND_SECONDS)
        return self._find(name)

    def _find(self, name: str) -> int | None:
        return next((node for node, site in self._known.items() if site.name == name), None)

    def ask(self, name: str, head: dict[str, Any]) -> tuple[dict[str, Any], Packed]:
        """Returns the answer of a site to a query.

        Raises:
            GenfedError: the site is not connected, or does not answer.
        """
        node = self.node_of(name)
        if node is None:
            raise GenfedError(f"site {name} is not connected")
        ((_, answer),) = self._link.send("query", [(name, Envelope(node, {"genfed": __version__} | head, EMPTY))])
        if isinstance(answer, Failure):
            raise GenfedError(f"site {name}: {answer.reason}")
        return answer
