"""FedGH. Yi, Wang, Liu, Shi, Yu, FedGH: Heterogeneous Federated Learning with Generalized Global Header, ACM MM 2023,
arXiv 2303.13137, Algorithm 1: the server trains one header for all clients on their mean representations.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.methods.bases.representation import RepresentationMethod, RepresentationNetwork, sum_by_class
from genfed.training.classifier import Training, train
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.upload_checks import check_form
from genfed.training.weights import weights_of


@dataclass(frozen=True)
class FedGHHeader:
    """The global header."""

    header: Weights


@dataclass(frozen=True)
class FedGHExtractor:
    """The extractor of a client, which never leaves it."""

    extractor: Weights


@dataclass(frozen=True)
class Representations:
    """The mean representations of a client."""

    means: Tensor
    """Mean representation of each class [classes, dimension]; 0 for a class without examples."""
    present: Tensor
    """Whether the client has examples of each class, bool [classes]."""


EXTRACTOR = Slot("extractor", FedGHExtractor)


@settings
class FedGH(RepresentationMethod[FedGHHeader]):
    """Each client has its own extractor; all share one header, which the server trains on mean representations.

    1. train, `rounds` rounds. Server → client: the header. Client: trains its own extractor, which never leaves it,
       together with the header. Client → server: the mean representation of each of its classes. The server trains the
       header on all of these (`header_training`).

    >>> [phase.name for phase in FedGH(rounds=10).phases()]
    ['train']
    """

    state = FedGHHeader
    classifier_reads_storage = True
    unprotected_upload = "the mean representation of each class"
    unaugmented = ("header_training",)  # its examples are representations

    header_training: Training = Field(default_factory=lambda: Training(epochs=1, batch_size=1, learning_rate=0.01))
    """Training of the header on the server in a round, on one representation per client and class."""

    def init(self, server: Server) -> FedGHHeader:
        networks = self.networks(server)
        return FedGHHeader(weights_of(networks[server.architectures[0]].header))  # all have the same header at first

    def phases(self) -> list[Phase[FedGHHeader]]:
        every = {"means": Collect(), "present": Collect()}
        return [
            Phase(
                "train",
                self.keep,
                self.send_classifier,
                self.train,
                aggregate=every,
                rounds=self.rounds,
                slots=(EXTRACTOR,),
                check=self.check,
            ),
        ]

    def send_classifier(self, server: Server, state: FedGHHeader, info: ClientInfo) -> FedGHHeader:
        return state

    def train(self, client: Client, sent: FedGHHeader) -> Reply[Representations]:
        """Trains the client's extractor together with the global header; the extractor is stored on the client."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training)
        client.storage.put(EXTRACTOR, FedGHExtractor(weights_of(network.extractor)))
        statistics = sum_by_class(network, client)
        return Reply(Representations(statistics.means(), statistics.counts > 0), metrics={"loss": loss})

    def check(self, server: Server, info: ClientInfo, upload: Representations) -> None:
        """Refuses an upload on which the header cannot be trained.

        Raises:
            GenfedError: the shapes or types are not those of representations, or no class is present.
        """
        classes = len(server.task.classes)
        check_form("means", upload.means, torch.float32, (classes, self.dimension))
        check_form("present", upload.present, torch.bool, (classes,))
        if not bool(upload.present.any()):
            raise GenfedError("present has no class; a client has examples of one or more")

    def keep(self, server: Server, state: FedGHHeader, reduced: Reduced) -> FedGHHeader:
        """Trains the header on all pairs of representation and class."""
        present = torch.stack(list(reduced["present"].values()))
        x = torch.stack(list(reduced["means"].values()))[present]
        y = present.nonzero()[:, 1]
        header = self.network(server, server.architectures[0]).header
        header.load_state_dict(state.header)
        fit(
            [Objective(cross_entropy(header), self.header_training.new_optimizer(header))],
            Data(x, y).to(server.device),
            epochs=self.header_training.epochs,
            batch_size=self.header_training.batch_size,
            rng=server.rng,
            precision=server.precision,
        )
        return FedGHHeader(weights_of(header))

    def classifier(self, client: Client, sent: FedGHHeader) -> RepresentationNetwork:
        network = self.network(client, client.info.architecture)
        if (stored := client.storage.get(EXTRACTOR)) is not None:
            network.extractor.load_state_dict(stored.extractor)
        network.header.load_state_dict(sent.header)
        return network
