"""The messages that a node received, answered by this genfed alone.

Flower's own programs install the app that comes with a message and run its code. These functions never look at that
app: they take the message from the node (Flower's SuperNode, started with `--isolation process`), let a `Handler` of
the installed genfed answer it, and give the reply back. So a server can send data to a site, but no code.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from genfed.core.errors import GenfedError
from genfed.engines.flower.client import Handler, answer_message

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class TaskQueue:
    """The messages that wait at a node on this machine."""

    def __init__(self, address: str, secret: Path) -> None:
        """`address` is the node's host:port, and `secret` the file that node and queue share."""
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret.read_bytes(), protected_methods=[_ACQUIRE]),
            ],
        )

    def next(self) -> str | None:
        """Returns the token of a message that waits, which `answer_task` takes. None: there is none, or the node does
        not answer. Messages for Flower's other kinds of apps are taken too, so that they are refused and do not stay.

        Raises:
            GenfedError: the node refuses to give messages.
        """
        try:
            waiting = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=list(TaskType)))
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:  # it starts or ends
                return None
            raise GenfedError(f"the SuperNode gives no messages (HTTP status {error.response.status_code})") from None
        except (httpx.HTTPError, ValueError):
            return None
        return waiting.token or None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


@contextlib.contextmanager
def _connect(address: str, token: str) -> Iterator[RuntimeHttpClient]:
    """Yields a connection to a node about one message, whose node hears that this process lives."""
    client = RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    beats = HeartbeatSender(make_task_heartbeat_fn_http(client))
    beats.start()
    try:
        yield client
    finally:
        if beats.is_running:
            beats.stop()
        client.close()


def answer_task(address: str, token: str, handle: Handler) -> None:
    """Answers one message.

    Args:
        address: host:port of the node.
        token: the token that `TaskQueue.next` gave.
        handle: answers the message. The app that came with the message is not looked at.
    """
    with _connect(address, token) as client:
        context: Context | None = None
        done = False
        try:
            message, context, _, _ = pull_task_input(client)
            reply: Message = answer_message(handle, message, context)
            push_message(client, reply, context)
            done = True
        finally:
            push_task_output(client, context, SubStatus.COMPLETED if done else SubStatus.FAILED, "")
