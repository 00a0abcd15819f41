"""Checks of the calls of Flower's Fleet API, before they reach a SuperLink."""

import base64
import datetime
from typing import Any

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError

from genfed.core.errors import GenfedError

REQUESTS: dict[str, Any] = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "get-run": GetRunRequest,
    "get-fab": GetFabRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
    "register-node": RegisterNodeFleetRequest,
    "unregister-node": UnregisterNodeFleetRequest,
}
"""What the body of each call holds."""


def is_signed(key: str, timestamp: str, signature: str) -> bool:
    """Returns whether a public key signed this time, and the time is now, within the tolerance of a SuperLink.

    Args:
        key: in PEM, in base64.
        timestamp: ISO 8601, with a time zone.
        signature: of the timestamp, in base64.
    """
    try:
        age = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(timestamp)).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        public = bytes_to_public_key(base64.b64decode(key, validate=True))
        return bool(verify_signature(public, timestamp.encode("ascii"), base64.b64decode(signature, validate=True)))
    except (ValueError, TypeError, ArithmeticError, AttributeError):  # also: a key of another kind, a time without zone
        return False


def check_call(call: str, body: bytes) -> None:
    """Refuses a call that a SuperLink would misunderstand. It compares the node of a call with the key that signed, but
    not the sender of a message; and it stores a message that answers none as an instruction of the server.

    Args:
        call: one of REQUESTS.
        body: as it came.

    Raises:
        GenfedError: it cannot be read, or a message in it is no answer of this node.
    """
    try:
        request = REQUESTS[call].FromString(body)
    except DecodeError:
        raise GenfedError(f"this is no request of the kind {call}") from None
    if not isinstance(request, PushMessagesRequest):
        return
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise GenfedError(f"one message at a time is allowed, not {len(request.messages_list)}")
    about = request.messages_list[0].metadata
    if not about.reply_to_message_id:
        raise GenfedError("a site only answers: reply_to_message_id is empty")
    if about.src_node_id != request.node.node_id:
        raise GenfedError(f"node {request.node.node_id} cannot send as node {about.src_node_id}")
