"""Messages between server and sites as Flower carries them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.record import Packed, from_bytes, to_bytes

MessageHeader = dict[str, Any]
"""What a letter says, as JSON has it."""
EMPTY = Packed({}, "{}")


# Letters.
def encode_message(
    head: MessageHeader, body: Packed, arrays: Callable[[str, Packed], Array] | None = None
) -> RecordDict:
    """A letter as Flower carries it. `arrays` makes the array of one field; None: afresh."""
    fields: dict[str, Packed] = {}
    for path, tensor in body.tensors.items():
        name = path.partition(".")[2].partition("[")[0].partition(".")[0]
        fields.setdefault(name, Packed({}, "")).tensors[path] = tensor
    make = arrays or (lambda name, part: _array(part))
    record = ArrayRecord({name: make(name, part) for name, part in fields.items()})
    text = ConfigRecord({"head": json.dumps(head), "skeleton": body.skeleton})
    return RecordDict({"letter": text, "tensors": record})


def decode_message(content: RecordDict) -> tuple[MessageHeader, Packed]:
    """Reads `encode_message`.

    Raises:
        GenfedError: it is no letter.
    """
    try:
        text = content.config_records["letter"]
        head = json.loads(text["head"])
        tensors: dict[str, Tensor] = {}
        for array in content.array_records["tensors"].values():
            tensors |= from_bytes(array.data).tensors
        if not (isinstance(head, dict) and isinstance(text["skeleton"], str)):
            raise TypeError("a head that is no table")
        return head, Packed(tensors, text["skeleton"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise GenfedError(f"it is no letter of genfed's ({type(error).__name__}: {error})") from None


def _array(part: Packed) -> Array:
    data = to_bytes(part)
    return Array("uint8", (len(data),), "safetensors", data)


class ArrayCache:
    """Makes a field's array once for all clients that are sent the same tensors; remembers the last of each field."""

    def __init__(self) -> None:
        # By field: its key, its tensors (held, so that no other can come to lie at their address) and the array.
        self._last: dict[str, tuple[tuple[Any, ...], Packed, Array]] = {}

    def __call__(self, name: str, part: Packed) -> Array:
        key = tuple((path, t.data_ptr(), t.dtype, tuple(t.shape)) for path, t in part.tensors.items())
        if name not in self._last or self._last[name][0] != key:
            self._last[name] = key, part, _array(part)
        return self._last[name][2]


# The server's side.
@dataclass(frozen=True)
class Envelope:
    """One to a node."""

    to: int
    """The node."""
    head: MessageHeader
    body: Packed = EMPTY
