"""Messages between server and sites as Flower carries them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from genfed.core.errors import GenfedError, RecordError
from genfed.core.json_text import read_json
from genfed.core.record import Packed, from_bytes, to_bytes

MessageHeader = dict[str, Any]
"""A message's header: a dict of JSON."""
EMPTY = Packed({}, "{}")
HEAD = 2**24
"""Maximum length of a header in characters (16 Mi)."""
HEAD_VALUES = 2**18
"""Maximum number of values in a header."""


def encode_message(
    head: MessageHeader, body: Packed, arrays: Callable[[str, Packed], Array] | None = None
) -> RecordDict:
    """Returns a message as Flower carries it.

    Args:
        head: the header.
        body: the record.
        arrays: makes the array of one field of the record. None: a new array for each.
    """
    fields: dict[str, Packed] = {}
    for path, tensor in body.tensors.items():
        name = path.partition(".")[2].partition("[")[0].partition(".")[0]
        fields.setdefault(name, Packed({}, "")).tensors[path] = tensor
    make = arrays or (lambda name, part: _array(part))
    record = ArrayRecord({name: make(name, part) for name, part in fields.items()})
    text = ConfigRecord({"head": json.dumps(head), "skeleton": body.skeleton})
    return RecordDict({"message": text, "tensors": record})


def decode_message(content: RecordDict) -> tuple[MessageHeader, Packed]:
    """Returns the header and the record that `encode_message` was given.

    Raises:
        GenfedError: the content is no message of genfed.
    """
    try:
        text = content.config_records["message"]
        head = read_json(text["head"], longest=HEAD, most=HEAD_VALUES)
        tensors: dict[str, Tensor] = {}
        for array in content.array_records["tensors"].values():
            tensors |= from_bytes(array.data).tensors
        if not (isinstance(head, dict) and isinstance(text["skeleton"], str)):
            raise TypeError("a header that is no table")
        return head, Packed(tensors, text["skeleton"])
    except (KeyError, TypeError, ValueError, AttributeError, RecordError) as error:
        raise GenfedError(f"it is no message of genfed ({type(error).__name__}: {error})") from None


def _array(part: Packed) -> Array:
    data = to_bytes(part)
    return Array("uint8", (len(data),), "safetensors", data)


class ArrayCache:
    """The last array of each field, so that clients which are sent the same tensors share one array."""

    def __init__(self) -> None:
        # By field: its key, its tensors (held, so that no others get their addresses) and the array.
        self._last: dict[str, tuple[tuple[Any, ...], Packed, Array]] = {}

    def __call__(self, name: str, part: Packed) -> Array:
        key = tuple((path, t.data_ptr(), t.dtype, tuple(t.shape)) for path, t in part.tensors.items())
        if name not in self._last or self._last[name][0] != key:
            self._last[name] = key, part, _array(part)
        return self._last[name][2]


@dataclass(frozen=True)
class Envelope:
    """A message and its destination."""

    to: int
    """The node's id."""
    head: MessageHeader
    """The header."""
    body: Packed = EMPTY
    """The record."""
