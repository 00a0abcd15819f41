"""FML. Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu, Federated Mutual Learning, arXiv 2006.16765: every client
has a model of its own and a copy of a small "meme" model, which learn from each other; only the meme is exchanged.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import Method, TrainedNetwork
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.local_training import MODEL, load_own_classifier
from genfed.training.classifier import Training
from genfed.training.distillation import divergence, train_pair
from genfed.training.weights import Model, build_classifier, weights_of


@dataclass(frozen=True)
class Meme:
    """The shared model: the server's state, and what is sent and uploaded."""

    meme: Weights


@settings
class FML(Method[Meme]):
    """Personal models of any architecture that learn from one another through a small shared model, the meme.

    1. train, `rounds` rounds. Server → client: the meme. Client: trains its personal model, which never leaves it, and
       the meme together; each learns from the labels and from the other. Client → server: the meme. The server averages
       the memes, weighted by examples.

    >>> [phase.name for phase in FML(rounds=10, alpha=0.7).phases()]
    ['train']
    """

    state = Meme
    classifier_reads_storage = True
    unaugmented = ("training",)  # two networks learn from one batch

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of mutual learning and averaging."""
    training: Training = Field(default_factory=Training)
    """Local training of both models in a round."""
    meme: str = "mlp-small"
    """Architecture of the shared model, the same at all clients."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the labels in the personal model's loss (α); the meme has the rest. 1: local training."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the labels in the meme's loss (β); the personal model has the rest."""

    def init(self, server: Server) -> Meme:
        return Meme(weights_of(server.new_network(self.meme, server.common("meme"))))

    def phases(self) -> list[Phase[Meme]]:
        mean = {"meme": Mean()}
        return [
            Phase("train", self.keep, self.send_meme, self.train, aggregate=mean, rounds=self.rounds, slots=(MODEL,))
        ]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def trained_networks(self, server: Server) -> list[TrainedNetwork]:
        return [
            TrainedNetwork(
                f"architecture {self.meme}", server.new_network(self.meme, server.common("meme")), server.task
            )
        ]

    def send_meme(self, server: Server, state: Meme, info: ClientInfo) -> Meme:
        """Returns the meme, the same for all clients."""
        return state

    def train(self, client: Client, sent: Meme) -> Reply[Meme]:
        """Trains personal model and meme together; the personal model is stored on the client."""
        personal = load_own_classifier(client)
        # Not from client.rng, so that the personal model draws the same numbers as in local training.
        meme = build_classifier(client, self.meme, sent.meme, client.common("meme"))
        loss = train_pair(personal, meme, client, self.training, self.loss)
        client.storage.put(MODEL, Model(weights_of(personal)))
        return Reply(Meme(weights_of(meme)), weight=len(client.data), metrics={"loss": loss})

    def loss(self, personal: Tensor, meme: Tensor, y: Tensor) -> Tensor:
        """Returns α·CE + (1 − α)·KL(p_meme ‖ p_local) + β·CE + (1 − β)·KL(p_local ‖ p_meme), one per example [n]."""
        of_personal, of_meme = (F.cross_entropy(logits, y, reduction="none") for logits in (personal, meme))
        return (
            self.alpha * of_personal
            + (1 - self.alpha) * divergence(personal, meme)
            + self.beta * of_meme
            + (1 - self.beta) * divergence(meme, personal)
        )

    def keep(self, server: Server, state: Meme, reduced: Reduced) -> Meme:
        """Takes the mean over all clients, weighted by examples."""
        return Meme(reduced["meme"])

    def send_classifier(self, server: Server, state: Meme, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return load_own_classifier(client)
