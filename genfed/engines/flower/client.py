"""The client side of Flower's messages."""

import functools
import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from genfed.core.errors import GenfedError, StorageError
from genfed.core.record import Packed
from genfed.engines.client_runner import ClientRunner
from genfed.engines.flower.messages import EMPTY, MessageHeader, decode_message, encode_message
from genfed.engines.messages import RoundId

log = logging.getLogger(__name__)

# The clients' side.
Handler = Callable[[MessageHeader, Packed, Mapping[str, Any]], tuple[MessageHeader, Packed]]
"""(what a letter says, its record, the node's own settings) → the answer."""


def make_client_app(handle: Handler) -> ClientApp:
    """What a node runs. It answers whatever happens: a handler that gave Flower no message would block its node for
    ever.
    """
    app = ClientApp()
    answer = functools.partial(answer_message, handle)
    app.train()(answer)
    app.query()(answer)
    return app


def answer_message(handle: Handler, message: Message, context: Context) -> Message:
    """Answers a message by `handle`; an exception becomes an answer that says so."""
    try:
        head, body = decode_message(message.content)
        content = encode_message(*handle(head, body, context.node_config))
    except (Exception, SystemExit) as error:  # a client's own code may fail in any way
        log.warning("a letter could not be answered\n%s", traceback.format_exc())
        known = isinstance(error, GenfedError)
        reason = str(error) if known else f"{type(error).__name__}: {error}".splitlines()[0]
        content = encode_message({"failed": reason, "fatal": isinstance(error, StorageError)}, EMPTY)
    return Message(content, reply_to=message)


def handle_work(site: ClientRunner, head: MessageHeader, body: Packed) -> tuple[MessageHeader, Packed]:
    """A client's part of a step, as the answer to the letter that asks for it.

    Raises:
        GenfedError: it does not know such a phase, or its work failed.
    """
    answer = site.work(_step(head["step"]), int(head["client"]), body)
    return {"weight": answer.weight, "metrics": answer.metrics, "seconds": answer.seconds}, answer.upload


def _step(said: Any) -> RoundId:
    """The step that a letter names: what it keys must be what it seems."""
    match said:
        case {"phase": str(phase), "round": int(round_), "number": int(number)} if len(said) == 3 and not (
            isinstance(round_, bool) or isinstance(number, bool) or min(round_, number) < 0
        ):
            return RoundId(phase, round_, number)
    raise GenfedError("a step is a phase, a round and a number from 0 on")
