"""FedCVAE-Ens. Heinbaugh, Luz-Ricca, Shao, Data-Free One-Shot Federated Learning Under Very High Statistical
Heterogeneity, ICLR 2023: every client uploads the decoder of its own CVAE and its label distribution once; the server
trains classifiers on images from the ensemble of decoders.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.methods.bases.decoder_upload import Decoder, DecoderUpload, decode
from genfed.training.weights import initial_classifiers


@dataclass(frozen=True)
class FedCVAEEnsState:
    """The server's state. All clients' decoders are in memory and in every checkpoint."""

    decoders: dict[int, Weights]
    """The uploaded decoders, by client."""
    labels: dict[int, Tensor]
    """Numbers of examples of each class, by client; int64 [classes]."""
    classifiers: dict[str, Weights]
    """The classifiers, by architecture."""


@settings
class FedCVAEEns(DecoderUpload[FedCVAEEnsState]):
    """Classifiers trained on the server, on images from the decoders of all clients.

    1. decoder, once. Client: trains a CVAE on its examples for `generator_epochs`. Client → server: the decoder, and
       the number of its examples of each class.
    2. classifier, `rounds` rounds, on the server: trains one classifier per architecture on `samples` images from all
       decoders, each in proportion to its client's examples and labelled like them.

    >>> [phase.name for phase in FedCVAEEns(samples=100).phases()]
    ['decoder', 'classifier']
    """

    state = FedCVAEEnsState

    def init(self, server: Server) -> FedCVAEEnsState:
        self.new_network(
            server, server.common("generator")
        )  # refuses before training a task for which there is no CVAE
        return FedCVAEEnsState({}, {}, initial_classifiers(server))

    def phases(self) -> list[Phase[FedCVAEEnsState]]:
        return [self.upload(self.collect), Phase("classifier", self.train_on_images, rounds=self.rounds)]

    def forgets(self) -> bool:
        return True

    def forget(
        self, server: Server, state: FedCVAEEnsState, info: ClientInfo, upload: Callable[[], Decoder]
    ) -> FedCVAEEnsState:
        decoders = {i: decoder for i, decoder in state.decoders.items() if i != info.id}
        labels = {i: counts for i, counts in state.labels.items() if i != info.id}
        return FedCVAEEnsState(decoders, labels, initial_classifiers(server))

    def collect(self, server: Server, state: FedCVAEEnsState, reduced: Reduced) -> FedCVAEEnsState:
        """Takes the uploaded decoders and label counts."""
        return replace(state, decoders=reduced["decoder"], labels=reduced["labels"])

    def train_on_images(self, server: Server, state: FedCVAEEnsState, reduced: Reduced) -> FedCVAEEnsState:
        """Trains the classifiers on images of all decoders for one round."""
        x, y, _ = self.draw_examples(server, state.decoders, state.labels, self.samples)
        return replace(state, classifiers=self.train_classifiers(server, state.classifiers, Data(x, y)))

    def classifiers(self, state: FedCVAEEnsState) -> dict[str, Weights]:
        return state.classifiers

    def generate(self, server: Server, state: FedCVAEEnsState, y: Tensor) -> Tensor:
        """Generates each example by the decoder of a client, drawn in proportion to its examples of the class."""
        if not state.decoders:
            raise GenfedError("no client has uploaded its decoder yet")
        holdings = torch.stack(list(state.labels.values()), 1).double()  # [classes, clients]
        holdings[holdings.sum(1) == 0] = 1  # a class that no client has: any decoder will do
        chosen = torch.multinomial(holdings[y.cpu()], 1, generator=server.rng)[:, 0].to(server.device)
        y = y.to(server.device)
        z, x = self.draw_codes(len(y), server.rng).to(server.device), torch.zeros(len(y), *server.task.shape)
        x = x.to(server.device)
        for place, weights in enumerate(state.decoders.values()):
            if bool((own := chosen == place).any()):
                x[own] = decode(self.new_network(server, server.rng, weights), z[own], y[own])
        return x
