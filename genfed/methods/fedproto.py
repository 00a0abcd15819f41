"""FedProto. Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, FedProto: Federated Prototype Learning across Heterogeneous
Clients, AAAI 2022, arXiv 2105.00243, Algorithm 1: clients exchange only the mean representation of each class.
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
from genfed.training.upload_checks import check_counts, check_form, check_sizes
from genfed.training.weights import Model, weights_of


@dataclass(frozen=True)
class Prototypes:
    """The global prototypes."""

    prototypes: Tensor
    """Prototype of each class [classes, dimension]; 0 for a class that has none yet."""
    known: Tensor
    """Whether each class has a prototype, bool [classes]."""

    def distance(self, z: Tensor, y: Tensor) -> Tensor:
        """Returns the mean squared difference [n] of representations z [n, dimension] and the prototypes of their
        classes y [n]; 0 for a class without a prototype.
        """
        return (z - self.prototypes[y]).square().mean(1) * self.known[y]


@settings
class FedProto(RepresentationMethod[Prototypes]):
    """Each client trains its own model and holds its representations near the prototypes of all clients.

    1. train, `rounds` rounds. Server → client: the prototype of each class. Client: trains its own model, which never
       leaves it, by cross-entropy + λ · distance of representations to the prototypes. Client → server: the sum of its
       representations of each class, and their number. The server takes their means as the new prototypes.

    >>> [phase.name for phase in FedProto(rounds=10).phases()]
    ['train']
    """

    state = Prototypes
    classifier_reads_storage = True
    unprotected_upload = "the mean representation of each class"
    unaugmented = ("training",)  # its loss uses single examples and their classes

    prototype_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance to the prototypes (λ). 0: local training."""

    def init(self, server: Server) -> Prototypes:
        self.networks(server)  # refuses networks in which the layer cannot be replaced
        classes = len(server.task.classes)
        return Prototypes(torch.zeros(classes, self.dimension), torch.zeros(classes, dtype=torch.bool))

    def phases(self) -> list[Phase[Prototypes]]:
        sums = {"sums": Sum(), "counts": Sum()}
        return [
            Phase(
                "train", self.keep, self.send, self.train,
                aggregate=sums, rounds=self.rounds, slots=(MODEL,), screen=self.screen, by_class=True,
            ),
        ]  # fmt: skip

    def screen(self, server: Server, info: ClientInfo, upload: ClassStatistics) -> None:
        """Refuses counts that are not the client's, and means that no network has: they would decide all prototypes.

        Raises:
            GenfedError: the shapes or types are not those of sums and counts, the counts do not add up to the client's
                number of examples, or a mean is beyond a million.
        """
        check_form("sums", upload.sums, torch.float32, (len(server.task.classes), self.dimension))
        check_counts(server, info, upload.counts)
        check_sizes("sums", upload.sums / upload.counts.clamp(min=1)[:, None])

    def send(self, server: Server, state: Prototypes, info: ClientInfo) -> Prototypes:
        """Returns the prototypes of all classes."""
        return state

    def train(self, client: Client, sent: Prototypes) -> Reply[ClassStatistics]:
        """Trains the client's own model and stores it on the client."""
        network = self.classifier(client, Empty())
        prototypes = Prototypes(sent.prototypes.to(client.device), sent.known.to(client.device))

        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:  # Eq. 7
            z = network.extractor(x)
            # differs from the paper: it compares the mean of a class; here, as in its code, each example is compared.
            apart = prototypes.distance(z.float(), y)
            return F.cross_entropy(network.header(z), y, reduction="none") + self.prototype_weight * apart

        mean = self.train_representation(network, client, loss)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(sum_by_class(network, client), metrics={"loss": mean})

    def keep(self, server: Server, state: Prototypes, reduced: Reduced) -> Prototypes:
        """Takes the mean over all examples of each class (Eq. 6). A class without examples keeps its prototype."""
        # differs from the paper: Eq. 6 also divides by the number of clients that have the class, which shrinks the
        # weighted mean towards 0.
        total = ClassStatistics(reduced["sums"], reduced["counts"])
        seen = total.counts > 0
        return Prototypes(torch.where(seen[:, None], total.means(), state.prototypes), state.known | seen)

    def send_classifier(self, server: Server, state: Prototypes, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> RepresentationNetwork:
        # differs from the paper: it predicts the class of the nearest prototype; here the model's own header predicts.
        network = self.network(client, client.info.architecture)
        if (stored := client.storage.get(MODEL)) is not None:
            network.load_state_dict(stored.classifier)
        return network
