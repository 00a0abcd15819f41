"""Clients behind Flower: simulated on this machine with Ray, or SuperNodes on machines of their own.

The only importer of flwr. What crosses is a letter: a dict of JSON and a packed record, in a `RecordDict`. The record's
tensors go as bytes of safetensors, an array per field, so bfloat16 keeps its bits, and a field that all clients are
sent alike is uploaded once (Flower stores arrays by their content).
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.record import Packed
from genfed.engines.flower.messages import ArrayCache, Envelope, MessageHeader, decode_message, encode_message
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure

log = logging.getLogger(__name__)

PATIENCE = 3600.0
"""Seconds that a node has for an answer where nothing else is said; Flower's own limit is 12 hours."""
LATE = 30.0
"""Seconds by which Flower forgets a letter later than we do; what it says of one that it forgot reads like a loss."""
IN_FLIGHT = 2**30
"""Bytes of letters on their way at once, of which Flower holds about three times as many; a larger one goes alone."""


class MessageLink:
    """Sends letters and gives their answers as they come."""

    def __init__(
        self, grid: Grid, timeout: float | None = None, at_once: int | None = None, pause: float = 0.1
    ) -> None:
        """`timeout` is the seconds that a node has to answer; None: an hour. `at_once` bounds the letters on their way;
        None: only their size does. `pause` is the seconds between two looks for answers.
        """
        self._grid, self._timeout = grid, timeout or PATIENCE
        self._at_once, self._pause = at_once, pause

    def nodes(self) -> list[int]:
        """Those that are connected, sorted."""
        return sorted(_link(self._grid.get_node_ids))

    def registered(self) -> dict[int, str]:
        """The names under which the link knows the keys of nodes; those without are left out."""
        return {node.node_id: node.name for node in _link(self._grid.get_nodes) if node.name}

    def send(
        self, kind: str, letters: Iterable[tuple[Any, Envelope]], group: str = "", timeout: float | None = None
    ) -> Iterator[tuple[Any, tuple[MessageHeader, Packed] | Failure]]:
        """`letters` are (whose, letter), drawn only as fast as they can be sent; gives (whose, answer) in any order.
        `kind` is "train" or "query"; `timeout` is that of these letters, None: the post's own.
        """
        coming, once, timeout = iter(letters), ArrayCache(), timeout or self._timeout
        flying: dict[str, tuple[Any, int, float]] = {}  # message -> (whose, bytes, deadline)
        ahead = next(coming, None)
        while ahead or flying:
            while ahead and self._room(flying, ahead[1]):
                whose, letter = ahead
                content = encode_message(letter.head, letter.body, once)
                message = Message(content, letter.to, kind, ttl=timeout + LATE, group_id=group)
                pushed = [name for name in _link(self._grid.push_messages, [message]) if name]
                if pushed:
                    flying[pushed[0]] = whose, letter.body.nbytes, time.monotonic() + timeout
                else:
                    yield whose, Failure("its node is not connected, or the link took no message for it")
                ahead = next(coming, None)
            if not flying:
                continue
            heard = False
            for reply in _link(self._grid.pull_messages, list(flying)):
                if (sent := flying.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    heard = True
                    yield sent[0], _opened(reply)
            now = time.monotonic()
            for name in [name for name, (_, _, deadline) in flying.items() if now > deadline]:
                yield flying.pop(name)[0], Failure(f"took longer than {timeout:g} s")
            if not heard and flying:
                time.sleep(self._pause)

    def _room(self, flying: Mapping[str, tuple[Any, int, float]], letter: Envelope) -> bool:
        if not flying:
            return True
        if self._at_once is not None and len(flying) >= self._at_once:
            return False
        return sum(size for _, size, _ in flying.values()) + letter.body.nbytes <= IN_FLIGHT


def _link(call: Callable[..., Iterable[Any]], *words: Any) -> list[Any]:
    """What the link says.

    Raises:
        GenfedError: it does not answer, though Flower has tried again.
    """
    try:
        return list(call(*words))
    except GenfedError:
        raise
    except Exception as error:  # whatever its connection raises
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise GenfedError(f"the SuperLink does not answer ({why}); go on with --resume once it does") from error


LOST = {
    3: "what was sent to it got lost",
    4: "what it answered got lost",
    5: "its node was lost",
    8: "its process died",
}
"""Flower's own reports of a message that came to nothing for no fault of the letter, by code."""


def _opened(reply: Message) -> tuple[MessageHeader, Packed] | Failure:
    if reply.has_error():
        said = " ".join(str(reply.error.reason or "").split())
        return Failure(LOST.get(reply.error.code, f"its node failed (Flower's code {reply.error.code}): {said[:200]}"))
    try:
        head, body = decode_message(reply.content)
    except GenfedError as error:
        return Failure(str(error))
    if "failed" in head:
        return Failure(str(head["failed"]), head.get("fatal") is True)
    return head, body


_Job = tuple[ClientInfo, Packed]


class FlowerEngine:
    """The engine: clients at nodes."""

    def __init__(
        self,
        post: MessageLink,
        node_of: Callable[[int], int | None],
        opening: MessageHeader | None = None,
        patience: float = 0.0,
    ) -> None:
        """`node_of` says at which node a client is, None: at none that is connected; for such a one it waits `patience`
        seconds.
        """
        self._post, self._node_of, self._opening, self._patience = post, node_of, opening or {}, patience
        self._lost: list[str] = []

    def open(self, trial: str) -> None:
        """Says which trial comes next, in words that the clients' side understands."""
        self._opening = {"open": trial}

    def exchange(
        self, step: RoundId, jobs: Iterable[tuple[ClientInfo, Packed]]
    ) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """See `Engine`. A client whose node or process was lost is asked once more."""
        asked_again: set[int] = set()
        waiting: list[_Job] = []
        absent: list[_Job] = []

        def letters(some: Iterable[_Job]) -> Iterator[tuple[_Job, Envelope]]:
            for info, sent in some:
                if (node := self._node_of(info.id)) is None:
                    absent.append((info, sent))
                else:
                    yield (info, sent), Envelope(node, self._opening | {"step": asdict(step), "client": info.id}, sent)

        some, since = jobs, time.monotonic()
        while True:
            for (info, sent), outcome in self._post.send("train", letters(some), str(step.number)):
                if isinstance(outcome, Failure) and outcome.reason in LOST.values() and info.id not in asked_again:
                    asked_again.add(info.id)
                    self._lost.append(f"client {info.id}: {outcome.reason}; asked again")
                    log.warning(self._lost[-1])
                    waiting.append((info, sent))
                else:
                    yield info, _answer(outcome)
            if absent and time.monotonic() - since > self._patience:
                for info, _ in absent:
                    yield info, Failure("it is not connected")
                absent.clear()
            if not (waiting or absent):
                return
            if not waiting:
                time.sleep(1)
            some = [*waiting, *absent]
            waiting, absent = [], []

    def lost(self) -> list[str]:
        """See `Engine`."""
        lines, self._lost = self._lost, []
        return lines


def _answer(outcome: tuple[MessageHeader, Packed] | Failure) -> PackedReply | Failure:
    """An answer whose head is what it should be; its record is judged by `Round`."""
    if isinstance(outcome, Failure):
        return outcome
    head, body = outcome
    weight, metrics, seconds = head.get("weight"), head.get("metrics"), head.get("seconds")
    numbers = isinstance(metrics, dict) and all(_number(value) for value in metrics.values())
    if not (_number(weight) and _number(seconds) and numbers):
        return Failure("its answer lacks a weight, metrics or seconds that are numbers")
    given: dict[str, float] = {str(name): float(value) for name, value in head["metrics"].items()}
    return PackedReply(body, float(head["weight"]), given, float(head["seconds"]))


def _number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # JSON has integers that no float holds
    return isinstance(value, float)


# A federation of sites.
def make_server_app(main: Callable[[Grid, Mapping[str, Any]], None]) -> ServerApp:
    """What the link runs: `main(grid, run settings)`."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def _(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app
