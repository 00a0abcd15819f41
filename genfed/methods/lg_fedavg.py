"""LG-FedAvg. Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, Think Locally, Act Globally: Federated
Learning with Local and Global Representations, arXiv 2001.01523, as GeFL (arXiv 2412.18460) has it for heterogeneous
clients: one part of the network is averaged over all, the rest within an architecture.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.privacy import Use
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.training.classifier import Training
from genfed.training.split_network import Network, initial_parts, load_parts, train_parts


@dataclass(frozen=True)
class State:
    """The shared extractor and the headers by architecture."""

    extractor: Weights
    headers: dict[str, Weights]


@settings
class LGFedAvg(Method[State]):
    """FedAvg of the extractor over all clients, and of the header within an architecture."""

    # differs from the paper: there the first layers stay local and the last ones are shared; heterogeneous clients have
    # their first block in common, so GeFL turns it round.

    state = State

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of local training and averaging (T)."""
    training: Training = Field(default_factory=Training)
    """Local training in a round."""

    def init(self, server: Server) -> State:
        return State(*initial_parts(server))

    def phases(self) -> list[Phase[State]]:
        means = {"extractor": Mean(), "header": Mean(by="architecture")}
        return [Phase("train", self.keep, self.send_classifier, self.train, aggregate=means, rounds=self.rounds)]

    def uses(self) -> dict[str, list[Use]]:
        return {"train": [self.training.use()]}

    def send_classifier(self, server: Server, state: State, info: ClientInfo) -> Network:
        return Network(state.extractor, state.headers[info.architecture])

    def train(self, client: Client, sent: Network) -> Reply[Network]:
        """One round on a client."""
        return train_parts(client, sent, self.training)

    def keep(self, server: Server, state: State, reduced: Reduced) -> State:
        """The extractor's mean over all clients, the headers' within each architecture."""
        return State(reduced["extractor"], state.headers | reduced["header"])

    def classifier(self, client: Client, sent: Network) -> nn.Module:
        return load_parts(client, sent)
