"""DENSE. Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu, DENSE: Data-Free One-Shot Federated Learning, NeurIPS 2022,
arXiv 2112.12371, Algorithm 1: clients upload their models once; the server trains a generator against the ensemble of
them and distils the ensemble, on generated images, into a global model.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.settings import settings
from genfed.methods.bases.data_free import DataFreeDistillation, disagreement


@settings
class DENSE(DataFreeDistillation):
    """Data-free distillation of the clients' models, on images that a generator learns to make on the server.

    1. train, once. Client → server: its model, trained from the initial weights on its examples.
    2. distil, `rounds` rounds, on the server. The generator takes `generator_steps` steps on one batch of noise:
       towards images that the ensemble of all models assigns to their classes, with the BatchNorm statistics of the
       models, near where ensemble and students disagree. The students learn the ensemble's answers for the newest
       `replay_batches` batches (1: the newest batch alone, as in Algorithm 1).

    >>> [phase.name for phase in DENSE(rounds=10, boundary=0.0).phases()]
    ['train', 'distil']
    """

    stability: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the BatchNorm loss (λ₁)."""
    boundary: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the boundary support loss (λ₂)."""

    def objective(self, logits: Tensor, gap: Tensor, answers: Sequence[Tensor], y: Tensor) -> Tensor:
        supports = [boundary_support(logits, answer) for answer in answers]
        similarity = F.cross_entropy(logits, y, reduction="none")
        support = torch.stack(supports).mean(0)  # −L_div; the mean where there are several students
        return similarity + self.stability * gap - self.boundary * support


def boundary_support(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns ω · KL(teacher ‖ student), one per example [n]; ω is 1 where they choose different classes, else 0."""
    return (teacher.argmax(1) != student.argmax(1)) * disagreement(teacher, student)
