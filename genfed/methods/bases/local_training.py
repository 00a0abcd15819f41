"""Training without any exchange: the shape that local-only training and the centralised ceiling share."""

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
"""A classifier that never leaves its client."""


@settings
class LocalTraining(Method[Empty]):
    """Every client trains its own model on its own data; nothing is sent either way."""

    state = Empty

    rounds: Annotated[int, Field(ge=0)] = 50
    """Times that a client trains for `training.epochs`; it goes on from where it was."""
    training: Training = Field(default_factory=Training)
    """Local training in a round."""

    def init(self, server: Server) -> Empty:
        return Empty()

    def phases(self) -> list[Phase[Empty]]:
        return [Phase("train", self.keep, self.send_classifier, self.train, rounds=self.rounds, slots=(MODEL,))]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def send_classifier(self, server: Server, state: Empty, info: ClientInfo) -> Empty:
        return Empty()

    def train(self, client: Client, sent: Empty) -> Reply[Empty]:
        """One round; the model stays in the client's slot."""
        network = self.classifier(client, sent)
        loss = train(network, client, self.training)
        client.storage.put(MODEL, Model(weights_of(network)))
        return Reply(Empty(), metrics={"loss": loss})

    def keep(self, server: Server, state: Empty, reduced: Reduced) -> Empty:
        """Nothing came, nothing changes."""
        return state

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return load_own_classifier(client)


def load_own_classifier(client: Client) -> nn.Module:
    """The model that the client keeps in `MODEL`; before its first round, one with the initial weights."""
    kept = client.storage.get(MODEL)
    weights = initial_weights(client) if kept is None else kept.classifier
    return build_classifier(client, client.info.architecture, weights)
