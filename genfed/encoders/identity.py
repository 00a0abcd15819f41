"""The encoder that changes nothing: features are the numbers of an example, as for the encoded rows of a table."""

import torch
from torch import Tensor, nn

from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.encoders.encoder import Encoder


@settings
class Identity(Encoder):
    """An example's numbers as its features; those of images are pixels on the scale of networks, [−1, 1]."""

    def new(self, task: Task, rng: torch.Generator) -> nn.Module:
        return IdentityNetwork()


class IdentityNetwork(nn.Module):
    """Returns the numbers of an example in a row."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [n, …] as [n, d]."""
        return x.flatten(1)
