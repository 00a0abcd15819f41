"""FedCVAE-KD. Heinbaugh, Luz-Ricca, Shao, Data-Free One-Shot Federated Learning Under Very High Statistical
Heterogeneity, ICLR 2023: every client uploads the decoder of its own CVAE and its label distribution once; the server
distils the decoders into one, and trains classifiers on what that one makes.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.client import Server
from genfed.core.phase import Phase, Reduced
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.methods.bases.decoder_upload import OneShot, decoded, decoder_of
from genfed.training.fit import Player, fit
from genfed.training.optimizer_state import Moments, moments_of, restore
from genfed.training.weights import initial_classifiers


@dataclass(frozen=True)
class State:
    """The clients' decoders (all of them, until classifiers are trained) and label counts, by client; the server's
    decoder with its optimiser's memory; the weights of each architecture.
    """

    decoders: dict[int, Weights]
    labels: dict[int, Tensor]
    decoder: Weights
    moments: Moments
    classifiers: dict[str, Weights]


@settings
class FedCVAEKD(OneShot[State]):
    """Classifiers learn from images of one decoder, distilled from all clients' on the server."""

    state = State

    distillation_samples: Annotated[int, Field(ge=2)] = 5000
    """Images of the clients' decoders that the server's learns from."""
    distillation_epochs: Annotated[int, Field(ge=0)] = 7
    """Epochs over them, one a round of its own."""
    distillation_batch_size: Annotated[int, Field(ge=2)] = 32
    """Images per step."""
    distillation_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Of its Adam."""

    def init(self, server: Server) -> State:
        decoder = decoder_of(self.new_network(server, server.common("generator")))
        return State({}, {}, decoder, Moments({}), initial_classifiers(server))

    def phases(self) -> list[Phase[State]]:
        return [
            self.upload(self.collect),
            Phase("distil", self.distil, rounds=self.distillation_epochs, changes_classifier=False),
            Phase("classifier", self.learn, rounds=self.rounds),
        ]

    def collect(self, server: Server, state: State, reduced: Reduced) -> State:
        """The only upload."""
        return replace(state, decoders=reduced["decoder"], labels=reduced["labels"])

    def distil(self, server: Server, state: State, reduced: Reduced) -> State:
        """An epoch in which the server's decoder learns to make, of the same codes and labels, the clients' images."""
        x, y, z = self.drawn(server, state.decoders, state.labels, self.distillation_samples)
        network = self.new_network(server, server.rng, state.decoder)
        student = [p for name, p in network.named_parameters() if name in state.decoder]
        adam = torch.optim.Adam(student, self.distillation_learning_rate, fused=True)
        restore(adam, state.moments)

        def loss(z: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
            # differs from the paper: squared error for grey images too, as in our CVAE's loss.
            return (network.decode(z, y[rows]) - x[rows]).square().flatten(1).sum(1)

        fit(
            [Player(loss, adam)],
            Data(z, torch.arange(len(z), device=z.device)),
            epochs=1,
            batch_size=self.distillation_batch_size,
            rng=server.rng,
            precision=server.precision,
        )
        return replace(state, decoder=decoder_of(network), moments=moments_of(adam))

    def learn(self, server: Server, state: State, reduced: Reduced) -> State:
        """A round of classifier training on images of the server's decoder, labels uniform."""
        rng = server.common("images")  # the same in every round
        y = torch.randint(len(server.task.classes), (self.samples,), generator=rng)
        data = Data(self.made(server, state, y, rng), y.to(server.device))
        # The clients' decoders have done their part, and a checkpoint without them is small.
        return replace(
            state, decoders={}, labels={}, classifiers=self.train_classifiers(server, state.classifiers, data)
        )

    def classifiers(self, state: State) -> dict[str, Weights]:
        return state.classifiers

    def made(self, server: Server, state: State, y: Tensor, rng: torch.Generator) -> Tensor:
        """One image of the server's decoder per label, on its device."""
        z = self.codes(len(y), rng).to(server.device)
        return decoded(self.new_network(server, rng, state.decoder), z, y.to(server.device))

    def generate(self, server: Server, state: State, y: Tensor) -> Tensor:
        return self.made(server, state, y, server.rng)
