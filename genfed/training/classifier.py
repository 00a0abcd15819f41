"""Training of a classifier, a client's or the server's, as every method does it."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.client import Client, Server
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.training.augmentation import Augmentation, augment
from genfed.training.fit import Objective, cross_entropy, fit


@settings
class Training:
    """How a client trains its classifier in one round. The optimiser is new in every round."""

    epochs: Annotated[int, Field(ge=0)] = 5
    """Passes over the client's own examples."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples per step; a client with fewer takes them all."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD, or Adam with PyTorch's default betas."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Step size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of SGD; Adam has its own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2, added to the gradient."""
    augmentation: Augmentation = "none"
    """Of the images that it learns from, real and generated alike, anew in every epoch; not of features or tables."""

    def declare(self, epochs: int | None = None) -> DeclaredTraining:
        """What a phase declares that trains so on a client's examples, for `epochs` (None: the setting's)."""
        return DeclaredTraining(self.epochs if epochs is None else epochs, self.batch_size)

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """A new optimiser over all parameters."""
        if self.optimiser == "adam":
            return torch.optim.Adam(
                network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
        return torch.optim.SGD(
            network.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )


def train(
    network: nn.Module,
    where: Client | Server,
    training: Training,
    *,
    data: Data | None = None,
    epochs: int | None = None,
    penalty: Callable[[], Tensor] | None = None,
    public: bool = False,
) -> float:
    """Trains in place by cross-entropy, plus `penalty`, on `data` (None: the client's own, and a server has none; y may
    also be soft targets [n, classes]) for `epochs` (None: the setting's). `public`: the data are not of the client's
    examples, and need no privacy. Returns the mean loss of the last epoch.
    """
    if data is None:
        assert isinstance(where, Client), "a server has no examples of its own"
        data = where.data
    loss = cross_entropy(network) if training.augmentation == "none" else augment(network, training.augmentation)
    player = Objective(loss, training.new_optimizer(network.train()), penalty, network)
    return fit(
        [player],
        data,
        epochs=training.epochs if epochs is None else epochs,
        batch_size=training.batch_size,
        rng=where.rng,
        precision=where.precision,
        privacy=None if public or isinstance(where, Server) else where.privacy,
    )
