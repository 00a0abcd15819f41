"""The sites that are connected, and how each describes itself.

A name belongs to one site. Where sites have keys, it belongs to the key under whose name it is registered at the
SuperLink, and no other key can use it. Without keys it belongs to the node that was there first, as long as it is
connected.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from genfed._version import __version__
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.core.task import Kind
from genfed.core.text import one_line
from genfed.deployment.site_settings import SITE_NAME
from genfed.engines.flower.engine import LOST, MessageLink
from genfed.engines.flower.messages import EMPTY, Envelope
from genfed.engines.round import Failure

ROUND_SECONDS = 15.0
"""Seconds that a new node has to describe itself while a round waits for it."""
BACK_OFF = 60.0
"""Seconds after which a node that was refused is contacted again."""
NAME_BACK_OFF = 5.0
"""Seconds after which a node without a key is contacted again whose name another node has: perhaps its own, from before
a restart."""
Many = Annotated[int, Field(ge=0, lt=2**60)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_line)]
"""A text of a site, which is shown."""


@dataclass(frozen=True)
class SiteDescription:
    """A site's description of itself."""

    name: Annotated[str, Field(pattern=SITE_NAME)]
    architecture: Word
    kind: Kind
    shape: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**24)], ...], Field(min_length=1, max_length=4)]
    classes: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(min_length=1, max_length=100_000)]
    examples: Many
    held_out: Many
    torch: Word
    device: Word
    memory: Many
    """Free memory in bytes. 0: unknown."""
    clock: Annotated[float, Field(ge=0, lt=2**60)]
    """Clock of the site, in seconds since 1970."""
    demands: bool
    """Whether the site demands protection. If so, it must agree to take part before training begins."""
    node: int
    heard: float
    """Clock of the server when the description came."""
    encoder: Annotated[str, Field(max_length=64)] = ""
    """Digest of how the site's raw examples become x. Empty: they are used as they are."""
    open: bool = False
    """Whether the site has a table and takes part in an agreement on its schema."""
    part: Literal["test", "validation"] = "test"
    """The part of its data that the site evaluates classifiers on."""

    def info(self, number: int) -> ClientInfo:
        """Returns the site as client `number`."""
        return ClientInfo(number, self.architecture, self.examples)


def name_site(name: str, reason: str) -> str:
    """Returns a reason with the name of the site that it is about, unless it has it already."""
    return reason if f"site {name}" in reason else f"site {name}: {reason}"


