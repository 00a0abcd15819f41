"""FedCVAE-Ens. Heinbaugh, Luz-Ricca, Shao, Data-Free One-Shot Federated Learning Under Very High Statistical
Heterogeneity, ICLR 2023: every client uploads the decoder of its own CVAE and its label distribution once; the server
trains classifiers on what the ensemble of decoders makes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.methods.bases.decoder_upload import DecoderUpload, decode
from genfed.training.weights import initial_classifiers


@dataclass(frozen=True)
class FedCVAEEnsState:
    """The clients' decoders (all of them, in memory and in every checkpoint) and label counts, by client; the weights
    of each architecture.
    """

    decoders: dict[int, Weights]
    labels: dict[int, Tensor]
    classifiers: dict[str, Weights]


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
        self.new_network(server, server.common("generator"))  # refuses before training what it cannot make
        return FedCVAEEnsState({}, {}, initial_classifiers(server))

    def phases(self) -> list[Phase[FedCVAEEnsState]]:
        return [self.upload(self.collect), Phase("classifier", self.train_students, rounds=self.rounds)]

    def collect(self, server: Server, state: FedCVAEEnsState, reduced: Reduced) -> FedCVAEEnsState:
        """The only upload."""
        return replace(state, decoders=reduced["decoder"], labels=reduced["labels"])

    def train_students(self, server: Server, state: FedCVAEEnsState, reduced: Reduced) -> FedCVAEEnsState:
        """A round of classifier training on images of all decoders."""
        x, y, _ = self.draw_examples(server, state.decoders, state.labels, self.samples)
        return replace(state, classifiers=self.train_classifiers(server, state.classifiers, Data(x, y)))

    def classifiers(self, state: FedCVAEEnsState) -> dict[str, Weights]:
        return state.classifiers

    def generate(self, server: Server, state: FedCVAEEnsState, y: Tensor) -> Tensor:
        """Each by the decoder of a client, drawn in proportion to its examples of that class."""
        if not state.decoders:
            raise GenfedError("no client has uploaded its decoder yet")
        holdings = torch.stack(list(state.labels.values()), 1).double()  # [classes, clients]
        holdings[holdings.sum(1) == 0] = 1  # a class that nobody has: any decoder is as good
        makers = torch.multinomial(holdings[y.cpu()], 1, generator=server.rng)[:, 0].to(server.device)
        y = y.to(server.device)
        z, x = self.draw_codes(len(y), server.rng).to(server.device), torch.zeros(len(y), *server.task.shape)
        x = x.to(server.device)
        for place, weights in enumerate(state.decoders.values()):
            if bool((mine := makers == place).any()):
                x[mine] = decode(self.new_network(server, server.rng, weights), z[mine], y[mine])
        return x
