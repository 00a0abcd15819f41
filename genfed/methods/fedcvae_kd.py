"""FedCVAE-KD. Heinbaugh, Luz-Ricca, Shao, Data-Free One-Shot Federated Learning Under Very High Statistical
Heterogeneity, ICLR 2023: every client uploads the decoder of its own CVAE and its label distribution once; the server
distils the decoders into one, and trains classifiers on its images.
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
from genfed.methods.bases.decoder_upload import DecoderUpload, build_decoder, decode, distill_epoch
from genfed.training.optimizer_state import OptimizerState
from genfed.training.weights import initial_classifiers


@dataclass(frozen=True)
class FedCVAEKDState:
    """The server's state."""

    decoders: dict[int, Weights]
    """The uploaded decoders, by client. Empty once classifiers are trained."""
    labels: dict[int, Tensor]
    """Numbers of examples of each class, by client; int64 [classes]."""
    decoder: Weights
    """The server's decoder."""
    moments: OptimizerState
    """State of its optimizer."""
    classifiers: dict[str, Weights]
    """The classifiers, by architecture."""


@settings
class FedCVAEKD(DecoderUpload[FedCVAEKDState]):
    """Classifiers trained on the server, on images from one decoder that is distilled from those of all clients.

    1. decoder, once. Client: trains a CVAE on its examples for `generator_epochs`. Client → server: the decoder, and
       the number of its examples of each class.
    2. distil, `distillation_epochs` rounds, on the server: one decoder learns to generate the images of all decoders.
    3. classifier, `rounds` rounds, on the server: trains one classifier per architecture on `samples` images from that
       decoder, labels uniform.

    >>> [phase.name for phase in FedCVAEKD(distillation_epochs=3).phases()]
    ['decoder', 'distil', 'classifier']
    """

    state = FedCVAEKDState

    distillation_samples: Annotated[int, Field(ge=2)] = 5000
    """Images of the clients' decoders on which the server's decoder is trained."""
    distillation_epochs: Annotated[int, Field(ge=0)] = 7
    """Epochs of the distillation, one per round."""
    distillation_batch_size: Annotated[int, Field(ge=2)] = 32
    """Images per step of the distillation."""
    distillation_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the distillation's Adam."""

    def init(self, server: Server) -> FedCVAEKDState:
        decoder = build_decoder(self.new_network(server, server.common("generator")))
        return FedCVAEKDState({}, {}, decoder, OptimizerState({}), initial_classifiers(server))

    def phases(self) -> list[Phase[FedCVAEKDState]]:
        return [
            self.upload(self.collect),
            Phase("distil", self.distill, rounds=self.distillation_epochs, changes_classifier=False),
            Phase("classifier", self.train_on_images, rounds=self.rounds),
        ]

    def collect(self, server: Server, state: FedCVAEKDState, reduced: Reduced) -> FedCVAEKDState:
        """Takes the uploaded decoders and label counts."""
        return replace(state, decoders=reduced["decoder"], labels=reduced["labels"])

    def distill(self, server: Server, state: FedCVAEKDState, reduced: Reduced) -> FedCVAEKDState:
        """Trains the server's decoder for one epoch to generate the clients' images from the same codes and labels."""
        examples = self.draw_examples(server, state.decoders, state.labels, self.distillation_samples)
        network = self.new_network(server, server.rng, state.decoder)

        def loss(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            # differs from the paper: squared error for grey images too, as in our CVAE's loss.
            return (network.decode(z, y) - x).square().flatten(1).sum(1)

        moments = distill_epoch(
            server,
            [p for name, p in network.named_parameters() if name in state.decoder],
            loss,
            examples,
            state.moments,
            learning_rate=self.distillation_learning_rate,
            batch_size=self.distillation_batch_size,
        )
        return replace(state, decoder=build_decoder(network), moments=moments)

    def train_on_images(self, server: Server, state: FedCVAEKDState, reduced: Reduced) -> FedCVAEKDState:
        """Trains the classifiers on images of the server's decoder for one round; labels are uniform."""
        rng = server.common("images")  # the same in every round
        y = torch.randint(len(server.task.classes), (self.samples,), generator=rng)
        data = Data(self.draw_images(server, state, y, rng), y.to(server.device))
        # The clients' decoders are not needed any more, and a checkpoint without them is small.
        return replace(
            state, decoders={}, labels={}, classifiers=self.train_classifiers(server, state.classifiers, data)
        )

    def classifiers(self, state: FedCVAEKDState) -> dict[str, Weights]:
        return state.classifiers

    def draw_images(self, server: Server, state: FedCVAEKDState, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns one image of the server's decoder per label, on the server's device."""
        z = self.draw_codes(len(y), rng).to(server.device)
        return decode(self.new_network(server, rng, state.decoder), z, y.to(server.device))

    def generate(self, server: Server, state: FedCVAEKDState, y: Tensor) -> Tensor:
        return self.draw_images(server, state, y, server.rng)
