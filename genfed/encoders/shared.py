"""The encoder that clients train together: the extractor of GeFL-F's architectures."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

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


def list_fixed_encoders(settings: object) -> Iterator[tuple[str, Encoder]]:
    """Yields the encoders in settings, at any depth, with their dotted keys, but for those that clients train. One that
    another encoder contains comes after it.
    """
    for field in fields(settings) if is_dataclass(settings) else ():
        value = getattr(settings, field.name)
        if isinstance(value, Encoder) and not isinstance(value, Shared):
            yield field.name, value
        for key, encoder in list_fixed_encoders(value):
            yield f"{field.name}.{key}", encoder
