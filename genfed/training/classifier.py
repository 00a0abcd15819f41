"""Training of a classifier by a client or the server, used by every method."""

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
    """A client's training of its classifier in one round. The optimizer is new in every round.

    >>> from genfed import Training
    >>> Training(epochs=2, learning_rate=0.05).batch_size
    64
    """

    epochs: Annotated[int, Field(ge=0)] = 5
    """Passes over the client's examples."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples per step; a client with fewer examples uses all of them."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer: SGD, or Adam with PyTorch's default betas."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of SGD; Adam ignores it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty, added to the gradient."""
    augmentation: Augmentation = "none"
    """Augmentation of the training examples, real and generated, new in every epoch: "mixup" to "autoaugment" of
    images; "jitter", "scale" and "rotate" of series. Features and tables have none."""

    def declare(self, epochs: int | None = None) -> DeclaredTraining:
        """Returns the declaration of this training on a client's examples, for `epochs` (None: the setting's)."""
        return DeclaredTraining(self.epochs if epochs is None else epochs, self.batch_size)

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Returns a new optimizer of all parameters."""
        if self.optimizer == "adam":
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
    """Trains a network in place by cross-entropy. Returns the mean loss of the last epoch.

    >>> import torch
    >>> from genfed import Data, Server, Task, Training, train
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> task, rng = Task("image", (1, 2, 2), ("cat", "dog")), torch.Generator()
    >>> server = Server(task, (), 0, rng, 0, torch.device("cpu"), "float32", lambda name, rng: network)
    >>> loss = train(network, server, Training(epochs=1), data=Data(torch.randn(8, 1, 2, 2), torch.arange(8) % 2))
    >>> loss > 0
    True

    Args:
        network: The classifier.
        where: The client or server that trains it.
        training: The settings.
        data: The examples; y may also be soft targets [n, classes]. None: the client's examples; a server has none.
        epochs: The passes over the data; None: the setting's.
        penalty: A scalar that is added to each batch's mean loss; None: nothing.
        public: Whether the data are no examples of the client, so they need no differential privacy.
    """
    if data is None:
        assert isinstance(where, Client), "a server has no examples of its own"
        data = where.data
    loss = cross_entropy(network) if training.augmentation == "none" else augment(network, training.augmentation)
    objective = Objective(loss, training.new_optimizer(network.train()), penalty, network)
    return fit(
        [objective],
        data,
        epochs=training.epochs if epochs is None else epochs,
        batch_size=training.batch_size,
        rng=where.rng,
        precision=where.precision,
        privacy=None if public or isinstance(where, Server) else where.privacy,
    )
