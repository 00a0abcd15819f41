"""First weights of a generator from one upload of every client, after FedCVAE-KD (Heinbaugh, Luz-Ricca, Shao, ICLR
2023): clients train a CVAE each and upload its decoder; the server distils the decoders into one generator.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.client import Server
from genfed.core.phase import Phase, Reduced
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.generators.cvae import CVAE, CVAENetwork
from genfed.methods.bases.decoder_upload import DecoderUpload, distill_epoch
from genfed.training.optimizer_state import OptimizerState
from genfed.training.weights import weights_of


@dataclass(frozen=True)
class WarmStartState:
    """What the server keeps until the generator rounds begin."""

    decoders: dict[int, Weights] = field(default_factory=dict)
    """The uploaded decoders, by client."""
    labels: dict[int, Tensor] = field(default_factory=dict)
    """Numbers of examples of each class, by client; int64 [classes]."""
    optimizer: OptimizerState = field(default_factory=lambda: OptimizerState({}))
    """State of the distillation's Adam."""


@settings
class DecoderStart(DecoderUpload[WarmStartState]):
    """The upload of decoders alone, as a part of another method."""

    state = WarmStartState

    def init(self, server: Server) -> WarmStartState:
        return WarmStartState()

    def phases(self) -> list[Phase[WarmStartState]]:
        return [self.upload(self.collect)]

    def collect(self, server: Server, state: WarmStartState, reduced: Reduced) -> WarmStartState:
        """Takes the uploaded decoders and label counts."""
        return WarmStartState(reduced["decoder"], reduced["labels"])

    def classifiers(self, state: WarmStartState) -> Mapping[str, Weights]:
        return {}


@settings
class WarmStart:
    """How the clients' own CVAEs become the first global generator, before the generator rounds.

    >>> from genfed.methods.bases.warm_start import WarmStart
    >>> WarmStart(epochs=30).samples
    5000
    """

    epochs: Annotated[int, Field(ge=0)] = 15
    """Epochs of a client's own CVAE before its one upload."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Examples per step, at clients and in the distillation."""
    samples: Annotated[int, Field(ge=2)] = 5000
    """Images of the clients' decoders, by which the server trains the generator."""
    distillation_epochs: Annotated[int, Field(ge=1)] = 7
    """Epochs of the distillation, one per round of the server."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Learning rate of the distillation's Adam."""

    def decoder_start(self, generator: CVAE) -> DecoderStart:
        """Returns the method whose only phase is the upload."""
        return DecoderStart(generator=generator, generator_epochs=self.epochs, generator_batch_size=self.batch_size)

    def distill(
        self, server: Server, generator: CVAE, weights: Weights, state: WarmStartState
    ) -> tuple[Weights, WarmStartState]:
        """Trains the generator for one epoch on images x, labels y and codes z of the clients' decoders.

        differs from FedCVAE-KD: the encoder is trained too, so that generator rounds can go on.

        Args:
            server: the server.
            generator: settings of the generator.
            weights: the generator after the last epoch, all its weights.
            state: the uploads, and the optimizer after the last epoch.

        Returns:
            The generator's weights, and the next state.
        """
        method = self.decoder_start(generator)
        examples = method.draw_examples(server, state.decoders, state.labels, self.samples)
        network = method.new_network(server, server.rng, weights)
        optimizer = distill_epoch(
            server,
            network.parameters(),
            functools.partial(distillation_loss, network),
            examples,
            state.optimizer,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
        )
        return weights_of(network), replace(state, optimizer=optimizer)


def distillation_loss(network: CVAENetwork, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns per example [n] the squared error of the decoder, summed over the image, and −log N(z; μ, σ²) without
    its constant, with the encoder's μ and σ.

    Args:
        network: the generator.
        x: images [n, C, H, W] of the clients' decoders.
        y: their labels [n].
        z: their codes [n, latent].
    """
    error = (network.decode(z, y) - x).square().flatten(1).sum(1)
    mean, log_variance = network.encode(x, y)
    return error + ((z - mean).square() * torch.exp(-log_variance) + log_variance).sum(1) / 2
