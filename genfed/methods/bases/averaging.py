"""Base of FedAvg and methods like it: classifiers are averaged among the clients that share an architecture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.training.classifier import Training, train
from genfed.training.weights import Model, build_classifier, initial_classifiers, weights_of


@dataclass(frozen=True)
class Classifiers:
    """The global weights of each architecture."""

    classifiers: dict[str, Weights]


@settings
class FederatedAveraging(Method[Classifiers]):
    """Base of methods with rounds of local training and of averaging within an architecture, weighted by examples."""

    state = Classifiers

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of local training and averaging (T)."""
    training: Training = Field(default_factory=Training)
    """Local training on a client in a round."""

    def penalty(self, network: nn.Module, sent: Weights) -> Callable[[], Tensor] | None:
        """Returns what local training adds to its loss. None: nothing."""
        return None

    def init(self, server: Server) -> Classifiers:
        return Classifiers(initial_classifiers(server))

    def phases(self) -> list[Phase[Classifiers]]:
        mean = {"classifier": Mean(by="architecture")}
        return [Phase("train", self.keep, self.send_classifier, self.train, aggregate=mean, rounds=self.rounds)]

    def private_trainings(self) -> Mapping[str, Sequence[DeclaredTraining]] | None:
        return {"train": [self.training.declare()]}

    def send_classifier(self, server: Server, state: Classifiers, info: ClientInfo) -> Model:
        return Model(state.classifiers[info.architecture])

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        """Trains the global classifier on the client's examples."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training, penalty=self.penalty(network, sent.classifier))
        return Reply(Model(weights_of(network)), weight=len(client.data), metrics={"loss": loss})

    def keep(self, server: Server, state: Classifiers, reduced: Reduced) -> Classifiers:
        """Takes the means as the global weights. An architecture without an upload keeps its weights."""
        return Classifiers(state.classifiers | reduced["classifier"])

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, client.info.architecture, sent.classifier)
