"""Who is there: the sites that are connected, and what each says of itself."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from genfed._version import __version__
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.engines.flower.engine import LOST, MessageLink
from genfed.engines.flower.messages import EMPTY, Envelope
from genfed.engines.round import Failure

ROUND_SECONDS = 15.0
"""That a node has to say who it is while a round waits for it."""
BACK_OFF = 60.0
"""Seconds after which a node that did not say who it is, or does not take part, is asked once more."""
Many = Annotated[int, Field(ge=0, lt=2**60)]


@dataclass(frozen=True)
class SiteDescription:
    """What a site says of itself."""

    name: str
    architecture: str
    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    examples: Many
    held_out: Many
    torch: str
    device: str
    memory: Many
    """Bytes free; 0: not known."""
    clock: float
    """Seconds since 1970."""
    demands: bool
    """Whether its file says what a run must protect; it is asked about that before training."""
    node: int
    heard: float
    """The server's own clock when it came."""

    def info(self, number: int) -> ClientInfo:
        """The site as a client."""
        return ClientInfo(number, self.architecture, self.examples)


class SiteRoster:
    """The sites that are connected, by name."""

    def __init__(self, post: MessageLink) -> None:
        self._post = post
        self._known: dict[int, SiteDescription] = {}
        self.refused: dict[int, str] = {}
        """By node, what one says that does not take part."""
        self._again: dict[int, float] = {}
        """By node of those, when it is asked once more."""
        self._looked = 0.0

    def call(self, count: int, seconds: float, patient: bool = True) -> tuple[SiteDescription, ...]:
        """The sites that are there, by name, once there are `count`, or after `seconds`.

        Raises:
            GenfedError: a site refuses, two have one name, or there are more than `count`.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            here = self.here()
            names = Counter(hello.name for hello in here)
            if twice := [name for name, times in names.items() if times > 1]:
                raise GenfedError(f"two sites are named {twice[0]}; each needs a name of its own in its SITE.toml")
            if len(here) > count:
                raise GenfedError(
                    f"{len(here)} sites are there ({', '.join(sorted(names))}) for federation.clients = {count}"
                )
            if self.refused and patient:
                raise GenfedError(next(iter(self.refused.values())))
            if len(here) == count or time.monotonic() > until:
                return tuple(sorted(here, key=lambda hello: hello.name))
            time.sleep(0.5)

    def look(self, seconds: float | None = None) -> None:
        """Asks nodes that are new who they are; each has `seconds` to answer, None: those of a query."""
        nodes = self._connected()
        new = [n for n in nodes if n not in self._known and self._again.get(n, 0.0) <= time.monotonic()]
        letters = [(node, Envelope(node, {"genfed": __version__, "ask": "hello"})) for node in new]
        registered = self._post.registered() if new else {}
        for node, answer in self._post.send("query", letters, timeout=seconds):
            if isinstance(answer, Failure):
                if answer.reason not in LOST.values():  # such a one is asked again with the next look
                    self._refuse(node, answer.reason)
                continue
            try:
                said = {**answer[0], "node": node, "heard": time.time()}
                hello = TypeAdapter(SiteDescription).validate_python(said)
            except ValidationError as error:
                first = error.errors()[0]
                self._refuse(node, f"a site said what cannot be: {'.'.join(map(str, first['loc']))}: {first['msg']}")
                continue
            if (name := registered.get(node, hello.name)) != hello.name:
                self._refuse(node, f"the site with the key of {name} says that it is {hello.name}: it has another's")
                continue
            self._known[node] = hello
            self.refused.pop(node, None)

    def _connected(self) -> list[int]:
        """The nodes that there are; others are forgotten."""
        self._looked = time.monotonic()
        nodes = sorted(self._post.nodes())
        self._known = {node: hello for node, hello in self._known.items() if node in nodes}
        return nodes

    def _refuse(self, node: int, reason: str) -> None:
        self.refused[node], self._again[node] = reason, time.monotonic() + BACK_OFF

    def here(self) -> list[SiteDescription]:
        """Those that are known."""
        return list(self._known.values())

    def node_of(self, name: str) -> int | None:
        """Where the site is; it may have come back as another node. Who else there is does not matter: nodes are asked
        who they are only where the site is missing, and a round does not wait long for those that do not say.
        """
        if time.monotonic() - self._looked > 1:
            self._connected()
            if self._place(name) is None:
                self.look(ROUND_SECONDS)
        return self._place(name)

    def _place(self, name: str) -> int | None:
        return next((node for node, hello in self._known.items() if hello.name == name), None)

    def ask(self, name: str, head: dict[str, Any]) -> tuple[dict[str, Any], Packed]:
        """One site's answer to a query.

        Raises:
            GenfedError: it gives none.
        """
        node = self.node_of(name)
        if node is None:
            raise GenfedError(f"site {name} is not connected")
        ((_, answer),) = self._post.send("query", [(name, Envelope(node, {"genfed": __version__} | head, EMPTY))])
        if isinstance(answer, Failure):
            raise GenfedError(f"site {name}: {answer.reason}")
        return answer
