"""Heads that the server trains on features that it draws from a generator."""

import torch
from torch import Tensor, nn

from genfed.core.client import Server
from genfed.core.rng import seeded
from genfed.core.task import Data, Weights
from genfed.generators.generator import GeneratorNetwork
from genfed.training.classifier import Training
from genfed.training.fit import Loss, Objective, cross_entropy, fit
from genfed.training.weights import weights_of


def draw_features(server: Server, generator: GeneratorNetwork, prior: Tensor, count: int) -> Data:
    """Returns `count` features [count, d] of the generator, on the server's device; classes are as frequent as in
    `prior` [classes]. Repeated calls return the same.
    """
    rng = server.common("draws")
    y = torch.multinomial(prior.double().cpu(), count, replacement=True, generator=rng).to(server.device)
    return Data(generator.sample(y, rng).flatten(1), y)


def train_head(server: Server, head: nn.Module, draws: Data, training: Training, loss: Loss | None = None) -> Weights:
    """Trains a head on drawn features, and returns its state dict.

    Args:
        server: The server; repeated calls return the same.
        head: The head, from features [n, d] to logits [n, classes], with its initial weights.
        draws: The features.
        training: The settings.
        loss: The loss of each feature. None: cross-entropy.
    """
    objective = Objective(loss or cross_entropy(head), training.new_optimizer(head.train()), network=head)
    rng = server.common("head", "training")
    fit(
        [objective],
        draws,
        epochs=training.epochs,
        batch_size=training.batch_size,
        rng=rng,
        precision=server.precision,
    )
    return weights_of(head)


def new_layers(features: int, hidden: int, classes: int, rng: torch.Generator) -> nn.Module:
    """Returns a head with weights drawn from `rng`.

    Args:
        features: Number of features.
        hidden: Width of the hidden layer. 0: the head is linear.
        classes: Number of classes.
        rng: Source of the weights.
    """
    with seeded(rng):
        if not hidden:
            return nn.Linear(features, classes)
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))
