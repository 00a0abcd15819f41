"""FedKD. Wu, Wu, Lyu, Huang, Xie, Communication-efficient federated learning via knowledge distillation, Nature
Communications 13:2032, 2022, arXiv 2108.13323: a large mentor at each client and a small shared mentee teach each
other, and the mentee's updates are sent as products of low rank.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import LARGEST_UPLOADED, ClientInfo
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.local_training import MODEL, load_own_classifier
from genfed.training.classifier import Training
from genfed.training.distillation import divergence, train_pair
from genfed.training.low_rank import (
    FactoredWeights,
    RebuiltMean,
    apply_update,
    check_factors,
    factorize,
    subtract_weights,
)
from genfed.training.weights import Model, build_classifier, weights_of

MENTEE = Slot("mentee", Model)
"""Slot of the mentee with which a client's last round began."""


@dataclass(frozen=True)
class FedKDState:
    """The server's state."""

    mentee: Weights
    update: FactoredWeights
    """The last update of the mentee."""
    holders: tuple[int, ...]
    """Clients that hold the mentee from before that update."""


@dataclass(frozen=True)
class FedKDSent:
    """What a client is sent: the last update if it holds the mentee from before it, or the whole mentee."""

    mentee: Weights | None
    last: FactoredWeights | None
    energy: float


@dataclass(frozen=True)
class FedKDUpdate:
    """The update of the mentee in a round."""

    update: FactoredWeights


@settings
class FedKD(Method[FedKDState]):
    """Personal mentors that learn from one another through a small shared mentee, whose updates are sent in low rank.

    1. train, `rounds` rounds. Server → client: the last update of the mentee, of low rank (the whole mentee for a
       client that missed the last round). Client: trains its mentor, which never leaves it, and the mentee together;
       each learns from the labels and from the other. Client → server: the mentee's update, of low rank. The server
       averages the updates, weighted by examples, reduces the rank of the mean and adds it to the mentee.

    >>> [phase.name for phase in FedKD(rounds=10).phases()]
    ['train']
    """

    # differs from the paper: no hidden states or attentions are distilled, since mentor and mentee may have any
    # architecture; and the mean is weighted by examples.

    state = FedKDState
    classifier_reads_storage = True
    unprotected_upload = "updates whose loss divides by a mean over the batch, which joins its examples"
    unaugmented = ("training",)  # two networks learn from one batch

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of mutual distillation and averaging."""
    training: Training = Field(default_factory=Training)
    """Local training of both models in a round."""
    mentee: str = "mlp-small"
    """Architecture of the shared model, the same at all clients."""
    energy_start: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Fraction of an update's squared singular values that is kept at the start (T_start)."""
    energy_end: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Fraction that is kept in the last round (T_end); linear in between. 1: all are kept."""

    def init(self, server: Server) -> FedKDState:
        mentee = weights_of(server.new_network(self.mentee, server.common("mentee")))
        return FedKDState(mentee, FactoredWeights({}, {}, {}), ())

    def phases(self) -> list[Phase[FedKDState]]:
        mean, slots = {"update": RebuiltMean()}, (MODEL, MENTEE)
        return [
            Phase(
                "train",
                self.keep,
                self.send,
                self.train,
                aggregate=mean,
                rounds=self.rounds,
                slots=slots,
                screen=self.screen,
                sends_alike=False,
            )
        ]

    def screen(self, server: Server, info: ClientInfo, upload: FedKDUpdate) -> None:
        """Refuses an update that is not one of the mentee, before its factors are multiplied.

        Raises:
            GenfedError: the products have other names, shapes or types, or could be beyond ±`LARGEST_UPLOADED`.
        """
        mentee = weights_of(server.new_network(self.mentee, server.common("mentee")))
        check_factors(upload.update, mentee, LARGEST_UPLOADED)

    def energy(self, server: Server) -> float:
        """Returns T(t) = T_start + (T_end − T_start)·t, with t the completed fraction of rounds after this one."""
        return self.energy_start + (self.energy_end - self.energy_start) * (server.round + 1) / self.rounds

    def send(self, server: Server, state: FedKDState, info: ClientInfo) -> FedKDSent:
        """Returns the update, or the whole mentee for a client that did not take part in the last round."""
        if info.id in state.holders:
            return FedKDSent(None, state.update, self.energy(server))
        return FedKDSent(state.mentee, None, self.energy(server))

    def train(self, client: Client, sent: FedKDSent) -> Reply[FedKDUpdate]:
        """Trains mentor and mentee together; the mentor is stored on the client."""
        before, mentor = receive_mentee(client, sent), load_own_classifier(client)
        mentee = build_classifier(client, self.mentee, before, client.common("mentee"))
        loss = train_pair(mentor, mentee, client, self.training, adaptive_loss)
        client.storage.put(MODEL, Model(weights_of(mentor)))
        client.storage.put(MENTEE, Model(before))
        update = factorize(subtract_weights(weights_of(mentee), before), sent.energy)
        return Reply(FedKDUpdate(update), weight=len(client.data), metrics={"loss": loss})

    def keep(self, server: Server, state: FedKDState, reduced: Reduced) -> FedKDState:
        """Reduces the rank of the mean update, and applies it as the clients will."""
        update = factorize(reduced["update"], self.energy(server))
        return FedKDState(apply_update(state.mentee, update), update, tuple(info.id for info in reduced.clients))

    def send_classifier(self, server: Server, state: FedKDState, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return load_own_classifier(client)


def adaptive_loss(mentor: Tensor, mentee: Tensor, y: Tensor) -> Tensor:
    """Returns CE + KL / (CE_mentor + CE_mentee), summed over both models [n]: a larger loss means less distillation."""
    tasks = F.cross_entropy(mentor, y, reduction="none") + F.cross_entropy(mentee, y, reduction="none")
    # differs from the published code: no gradient through the divisor, which would reward a larger task loss.
    divisor = tasks.detach().mean().clamp_min(1e-6)  # on a batch that is learned perfectly the losses are exactly 0
    return tasks + (divergence(mentor, mentee) + divergence(mentee, mentor)) / divisor


def receive_mentee(client: Client, sent: FedKDSent) -> Weights:
    """Returns the mentee with which this round begins."""
    if sent.last is None:
        assert sent.mentee is not None
        return sent.mentee
    held = client.storage.get(MENTEE)
    if held is None:  # the client fails in this round and is sent the whole mentee in the next
        raise GenfedError("the mentee that an update was sent for is not stored here any more")
    return apply_update(held.classifier, sent.last)
