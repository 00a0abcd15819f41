"""Training of students on a synthetic dataset and the predictions of teachers: the three kinds of supervision of
FedLMG. Yang, Su, Li, Xue, arXiv 2311.08870, ICML 2025.
"""

from collections.abc import Mapping
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
teacher of the client that the image represents."""


def train_student(
    student: nn.Module,
    server: Server,
    synthetic: SyntheticDataset,
    teachers: Mapping[int, nn.Module],
    supervision: Supervision,
    training: Training,
) -> float:
    """Trains the student in place on the set for `training.epochs`. An empty set changes nothing.

    >>> import torch
    >>> from genfed import SampleRequest, Server, SyntheticDataset, Task, Training, train_student
    >>> from genfed.training.synthetic_dataset import SyntheticBatch
    >>> task, rng = Task("image", (1, 2, 2), ("cat", "dog")), torch.Generator().manual_seed(0)
    >>> def new_network(architecture, rng):
    ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> server = Server(task, (), 0, rng, 0, torch.device("cpu"), "float32", new_network)
    >>> labels, clients = torch.tensor([0, 1, 0, 1]), torch.tensor([3, 3, 5, 5])
    >>> images = torch.randint(256, (4, 1, 2, 2), dtype=torch.uint8)
    >>> batch = SyntheticBatch(images, SampleRequest(labels, clients, labels), seeds=torch.arange(4))
    >>> synthetic = SyntheticDataset().append(server, batch)
    >>> student = new_network("linear", rng)
    >>> teachers = {3: new_network("linear", rng), 5: new_network("linear", rng)}
    >>> train_student(student, server, synthetic, teachers, "specific_teacher", Training(epochs=1)) > 0
    True

    Args:
        student: any classifier of the server's task.
        server: the server.
        synthetic: images, with their labels and clients.
        teachers: classifiers, by client.
        supervision: what the student learns from an image.
        training: settings of the training.

    Returns:
        The mean loss of the last epoch.

    Raises:
        GenfedError: there are no teachers, or the teacher of an image is missing.
    """
    if not len(synthetic):
        return 0.0
    return train(student, server, training, data=teaching_set(server, synthetic, teachers, supervision))


def teaching_set(
    server: Server, synthetic: SyntheticDataset, teachers: Mapping[int, nn.Module], supervision: Supervision
) -> Data:
    """Returns all images of a set that is not empty, with soft targets, on the server's device. Training on them
    minimizes CE(student, y), plus CE(student, p) for teachers with probabilities p (temperature 1). The result is the
    same for all students.

    Raises:
        GenfedError: there are no teachers, or the teacher of an image is missing.
    """
    images, start = torch.empty(len(synthetic), *server.task.shape, dtype=torch.uint8), 0
    targets: list[Tensor] = []
    for batch in synthetic.chunks(server):
        images[start : start + len(batch)] = batch.images
        targets.append(soft_targets(batch, server, teachers, supervision))
        start += len(batch)
    return Data(images, torch.cat(targets)).to(server.device)


def soft_targets(
    batch: SyntheticBatch, server: Server, teachers: Mapping[int, nn.Module], supervision: Supervision
) -> Tensor:
    """Returns targets on the CPU: classes [n], or one-hot classes plus probabilities [n, classes]. Cross-entropy is
    linear in its target, so the loss for this sum (of weight 2) is the sum of both losses, with MixUp too.
    """
    labels = batch.request.labels
    if supervision == "fine_tuning":
        return labels.clone()  # a view would keep the shard's images in memory
    if not teachers:
        raise GenfedError(f"{supervision}: there is no classifier to learn from")
    one_hot = F.one_hot(labels, len(server.task.classes)).float()

    def probabilities(teacher: nn.Module, images: Tensor) -> Tensor:
        return predict(teacher, images.to(server.device), server.precision).softmax(1).cpu()

    if supervision == "multi_teacher":
        return one_hot + torch.stack([probabilities(teacher, batch.images) for teacher in teachers.values()]).mean(0)
    for client in sorted(set(batch.request.clients.tolist())):
        if client not in teachers:
            raise GenfedError(f"{supervision}: images represent client {client}, whose classifier is missing")
        own = batch.request.clients == client
        one_hot[own] += probabilities(teachers[client], batch.images[own])
    return one_hot


def consensus_rows(
    server: Server, synthetic: SyntheticDataset, teachers: Mapping[int, nn.Module], share: float
) -> Tensor:
    """Returns the sorted rows [m] of the images on which the *other* clients' teachers agree most: per client and class
    the top `share` (rounded up) by their summed probability of the label. An image that fools its own teacher seldom
    fools the others. With share 1, or fewer than two teachers: all rows.
    """
    if share == 1 or len(teachers) < 2:
        return torch.arange(len(synthetic))
    votes, cells = [], []
    for batch in synthetic.chunks(server):
        labels, clients = batch.request.labels, batch.request.clients
        total = torch.zeros(len(batch))
        for client, teacher in teachers.items():
            scores = predict(teacher, batch.images.to(server.device), server.precision)
            total += scores.softmax(1).cpu().gather(1, labels[:, None])[:, 0] * (clients != client)
        votes.append(total)
        cells.append(torch.stack([clients, labels], 1))
    vote, cell = torch.cat(votes), torch.unique(torch.cat(cells), dim=0, return_inverse=True)[1]
    chosen = []
    for number in range(int(cell.max()) + 1):
        own = (cell == number).nonzero()[:, 0]
        chosen.append(own[vote[own].argsort(descending=True, stable=True)[: round_up_share(share, len(own))]])
    return torch.cat(chosen).sort().values
