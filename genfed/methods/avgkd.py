"""AvgKD. Afonin, Karimireddy, Towards Model Agnostic Federated Learning Using Knowledge Distillation, ICLR 2022,
arXiv 2110.15210, in the form of GeFL (arXiv 2412.18460): from round 2 on, clients learn from their labels and from the
predictions of the other architectures.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.phase import Phase, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.training.classifier import train
from genfed.training.evaluation import predict
from genfed.training.weights import Model, build_classifier, weights_of


@dataclass(frozen=True)
class AvgKDSent:
    """Weights of the client's architecture, and of the others by name. None: it is the first round."""

    classifier: Weights
    others: dict[str, Weights] | None


@settings
class AvgKD(FederatedAveraging):
    """FedAvg within an architecture, with targets that include the predictions of the other architectures.

    1. train, `rounds` rounds. Server → client: the weights of its architecture; from round 2 on, those of all others
       too. Client: trains on its examples, with targets softmax(onehot(y) + Σ_j softmax f_j(x)) over the other
       architectures j (in round 1: the labels). Client → server: the weights. The server averages them within an
       architecture, weighted by examples.

    >>> [phase.name for phase in AvgKD(rounds=10).phases()]
    ['train']
    """

    # differs from the paper: it averages no weights, and an agent learns from the mean of its labels and of what others
    # predict. GeFL averages weights within an architecture, and takes the softmax of the sum.

    needs_architectures = True  # every client runs all others

    def phases(self) -> list[Phase[Classifiers]]:
        (averaging,) = super().phases()
        return [replace(averaging, send=self.send_all, work=self.distill)]

    def send_all(self, server: Server, state: Classifiers, info: ClientInfo) -> AvgKDSent:
        """Returns the weights of every architecture. In the first round: of the client's own alone."""
        others = {a: weights for a, weights in state.classifiers.items() if a != info.architecture}
        return AvgKDSent(state.classifiers[info.architecture], others if server.round else None)

    def distill(self, client: Client, sent: AvgKDSent) -> Reply[Model]:
        """Trains on the client's examples and the predictions of the others; in the first round as FedAvg."""
        own = Model(sent.classifier)
        if sent.others is None:
            return self.train(client, own)
        data = Data(client.data.x, mix_targets(client, sent.others))  # once a round: the others do not change in it
        network = self.classifier(client, own)
        loss = train(network, client, self.training, data=data)
        return Reply(Model(weights_of(network)), weight=len(client.data), metrics={"loss": loss})


def mix_targets(client: Client, others: dict[str, Weights]) -> Tensor:
    """Returns softmax(onehot(y) + Σ_j softmax f_j(x)) [n, classes] over the other architectures j. Without others this
    is softmax(onehot(y)), smoothed labels, unlike in FedAvg.
    """
    total = F.one_hot(client.data.y, len(client.task.classes)).float()
    for architecture, weights in others.items():
        network = build_classifier(client, architecture, weights)
        total += torch.softmax(predict(network, client.data.x, client.precision), 1)
    return torch.softmax(total, 1)
