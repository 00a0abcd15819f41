"""What a student learns from a synthetic set and the classifiers that it was made with: the three aggregations of
FedLMG. Yang, Su, Li, Xue, arXiv 2311.08870, ICML 2025.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.schedule import round_up_share
from genfed.core.task import Data
from genfed.training.classifier import Training, train
from genfed.training.evaluation import predict
from genfed.training.synthetic_dataset import SyntheticBatch, SyntheticDataset

Supervision = Literal["fine_tuning", "multi_teacher", "specific_teacher"]
"""FT: labels alone. MD: labels, and the mean of all teachers' probabilities. SD: labels, and the probabilities of the
teacher of the client that the image stands for."""
Targets = Callable[[SyntheticBatch], Tensor]
"""Images → what a student learns of each: classes [n], or what cross-entropy is taken to, [n, classes]."""


def train_student(
    student: nn.Module,
    server: Server,
    synthetic: SyntheticDataset,
    teachers: Mapping[int, nn.Module],
    how: Supervision,
    training: Training,
) -> float:
    """Trains the student in place on the `lesson` of the set for `training.epochs`. Returns the mean loss of the last
    epoch; an empty set changes nothing.

    Raises:
        GenfedError: there are no teachers, or an image's own is not among them.
    """
    if not len(synthetic):
        return 0.0
    return train(student, server, training, data=teaching_set(server, synthetic, teachers, how))


def teaching_set(
    server: Server, synthetic: SyntheticDataset, teachers: Mapping[int, nn.Module], how: Supervision
) -> Data:
    """All images of a set that has some, and what students learn of each, on the server's device: training on it is by
    CE(student, y), plus CE(student, p) where teachers, by client, answer with probabilities p (temperature 1). Students
    and teachers are of any architecture, and it is the same for all students: the set is read once.

    Raises:
        GenfedError: there are no teachers, or an image's own is not among them.
    """
    images, start = torch.empty(len(synthetic), *server.task.shape, dtype=torch.uint8), 0
    targets: list[Tensor] = []
    for made in synthetic.chunks(server):
        images[start : start + len(made)] = made.images
        targets.append(soft_targets(made, server, teachers, how))
        start += len(made)
    return Data(images, torch.cat(targets)).to(server.device)


def soft_targets(made: SyntheticBatch, server: Server, teachers: Mapping[int, nn.Module], how: Supervision) -> Tensor:
    """On the CPU: classes [n], or one-hot classes plus probabilities [n, classes]. Cross-entropy is linear in its
    target, so that to the sum (of weight 2) is the sum of both losses; under MixUp too.
    """
    labels = made.request.labels
    if how == "fine_tuning":
        return labels.clone()  # a view would hold the shard's images
    if not teachers:
        raise GenfedError(f"{how}: there is no classifier to learn from")
    one_hot = F.one_hot(labels, len(server.task.classes)).float()

    def answers(teacher: nn.Module, images: Tensor) -> Tensor:
        return predict(teacher, images.to(server.device), server.precision).softmax(1).cpu()

    if how == "multi_teacher":
        return one_hot + torch.stack([answers(teacher, made.images) for teacher in teachers.values()]).mean(0)
    for client in sorted(set(made.request.clients.tolist())):
        if client not in teachers:
            raise GenfedError(f"{how}: images stand for client {client}, whose classifier is not there")
        own = made.request.clients == client
        one_hot[own] += answers(teachers[client], made.images[own])
    return one_hot


def consensus_rows(
    server: Server, synthetic: SyntheticDataset, teachers: Mapping[int, nn.Module], share: float
) -> Tensor:
    """Rows [m], sorted: of the images of each client and class the share (rounded up) that the teachers of the *other*
    clients, asked together, are surest are of it. An image that has fooled its own teacher seldom fools these. All
    where the share is 1 or there are no others.
    """
    if share == 1 or len(teachers) < 2:
        return torch.arange(len(synthetic))
    votes, cells = [], []
    for made in synthetic.chunks(server):
        labels, clients = made.request.labels, made.request.clients
        total = torch.zeros(len(made))
        for client, teacher in teachers.items():
            scores = predict(teacher, made.images.to(server.device), server.precision)
            total += scores.softmax(1).cpu().gather(1, labels[:, None])[:, 0] * (clients != client)
        votes.append(total)
        cells.append(torch.stack([clients, labels], 1))
    vote, cell = torch.cat(votes), torch.unique(torch.cat(cells), dim=0, return_inverse=True)[1]
    chosen = []
    for number in range(int(cell.max()) + 1):
        own = (cell == number).nonzero()[:, 0]
        chosen.append(own[vote[own].argsort(descending=True, stable=True)[: round_up_share(share, len(own))]])
    return torch.cat(chosen).sort().values