class SiteRoster:
    """The connected sites."""

    def __init__(self, link: MessageLink) -> None:
        self._link = link
        self._known: dict[int, SiteDescription] = {}
        self.refused: dict[int, str] = {}
        """Reasons of the nodes that were refused, by node."""
        self._refused_names: dict[int, str] = {}
        self._silent: set[int] = set()
        self._ask_again: dict[int, float] = {}
        """Time at which each of these nodes is contacted again, by node."""
        self._looked = 0.0

    def call(
        self, count: int, seconds: float, strict: bool = True, only: Collection[str] = ()
    ) -> tuple[SiteDescription, ...]:
        """Returns the connected sites in the order of their names, once there are `count`, or after `seconds`.

        Args:
            count: how many sites take part.
            seconds: how long to wait for them.
            strict: whether a site that is refused is an error. If not, it is ignored.
            only: the names of the sites that take part; others are ignored. Empty: all take part.

        Raises:
            GenfedError: a site was refused, or there are more than `count`.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            here = [site for site in self.here() if not only or site.name in only]
            if len(here) > count:
                names = ", ".join(sorted(site.name for site in here))
                raise GenfedError(f"{len(here)} sites have joined ({names}) for federation.clients = {count}")
            if self.refused and strict:
                raise GenfedError(next(iter(self.refused.values())))
            if len(here) == count or time.monotonic() > until:
                return tuple(sorted(here, key=lambda site: site.name))
            time.sleep(0.5)

    def look(self, seconds: float | None = None, wanted: str = "") -> None:
        """Asks new nodes to describe themselves, each within `seconds`. None: the time of a query. The node with the
        key of `wanted` is asked again at once if it was silent; others are left alone for a while.
        """
        unknown = [node for node in self._connected() if node not in self._known]
        if not unknown:
            return
        registered = self._link.registered()
        silent = {node for node in self._silent if wanted and registered.get(node) == wanted}
        new = [n for n in unknown if n in silent or self._ask_again.get(n, 0.0) <= time.monotonic()]
        self._silent -= set(new)
        envelopes = [(node, Envelope(node, {"genfed": __version__, "ask": "hello"})) for node in new]
        for node, answer in self._link.send("query", envelopes, timeout=seconds):
            name = registered.get(node, "")
            if isinstance(answer, Failure):
                if answer.reason not in LOST.values():  # a lost node is contacted again at the next look
                    self._refuse(node, name, answer.reason)
                if answer.late:
                    self._silent.add(node)
                continue
            try:
                site = TypeAdapter(SiteDescription).validate_python({**answer[0], "node": node, "heard": time.time()})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                self._refuse(node, name, f"its description of itself is wrong: {where}: {first['msg']}", tell=True)
                continue
            if (reason := self._check_name(site, name, registered)) is not None:
                pause = BACK_OFF if name else NAME_BACK_OFF
                self._refuse(node, name or site.name, reason, tell=True, pause=pause)
                continue
            self._known[node] = site
            self.refused.pop(node, None)
            self._refused_names.pop(node, None)

    def _check_name(self, site: SiteDescription, registered: str, names: Mapping[int, str]) -> str | None:
        """Returns why a site may not have the name that it gives. None: it may.

        Args:
            site: the site.
            registered: the name under which its key is registered. Empty: it has no key.
            names: the names under which nodes' keys are registered.
        """
        if registered and site.name != registered:
            return f"it calls itself {site.name}, and its key is registered as {registered}"
        if not registered and site.name in names.values():
            return f"the name {site.name} belongs to a site with a key, and this one has none"
        for other in [other for other in self._known.values() if other.name == site.name and other.node != site.node]:
            if names.get(other.node) or not registered:
                return f"two sites are named {site.name}; each needs a name of its own in its SITE.toml"
            del self._known[other.node]
            self._refuse(other.node, site.name, f"the name {site.name} belongs to a site with a key", tell=True)
        return None

    def _connected(self) -> list[int]:
        """Returns the connected nodes, and forgets all others."""
        self._looked = time.monotonic()
        nodes = sorted(self._link.nodes())
        self._known = {node: site for node, site in self._known.items() if node in nodes}
        for node in [node for node in self.refused if node not in nodes]:
            del self.refused[node], self._refused_names[node]
        return nodes

    def _refuse(self, node: int, name: str, reason: str, tell: bool = False, pause: float = BACK_OFF) -> None:
        """Takes note why a node is refused.

        Args:
            node: the node.
            name: the name of its site, as far as it is known. Empty: it is not.
            reason: the reason.
            tell: whether the site does not know it yet.
            pause: seconds until the node is contacted again.
        """
        unnamed = reason if "site " in reason else f"node {node}: {reason}"
        self.refused[node] = name_site(name, reason) if name else unnamed
        self._refused_names[node] = name
        self._ask_again[node] = time.monotonic() + pause
        if tell:
            self._link.post("query", Envelope(node, {"genfed": __version__, "ask": "refused", "reason": reason}))

    def why_absent(self, name: str) -> str:
        """Returns why a site has no node: because it was refused, or because it is not connected."""
        reasons = [self.refused[node] for node, known in self._refused_names.items() if known == name]
        return reasons[-1] if reasons and self._find(name) is None else "it is not connected"

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
                self.look(ROUND_SECONDS, wanted=name)
        return self._find(name)

    def _find(self, name: str) -> int | None:
        return next((node for node, site in self._known.items() if site.name == name), None)

    def describe_again(self, name: str) -> None:
        """Asks a site for its description anew.

        Raises:
            GenfedError: it does not answer, or its description is wrong.
        """
        node = self.node_of(name)
        if node is not None:
            del self._known[node]
        self.look(wanted=name)
        if self._find(name) is None:
            raise GenfedError(name_site(name, self.why_absent(name)))

    def ask(self, name: str, head: dict[str, Any]) -> tuple[dict[str, Any], Packed]:
        """Returns the answer of a site to a query.

        Raises:
            GenfedError: the site is not connected, or does not answer.
        """
        node = self.node_of(name)
        if node is None:
            raise GenfedError(name_site(name, self.why_absent(name)))
        head = {"genfed": __version__, "site": name} | head
        ((_, answer),) = self._link.send("query", [(name, Envelope(node, head, EMPTY))])
        if isinstance(answer, Failure):
            raise GenfedError(name_site(name, answer.reason))
        return answer
