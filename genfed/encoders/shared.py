"""The encoder that clients train together: the extractor of GeFL-F's architectures."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder


@settings
class Shared(Encoder):
    """The extractor of the clients' own architectures, which `gefl_f` trains in its first phase and shares. No other
    method has it.
    """

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        raise GenfedError("encoder shared: only gefl_f trains one; the other encoders are fixed maps")


def list_fixed_encoders(method: Any) -> Iterator[tuple[str, Encoder]]:
    """Yields the encoders that are settings of a method, with their keys, but for those that clients train."""
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Encoder) and not isinstance(value, Shared):
            yield field.name, value
