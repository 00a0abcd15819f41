"""The client side of Flower's messages."""

import functools
import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from genfed.core.errors import GenfedError, StorageError, describe_error
from genfed.core.record import Packed
from genfed.core.text import indent_lines, one_line
from genfed.engines.client_runner import ClientRunner
from genfed.engines.flower.messages import EMPTY, MessageHeader, decode_message, encode_message
from genfed.engines.messages import RoundId

log = logging.getLogger(__name__)
STEPS = 10**9
"""Bound of the numbers that count rounds, which are parts of file names."""

Handler = Callable[[MessageHeader, Packed, Mapping[str, Any]], tuple[MessageHeader, Packed]]
"""(header, record, the node's own settings) → the reply's header and record."""


def make_client_app(handle: Handler) -> ClientApp:
    """Returns the app that a node runs. It always replies: a handler without a reply would block its node for ever."""
    app = ClientApp()
    answer = functools.partial(answer_message, handle)
    app.train()(answer)
    app.query()(answer)
    return app


def answer_message(handle: Handler, message: Message, context: Context) -> Message:
    """Returns the reply that `handle` gives to a message. An exception becomes a reply that says so."""
    try:
        head, body = decode_message(message.content)
        content = encode_message(*handle(head, body, context.node_config))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a client's own code may fail in any way
        log.warning("a message could not be answered\n%s", indent_lines(traceback.format_exc()))
        reason = one_line(error) if isinstance(error, GenfedError) else describe_error(error)
        content = encode_message({"failed": reason, "fatal": isinstance(error, StorageError)}, EMPTY)
    return Message(content, reply_to=message)


def refuse_app(head: MessageHeader, body: Packed, node: Mapping[str, Any]) -> tuple[MessageHeader, Packed]:
    """A `Handler` for nodes that run the apps which a server sends: they are not safe, and no sites of genfed.

    Raises:
        GenfedError: always.
    """
    raise GenfedError("this node runs the code that the server sends: start the site with `genfed join SITE.toml`")


def handle_work(runner: ClientRunner, head: MessageHeader, body: Packed) -> tuple[MessageHeader, Packed]:
    """Has one client do its part of the round that the header names, and returns the reply.

    Raises:
        GenfedError: there is no such phase, or the work failed.
    """
    if type(client := head.get("client")) is not int:
        raise GenfedError("client is no whole number")
    answer = runner.work(_read_round(head.get("step")), client, body)
    return {"weight": answer.weight, "metrics": answer.metrics, "seconds": answer.seconds}, answer.upload


def _read_round(value: Any) -> RoundId:
    """Returns the round that a header names. It names random streams, so that its types are checked."""
    match value:
        case {"phase": str(phase), "round": int(round_), "number": int(number), **rest} if rest.keys() <= {"since"}:
            since: Any = rest.get("since")
            if _is_step(round_) and _is_step(number) and (since is None or _is_step(since)):
                return RoundId(phase, round_, number, since)
    raise GenfedError(
        f"a step is a phase, a round and a number from 0 on, and a round that it counts on or none, all below {STEPS}"
    )


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < STEPS
