"""The encoder that clients train together: the extractor of GeFL-F's architectures."""

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
