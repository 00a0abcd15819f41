"""FedKD. Wu, Wu, Lyu, Huang, Xie, Communication-efficient federated learning via knowledge distillation, Nature
Communications 13:2032, 2022, arXiv 2108.13323: a large mentor at each client and a small shared mentee teach each
other, and the mentee's updates travel as products of low rank.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.methods.bases.local_training import MODEL, load_own_classifier
from genfed.training.classifier import Training
from genfed.training.distillation import divergence, train_pair
from genfed.training.low_rank import FactoredWeights, RebuiltMean, factorize, rebuild
from genfed.training.weights import Model, load_weights, weights_of

MENTEE = Slot("mentee", Model)
"""The mentee that a client's last round began with."""


@dataclass(frozen=True)
class FedKDState:
    """The mentee, the update that led to it, and the clients that hold the mentee from before that update."""

    mentee: Weights
    update: FactoredWeights
    holders: tuple[int, ...]


@dataclass(frozen=True)
class FedKDSent:
    """The last update for a client that holds the mentee from before it, else (None) the whole mentee."""

    mentee: Weights | None
    last: FactoredWeights | None
    energy: float


@dataclass(frozen=True)
class FedKDUpdate:
    """What a round added to the mentee."""

    update: FactoredWeights


@settings
class FedKD(Method[FedKDState]):
    """Personal mentors that learn from one another through a shared mentee, sent in few bytes."""

    # differs from the paper: no hidden states or attentions are distilled, since those of a mentor and a mentee of any
    # architecture are not alike; and the mean is weighted by examples.

    state = FedKDState
    unprotected_upload = "updates whose loss divides by a mean over the batch, which joins its examples"
    unaugmented = ("training",)  # two networks learn from one batch

    rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds of mutual distillation and averaging."""
    training: Training = Field(default_factory=Training)
    """Local training in a round, of both models."""
    mentee: str = "mlp-small"
    """Architecture of the shared model, the same at all clients."""
    energy_start: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Part of an update's squared singular values that is kept at the start (T_start)."""
    energy_end: Annotated[float, Field(gt=0, le=1)] = 0.98
    """The same in the last round (T_end); linear in between. 1 keeps all."""

    def init(self, server: Server) -> FedKDState:
        mentee = weights_of(server.new_network(self.mentee, server.common("mentee")))
        return FedKDState(mentee, FactoredWeights({}, {}, {}), ())

    def phases(self) -> list[Phase[FedKDState]]:
        mean, slots = {"update": RebuiltMean()}, (MODEL, MENTEE)
        return [Phase("train", self.keep, self.send, self.train, aggregate=mean, rounds=self.rounds, slots=slots)]

    def energy(self, server: Server) -> float:
        """T(t) = T_start + (T_end − T_start)·t, with t the rounds done by the end of this one, of all."""
        return self.energy_start + (self.energy_end - self.energy_start) * (server.round + 1) / self.rounds

    def send(self, server: Server, state: FedKDState, info: ClientInfo) -> FedKDSent:
        """The update, or the mentee to who took no part in the last round."""
        if info.id in state.holders:
            return FedKDSent(None, state.update, self.energy(server))
        return FedKDSent(state.mentee, None, self.energy(server))

    def train(self, client: Client, sent: FedKDSent) -> Reply[FedKDUpdate]:
        """One round; the mentor stays in the client's slot."""
        before, mentor = receive_mentee(client, sent), load_own_classifier(client)
        mentee = load_weights(client.new_network_of(self.mentee, client.common("mentee")), before)
        loss = train_pair(mentor, mentee, client, self.training, adaptive_loss)
        client.storage.put(MODEL, Model(weights_of(mentor)))
        client.storage.put(MENTEE, Model(before))
        update = factorize(subtract_weights(weights_of(mentee), before), sent.energy)
        return Reply(FedKDUpdate(update), weight=len(client.data), metrics={"loss": loss})

    def keep(self, server: Server, state: FedKDState, reduced: Reduced) -> FedKDState:
        """The mean update, cut down once more: the mentee is what clients can compute of it."""
        update = factorize(reduced["update"], self.energy(server))
        return FedKDState(apply_update(state.mentee, update), update, tuple(info.id for info in reduced.clients))

    def send_classifier(self, server: Server, state: FedKDState, info: ClientInfo) -> Empty:
        return Empty()

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        return load_own_classifier(client)


def adaptive_loss(mentor: Tensor, mentee: Tensor, y: Tensor) -> Tensor:
    """CE + KL / (CE_mentor + CE_mentee) for either model: the worse they do on a batch, the less they teach."""
    tasks = F.cross_entropy(mentor, y, reduction="none") + F.cross_entropy(mentee, y, reduction="none")
    # differs from the published code: no gradient through the divisor, which would reward a larger task loss.
    divisor = tasks.detach().mean().clamp_min(1e-6)  # a batch may be learned so well that the losses are exactly 0
    return tasks + (divergence(mentor, mentee) + divergence(mentee, mentor)) / divisor


def receive_mentee(client: Client, sent: FedKDSent) -> Weights:
    """The mentee that this round begins with."""
    if sent.last is None:
        assert sent.mentee is not None
        return sent.mentee
    held = client.storage.get(MENTEE)
    if held is None:  # left out of this round, and sent the whole mentee in the next
        raise GenfedError("the mentee that an update was sent for is not kept here any more")
    return apply_update(held.classifier, sent.last)


def subtract_weights(after: Weights, before: Weights) -> Weights:
    """What was added to floating-point tensors; counters as they are now."""
    return {k: v - before[k] if v.is_floating_point() else v for k, v in after.items()}


def apply_update(before: Weights, update: FactoredWeights) -> Weights:
    """The inverse of `difference`."""
    added = rebuild(update)
    return {k: v + added[k] if v.is_floating_point() else added[k] for k, v in before.items()}
