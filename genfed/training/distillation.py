"""Distillation: what one network learns from the predictions of others."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.client import Client
from genfed.training.classifier import Training
from genfed.training.fit import Objective, fit

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits of the one [n, classes], of the other, y [n]) → the sum of both networks' losses per example [n]."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)) per example [n], of logits [n, classes]; T² keeps gradients
    of one size (Hinton, Vinyals, Dean, arXiv 1503.02531). No gradient flows to the teacher.
    """
    ours, theirs = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher.detach()))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)


def train_pair(one: nn.Module, other: nn.Module, client: Client, training: Training, loss: PairLoss) -> float:
    """Trains both networks in place on the client's examples, each step from predictions made before it. Returns the
    mean loss of the last epoch.
    """

    def of_both(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return loss(one(x).float(), other(x).float(), y)

    pair = nn.ModuleList([one, other]).train()
    return fit(
        [Objective(of_both, training.new_optimizer(pair), network=pair)],
        client.data,
        epochs=training.epochs,
        batch_size=training.batch_size,
        rng=client.rng,
        precision=client.precision,
        privacy=client.privacy,
    )
