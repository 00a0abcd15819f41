"""Base of local-only and centralised training: nothing is exchanged."""

from typing import Annotated

from pydantic import Field
from torch import nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server, Slot
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.training.classifier import Training, train
from genfed.training.weights import Model, build_classifier, initial_weights, weights_of

MODEL = Slot("model", Model)
"""Slot of a classifier that never leaves its client."""


@settings
class LocalTraining(Method[Empty]):
    """Base of methods in which every client trains its own model on its own examples, and nothing is sent."""

    state = Empty
    reference = True
    classifier_reads_storage = True

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of `training.epochs`. A client's model goes on from round to round."""
    training: Training = Field(default_factory=Training)
    """Local training on a client in a round."""

    def init(self, server: Server) -> Empty:
        return Empty()

    def phases(self) -> list[Phase[Empty]]:
        return [Phase("train", self.keep, self.send_classifier, self.train, rounds=self.rounds, slots=(MODEL,))]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def send_classifier(self, server: Server, state: Empty, info: ClientInfo) -> Empty:
        return Empty()

    def train(self, client: Client, sent: Empty) -> Reply[Empty]:
        """Trains the client's own model and stores it on the client."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(Empty(), metrics={"loss": loss})

    def keep(self, server: Server, state: Empty, reduced: Reduced) -> Empty:
        """Returns the state as it is."""
        return state

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return load_own_classifier(client)


def load_own_classifier(client: Client) -> nn.Module:
    """Returns the model that the client stores in `MODEL`. Before its first round: one with the initial weights."""
    stored = client.storage.get(MODEL)
    weights = initial_weights(client) if stored is None else stored.classifier
    return build_classifier(client, client.info.architecture, weights)
