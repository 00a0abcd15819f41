"""Distillation: learning from the predictions of other networks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.client import Client
from genfed.training.classifier import Training
from genfed.training.fit import Objective, fit

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Loss of two networks: (logits [n, classes] of each, y [n]) → the sum of both losses per example [n]."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns T²·KL(softmax(teacher / T) ‖ softmax(student / T)) per example [n], from logits [n, classes].

    T² keeps the size of gradients independent of T (Hinton, Vinyals, Dean, arXiv 1503.02531). The teacher gets no
    gradient.

    Args:
        student: The logits of the student.
        teacher: The logits of the teacher.
        temperature: T.
    """
    log_p, log_q = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher.detach()))
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


def train_pair(one: nn.Module, other: nn.Module, client: Client, training: Training, loss: PairLoss) -> float:
    """Trains two networks together in place on the client's examples. Returns the mean loss of the last epoch.

    Args:
        one: The first network.
        other: The second network.
        client: The client.
        training: The settings.
        loss: The sum of both networks' losses.
    """

    def pair_loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return loss(one(x).float(), other(x).float(), y)

    pair = nn.ModuleList([one, other]).train()
    return fit(
        [Objective(pair_loss, training.new_optimizer(pair), network=pair)],
        client.data,
        epochs=training.epochs,
        batch_size=training.batch_size,
        rng=client.rng,
        precision=client.precision,
        privacy=client.privacy,
    )
