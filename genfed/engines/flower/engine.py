"""Clients behind Flower: simulated on this machine with Ray, or SuperNodes on machines of their own.

A message is a dict of JSON and a packed record, in a `RecordDict`. The record's tensors travel as bytes of safetensors,
one array per field: so bfloat16 keeps its bits, and a field that is the same for all clients is transferred once
(Flower stores arrays by their content).
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, first_line
from genfed.core.record import Packed
from genfed.core.text import one_line
from genfed.engines.flower.messages import ArrayCache, Envelope, MessageHeader, decode_message, encode_message
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job

log = logging.getLogger(__name__)

PATIENCE = 3600.0
"""Default seconds that a node has to reply; Flower's own limit is 12 hours."""
LATE = 30.0
"""Seconds that Flower keeps a message longer than genfed waits: an expired message would look like a lost one."""
METRICS = 100
"""Largest number of metrics in a reply."""
PUSHES = 3
"""Number of times that a message is pushed to a SuperLink that was restarted while it arrived."""
IN_FLIGHT = 2**30
"""Bytes of messages in flight, of which Flower holds about three times as many. A larger message goes alone."""


class MessageLink:
    """Sends messages and yields their replies as they arrive."""

    def __init__(
        self, grid: Grid, timeout: float | None = None, at_once: int | None = None, pause: float = 0.1
    ) -> None:
        """Sends over Flower's grid.

        Args:
            grid: Flower's link to the nodes.
            timeout: seconds that a node has to reply. None: an hour.
            at_once: largest number of messages in flight. None: only their size is bounded.
            pause: seconds between two requests for replies.
        """
        self._grid, self._timeout = grid, timeout or PATIENCE
        self._at_once, self._pause = at_once, pause

    def nodes(self) -> list[int]:
        """Returns the ids of connected nodes, sorted."""
        return sorted(_call(self._grid.get_node_ids))

    def registered(self) -> dict[int, str]:
        """Returns the names under which nodes' keys are registered, by node; without nodes that have none."""
        return {node.node_id: node.name for node in _call(self._grid.get_nodes) if node.name}

    def post(self, kind: str, envelope: Envelope) -> None:
        """Sends one message without waiting for a reply, or for the message to arrive."""
        content = encode_message(envelope.head, envelope.body)
        self._push(Message(content, envelope.to, kind, ttl=LATE))

    def send(
        self, kind: str, envelopes: Iterable[tuple[Any, Envelope]], group: str = "", timeout: float | None = None
    ) -> Iterator[tuple[Any, tuple[MessageHeader, Packed] | Failure]]:
        """Sends messages, and yields (key, reply) in any order.

        Args:
            kind: "train" or "query".
            envelopes: (key, message), drawn only as fast as they can be sent.
            group: Flower's name for messages that belong together.
            timeout: seconds that a node has to reply. None: those of this link.
        """
        coming, arrays, timeout = iter(envelopes), ArrayCache(), timeout or self._timeout
        in_flight: dict[str, tuple[Any, int, float]] = {}  # message -> (key, bytes, deadline)
        ahead = next(coming, None)
        while ahead or in_flight:
            while ahead and self._has_room(in_flight, ahead[1]):
                key, envelope = ahead
                content = encode_message(envelope.head, envelope.body, arrays)
                message = Message(content, envelope.to, kind, ttl=timeout + LATE, group_id=group)
                pushed = [name for name in self._push(message) if name]
                if pushed:
                    in_flight[pushed[0]] = key, envelope.body.nbytes, time.monotonic() + timeout
                else:
                    yield key, Failure("its node is not connected, or the link took no message for it")
                ahead = next(coming, None)
            if not in_flight:
                continue
            received = False
            for reply in _call(self._grid.pull_messages, list(in_flight)):
                if (sent := in_flight.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    received = True
                    yield sent[0], _open_reply(reply)
            now = time.monotonic()
            for name in [name for name, (_, _, deadline) in in_flight.items() if now > deadline]:
                yield in_flight.pop(name)[0], Failure(f"took longer than {timeout:g} s", late=True)
            if not received and in_flight:
                time.sleep(self._pause)

    def _push(self, message: Message) -> list[str]:
        """Pushes a message, again if the SuperLink ends within: Flower keeps a message once that arrives twice."""
        for _ in range(PUSHES - 1):
            try:
                return _call(self._grid.push_messages, [message])
            except GenfedError as error:
                if not isinstance(error.__cause__, ObjectPushError):
                    raise
        return _call(self._grid.push_messages, [message])

    def _has_room(self, in_flight: Mapping[str, tuple[Any, int, float]], envelope: Envelope) -> bool:
        if not in_flight:
            return True
        if self._at_once is not None and len(in_flight) >= self._at_once:
            return False
        return sum(size for _, size, _ in in_flight.values()) + envelope.body.nbytes <= IN_FLIGHT


def _call(function: Callable[..., Iterable[Any]], *arguments: Any) -> list[Any]:
    """Returns the result of one of the grid's functions.

    Raises:
        GenfedError: the link does not answer, though Flower has tried again.
    """
    try:
        return list(function(*arguments))
    except GenfedError:
        raise
    except Exception as error:  # whatever its connection raises
        why = f"{type(error).__name__}: {first_line(error)}"
        raise GenfedError(f"the SuperLink does not answer ({why}); go on with --resume once it does") from error


LOST = {
    3: "what was sent to it got lost",
    4: "what it answered got lost",
    5: "its node was lost",
    8: "its process died",
}
"""Flower's own errors that are no fault of the message, by code."""


def _open_reply(reply: Message) -> tuple[MessageHeader, Packed] | Failure:
    if reply.has_error():
        reason = one_line(" ".join(str(reply.error.reason or "").split()), 200)
        return Failure(LOST.get(reply.error.code, f"its node failed (Flower's code {reply.error.code}): {reason}"))
    try:
        head, body = decode_message(reply.content)
    except GenfedError as error:
        return Failure(str(error))
    if "failed" in head:
        return Failure(str(head["failed"]), head.get("fatal") is True)
    return head, body


class NodeDirectory(Protocol):
    """Knows what the nodes of clients are called."""

    def name(self, client: int) -> str:
        """Returns the name of a client's site, which its node compares with its own."""

    def why_absent(self, client: int) -> str:
        """Returns why a client has no node."""

    def describe(self, client: int, reason: str) -> str:
        """Returns a reason for which a client is excluded, with the name of its site."""


class FlowerEngine:
    """The engine whose clients work at Flower's nodes."""

    def __init__(
        self,
        link: MessageLink,
        node_of: Callable[[int], int | None],
        opening: MessageHeader | None = None,
        patience: float = 0.0,
        directory: "NodeDirectory | None" = None,
    ) -> None:
        """Sends clients' work over a link.

        Args:
            link: sends messages to nodes.
            node_of: gives the node of a client. None: its node is not connected.
            opening: the part of every header that names the trial. None: nothing does.
            patience: seconds to wait for a node that is not connected.
            directory: knows what clients' nodes are called. None: they have no names.
        """
        self._link, self._node_of, self._opening, self._patience = link, node_of, opening or {}, patience
        self._directory = directory
        self._lost: list[str] = []

    def open(self, trial: str) -> None:
        """Names the next trial; `trial` is the text that the clients' `open_runner` takes."""
        self._opening = {"open": trial}

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """See `Engine`. The job of a client whose node or process was lost is sent once more."""
        lost_once: set[int] = set()
        waiting: list[Job] = []
        absent: list[Job] = []

        def address(jobs: Iterable[Job]) -> Iterator[tuple[Job, Envelope]]:
            for job in jobs:
                if (node := self._node_of(job.info.id)) is None:
                    absent.append(job)
                else:
                    head = {"step": asdict(replace(step, since=job.since)), "client": job.info.id}
                    if self._directory is not None:
                        head["site"] = self._directory.name(job.info.id)
                    yield job, Envelope(node, self._opening | head, job.sent)

        started = time.monotonic()
        while True:
            for job, outcome in self._link.send("train", address(jobs), str(step.number)):
                info = job.info
                if isinstance(outcome, Failure) and outcome.reason in LOST.values() and info.id not in lost_once:
                    lost_once.add(info.id)
                    self._lost.append(f"client {info.id}: {self.describe(info, outcome.reason)}; sent again")
                    log.warning(self._lost[-1])
                    waiting.append(job)
                else:
                    if isinstance(outcome, Failure) and self._directory is not None:
                        outcome = replace(outcome, fatal=False)  # no site may stop the run of the others
                    yield info, _read_reply(outcome)
            if absent and time.monotonic() - started > self._patience:
                for info, *_ in absent:
                    why = "it is not connected" if self._directory is None else self._directory.why_absent(info.id)
                    yield info, Failure(why)
                absent.clear()
            if not (waiting or absent):
                return
            if not waiting:
                time.sleep(1)
            jobs = [*waiting, *absent]
            waiting, absent = [], []

    def describe(self, info: ClientInfo, reason: str) -> str:
        """See `Engine`."""
        return reason if self._directory is None else self._directory.describe(info.id, reason)

    def lost(self) -> list[str]:
        """See `Engine`."""
        lines, self._lost = self._lost, []
        return lines


def _read_reply(outcome: tuple[MessageHeader, Packed] | Failure) -> PackedReply | Failure:
    """Returns a reply whose header has the right types. `Round` checks its record."""
    if isinstance(outcome, Failure):
        return outcome
    head, body = outcome
    weight, metrics, seconds = head.get("weight"), head.get("metrics"), head.get("seconds")
    numbers = isinstance(metrics, dict) and all(_is_number(value) for value in metrics.values())
    if not (_is_number(weight) and _is_number(seconds) and numbers):
        return Failure("its answer lacks a weight, metrics or seconds that are numbers")
    if len(head["metrics"]) > METRICS:
        return Failure(f"its answer holds {len(head['metrics'])} metrics; {METRICS} are allowed")
    plain: dict[str, float] = {one_line(name, 64): float(value) for name, value in head["metrics"].items()}
    return PackedReply(body, float(head["weight"]), plain, float(head["seconds"]))


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # JSON has integers that no float holds
    return isinstance(value, float)


def make_server_app(main: Callable[[Grid, Mapping[str, Any]], None]) -> ServerApp:
    """Returns the app that the SuperLink runs: `main(grid, run settings)`."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def _(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app
