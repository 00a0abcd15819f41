"""The ensemble of the clients' own classifiers, uploaded once: the mean of their probabilities. A synthetic dataset is
worth its cost if it gives more than this. The cost of a prediction grows with the number of clients.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.classifier_upload import train_alone, upload_classifier
from genfed.training.classifier import Training
from genfed.training.weights import Model, build_classifier


@dataclass(frozen=True)
class UploadedClassifiers:
    """Classifiers and their architectures, by client."""

    models: dict[int, Weights]
    architectures: dict[int, str]


class ProbabilityMean(nn.Module):
    """x [n, *shape] → the logarithm of the mean of the models' probabilities [n, classes]."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.stack([model(x).float().log_softmax(1) for model in self.models])
        return scores.logsumexp(0) - math.log(len(self.models))  # finite also where every probability is 0


@settings
class Ensemble(Method[UploadedClassifiers]):
    """The mean prediction of all clients' own classifiers.

    1. train, once. Client → server: its classifier, trained from the initial weights on its examples.

    Then every client is sent all classifiers, and predicts with the mean of their probabilities.

    >>> [phase.name for phase in Ensemble().phases()]
    ['train']
    """

    state = UploadedClassifiers
    needs_architectures = True  # every client runs all others

    training: Training = Field(default_factory=Training)
    """Local training before the upload."""

    def init(self, server: Server) -> UploadedClassifiers:
        return UploadedClassifiers({}, {})

    def phases(self) -> list[Phase[UploadedClassifiers]]:
        return [upload_classifier(self.keep, self.train, changes_classifier=True)]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train(self, client: Client, sent: Empty) -> Reply[Model]:
        """Trains the client's own classifier."""
        weights, loss = train_alone(client, self.training)
        return Reply(Model(weights), metrics={"loss": loss})

    def keep(self, server: Server, state: UploadedClassifiers, reduced: Reduced) -> UploadedClassifiers:
        """Takes the uploaded classifiers."""
        models = reduced["classifier"]
        return UploadedClassifiers(models, {info.id: info.architecture for info in reduced.clients})

    def send_classifier(self, server: Server, state: UploadedClassifiers, info: ClientInfo) -> UploadedClassifiers:
        return state

    def classifier(self, client: Client, sent: UploadedClassifiers) -> nn.Module:
        return ProbabilityMean([build_classifier(client, sent.architectures[i], w) for i, w in sent.models.items()])
