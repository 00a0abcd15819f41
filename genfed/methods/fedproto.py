"""FedProto. Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, FedProto: Federated Prototype Learning across Heterogeneous
Clients, AAAI 2022, arXiv 2105.00243, Algorithm 1: clients exchange the mean representation of each class alone.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Sum
from genfed.core.client import Client, Server
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.methods.bases.local_training import MODEL
from genfed.methods.bases.representation import (
    ClassStatistics,
    RepresentationMethod,
    RepresentationNetwork,
    sum_by_class,
)
from genfed.training.weights import Model, weights_of


@dataclass(frozen=True)
class Prototypes:
    """The global prototypes."""

    prototypes: Tensor
    """[classes, dimension]; 0 where there is none yet."""
    known: Tensor
    """Which classes have one, bool [classes]."""

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        """Mean squared difference of representations z [n, dimension] to the prototypes of their classes y [n], [n];
        0 for a class that has none.
        """
        return (z - self.prototypes[y]).square().mean(1) * self.known[y]


@settings
class FedProto(RepresentationMethod[Prototypes]):
    """Each client trains its own model, and holds its representations near the prototypes of all clients."""

    state = Prototypes
    unprotected_upload = "the mean representation of each class"
    unaugmented = ("training",)  # its loss looks at single examples and their classes

    prototype_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance to the prototypes (λ); 0 is training alone."""

    def init(self, server: Server) -> Prototypes:
        self.networks(server)  # refuses what has no place for the layer
        classes = len(server.task.classes)
        return Prototypes(torch.zeros(classes, self.dimension), torch.zeros(classes, dtype=torch.bool))

    def phases(self) -> list[Phase[Prototypes]]:
        sums = {"sums": Sum(), "counts": Sum()}
        return [
            Phase("train", self.keep, self.send, self.train, aggregate=sums, rounds=self.rounds, slots=(MODEL,)),
        ]

    def send(self, server: Server, state: Prototypes, info: ClientInfo) -> Prototypes:
        """The prototypes of all classes."""
        return state

    def train(self, client: Client, sent: Prototypes) -> Reply[ClassStatistics]:
        """One round on a client; its model stays there."""
        network = self.classifier(client, Empty())
        prototypes = Prototypes(sent.prototypes.to(client.device), sent.known.to(client.device))

        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:  # Eq. 7
            z = network.extractor(x)
            # differs from the paper: there the client's class mean is compared; as in its code, each example is.
            apart = prototypes.distance(z.float(), y)
            return F.cross_entropy(network.header(z), y, reduction="none") + self.prototype_weight * apart

        mean = self.train_representation(network, client, loss)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(sum_by_class(network, client), metrics={"loss": mean})

    def keep(self, server: Server, state: Prototypes, reduced: Reduced) -> Prototypes:
        """Eq. 6: the mean of all examples of a class; a class of which nobody had one keeps its prototype."""
        # differs from the paper: Eq. 6 divides once more by the number of clients that have the class, which would
        # shrink the weighted mean towards 0.
        total = ClassStatistics(reduced["sums"], reduced["counts"])
        seen = total.counts > 0
        return Prototypes(torch.where(seen[:, None], total.means(), state.prototypes), state.known | seen)

    def send_classifier(self, server: Server, state: Prototypes, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> RepresentationNetwork:
        # differs from the paper: it takes the class of the nearest prototype; here the model's own header decides.
        network = self.network(client, client.info.architecture)
        if (kept := client.storage.get(MODEL)) is not None:
            network.load_state_dict(kept.classifier)
        return network
