"""LG-FedAvg. Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, Think Locally, Act Globally: Federated
Learning with Local and Global Representations, arXiv 2001.01523, in the form of GeFL (arXiv 2412.18460) for
heterogeneous clients: one part of the network is averaged over all clients, the rest within an architecture.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.training.classifier import Training
from genfed.training.split_network import SplitNetwork, initial_parts, load_parts, train_parts


@dataclass(frozen=True)
class LGFedAvgState:
    """The server's state: the shared extractor, and the headers by architecture."""

    extractor: Weights
    headers: dict[str, Weights]


@settings
class LGFedAvg(Method[LGFedAvgState]):
    """FedAvg of the extractor over all clients, and of the header within an architecture.

    1. train, `rounds` rounds. Server → client: the extractor, and the header of its architecture. Client: trains both
       on its examples. Client → server: both. The server averages extractors over all clients and headers within an
       architecture, weighted by examples.

    >>> [phase.name for phase in LGFedAvg(rounds=10).phases()]
    ['train']
    """

    # differs from the paper: its first layers stay local and the last ones are shared. Heterogeneous clients have the
    # first block in common, so GeFL does it the other way round.

    state = LGFedAvgState

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of local training and averaging (T)."""
    training: Training = Field(default_factory=Training)
    """Local training on a client in a round."""

    def init(self, server: Server) -> LGFedAvgState:
        return LGFedAvgState(*initial_parts(server))

    def phases(self) -> list[Phase[LGFedAvgState]]:
        means = {"extractor": Mean(), "header": Mean(by="architecture")}
        return [Phase("train", self.keep, self.send_classifier, self.train, aggregate=means, rounds=self.rounds)]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def send_classifier(self, server: Server, state: LGFedAvgState, info: ClientInfo) -> SplitNetwork:
        return SplitNetwork(state.extractor, state.headers[info.architecture])

    def train(self, client: Client, sent: SplitNetwork) -> Reply[SplitNetwork]:
        """Trains both parts on the client's examples."""
        return train_parts(client, sent, self.training)

    def keep(self, server: Server, state: LGFedAvgState, reduced: Reduced) -> LGFedAvgState:
        """Takes the mean extractor over all clients, and the mean headers within an architecture."""
        return LGFedAvgState(reduced["extractor"], state.headers | reduced["header"])

    def classifier(self, client: Client, sent: SplitNetwork) -> nn.Module:
        return load_parts(client, sent)
