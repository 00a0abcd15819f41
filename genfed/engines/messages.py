"""What travels between engines and clients: which round, and a client's reply."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from genfed.core.errors import GenfedError
from genfed.core.record import Packed


@dataclass(frozen=True)
class RoundId:
    """One round of one phase."""

    phase: str
    round: int
    """Counted per phase name over the whole method."""
    number: int
    """Counted over all phases. A step reads what clients kept in earlier ones."""


@dataclass(frozen=True)
class PackedReply:
    """A client's reply, packed, and the seconds that its work took."""

    upload: Packed
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def check_reply(answer: PackedReply) -> None:
    """Refuses a reply whose numbers would spoil a mean.

    Raises:
        GenfedError: a weight that is not above 0, or numbers that are not finite.
    """
    if not (math.isfinite(answer.weight) and answer.weight > 0):
        raise GenfedError(f"its weight is {answer.weight}; a weight is above 0")
    for path, tensor in answer.upload.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GenfedError(f"{path} holds numbers that are not finite")
    for name, value in json.loads(answer.upload.skeleton).items():
        if not _finite(value):
            raise GenfedError(f"{name} holds numbers that are not finite")


def _finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
