"""FedGH. Yi, Wang, Liu, Shi, Yu, FedGH: Heterogeneous Federated Learning with Generalized Global Header, ACM MM 2023,
arXiv 2303.13137, Algorithm 1: the server trains one header for all on the clients' mean representations.
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
    """A client's extractor, which never leaves it."""

    extractor: Weights


@dataclass(frozen=True)
class Representations:
    """A client's mean representation of each class."""

    means: Tensor
    """[classes, dimension]; 0 for a class that it lacks."""
    present: Tensor
    """Which classes it has, bool [classes]."""


EXTRACTOR = Slot("extractor", FedGHExtractor)


@settings
class FedGH(RepresentationMethod[FedGHHeader]):
    """Each client has its own extractor, and all have one header, which the server trains."""

    state = FedGHHeader
    unprotected_upload = "the mean representation of each class"
    unaugmented = ("header_training",)  # of representations

    header_training: Training = Field(default_factory=lambda: Training(epochs=1, batch_size=1, learning_rate=0.01))
    """How the server trains the header in a round, on one representation per client and class."""

    def init(self, server: Server) -> FedGHHeader:
        networks = self.networks(server)
        return FedGHHeader(weights_of(networks[server.architectures[0]].header))  # all begin alike

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
        """One round on a client: its extractor under the global header, both trained; the extractor stays there."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training)
        client.storage.put(EXTRACTOR, FedGHExtractor(weights_of(network.extractor)))
        of_class = sum_by_class(network, client)
        return Reply(Representations(of_class.means(), of_class.counts > 0), metrics={"loss": loss})

    def check(self, server: Server, info: ClientInfo, upload: Representations) -> None:
        """Refuses what the header cannot be trained on.

        Raises:
            GenfedError: other shapes or types than representations have, or no class that is present.
        """
        classes = len(server.task.classes)
        check_form("means", upload.means, torch.float32, (classes, self.dimension))
        check_form("present", upload.present, torch.bool, (classes,))
        if not bool(upload.present.any()):
            raise GenfedError("present has no class; a client has examples of one or more")

    def keep(self, server: Server, state: FedGHHeader, reduced: Reduced) -> FedGHHeader:
        """Trains the header on all pairs of representation and class, and returns it."""
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
        if (kept := client.storage.get(EXTRACTOR)) is not None:
            network.extractor.load_state_dict(kept.extractor)
        network.header.load_state_dict(sent.header)
        return network
