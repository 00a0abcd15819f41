"""The messages between engines and clients: a round, and a client's reply."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from genfed.core.errors import GenfedError
from genfed.core.record import Packed

LARGEST = 1e15
"""Largest absolute value of a number of a client: a whole number in its upload, a metric, its seconds of work. For
other numbers in an upload see `Phase.largest`."""


@dataclass(frozen=True)
class RoundId:
    """One round of one phase."""

    phase: str
    """The phase's name."""
    round: int
    """The round, counted per phase name over the whole method."""
    number: int
    """The round, counted over all phases. It reads what clients stored in rounds of lower numbers."""
    since: int | None = None
    """The last round of which the server knows that this client stored something, counted as `number`. A client that
    has lost it refuses to work. None: there was none."""

    def __str__(self) -> str:
        return f"{self.phase} round {self.round + 1}"  # people count from 1, as the progress does


@dataclass(frozen=True)
class PackedReply:
    """A client's reply as it travels."""

    upload: Packed
    """The uploaded record."""
    weight: float
    """The upload's weight in a weighted mean, above 0."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers for the log."""
    seconds: float = 0.0
    """The duration of the client's work."""

    def readable_metrics(self) -> dict[str, float]:
        """Returns the metrics, with NaN for a number beyond ±`LARGEST`: no sum over clients is spoiled by one of them.

        >>> PackedReply(Packed({}, "{}"), 1.0, {"loss": 0.5, "flops": 1.7e308}).readable_metrics()
        {'loss': 0.5, 'flops': nan}
        """
        return {name: value if abs(value) <= LARGEST else math.nan for name, value in self.metrics.items()}


def check_reply(reply: PackedReply) -> None:
    """Refuses a reply whose numbers would spoil a mean or a report.

    Raises:
        GenfedError: a weight that is not above 0, a duration that is none, or numbers that are not finite.
    """
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        raise GenfedError(f"its weight is {reply.weight}; a weight is above 0")
    if not 0 <= reply.seconds <= LARGEST:  # NaN too
        raise GenfedError(f"its work took {reply.seconds} seconds; 0 to {LARGEST:g} are allowed")
    for path, tensor in reply.upload.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GenfedError(f"{path} holds numbers that are not finite")
    for name, value in json.loads(reply.upload.skeleton).items():
        if not _is_finite(value):
            raise GenfedError(f"{name} holds numbers that are not finite")


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
