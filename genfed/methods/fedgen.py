"""FedGen. Zhu, Hong, Zhou, Data-Free Knowledge Distillation for Heterogeneous Federated Learning, ICML 2021,
arXiv 2105.10056, Algorithm 1: the server trains a generator of representations against the clients' headers, and every
client's header learns from generated representations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect, Mean
from genfed.core.client import Client, Server
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.generators.representation_generator import RepresentationGenerator, combine_headers, diversity_loss
from genfed.methods.bases.representation import RepresentationMethod, RepresentationNetwork
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.split_network import SplitNetwork, join_parts, split_parts
from genfed.training.upload_checks import check_counts
from genfed.training.weights import weights_of


@dataclass(frozen=True)
class FedGenState:
    """The server's state: extractors by architecture, the common header, the generator and its optimizer's state."""

    extractors: dict[str, Weights]
    header: Weights
    generator: Weights
    moments: OptimizerState | None
    counts: Tensor
    """Numbers of examples of each class at the clients of the last round, int64 [classes]; 0 before the first round."""


@dataclass(frozen=True)
class FedGenSent:
    """What a client is sent."""

    extractor: Weights
    header: Weights
    generator: Weights
    counts: Tensor


@dataclass(frozen=True)
class FedGenUpload:
    """A client's network, and its number of examples of each class, int64 [classes]."""

    extractor: Weights
    header: Weights
    counts: Tensor


@settings
class FedGen(RepresentationMethod[FedGenState]):
    """Averaged networks, and a generator of representations that carries to each header what the other clients know.

    1. train, `rounds` rounds. Server → client: the extractor of its architecture, the header, the generator, and the
       number of examples of each class. Client: trains extractor and header on its examples and, from round 2 on, on as
       many generated representations. Client → server: both parts, and its number of examples of each class. The server
       averages extractors within an architecture and headers over all, weighted by examples; then it trains the
       generator for `generator_steps` so that the clients' headers recognize what it generates.

    >>> [phase.name for phase in FedGen(rounds=10).phases()]
    ['train']
    """

    # differs from the paper: it averages whole networks, or the header alone. Here headers are averaged over clients
    # and extractors within an architecture, both weighted by examples.

    state = FedGenState
    unprotected_upload = "how many examples of each class a client has"
    unaugmented = ("training",)  # its loss is on representations too

    generated_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a client's loss on generated representations (1 in Eq. 5). 0: averaging alone."""
    generator_steps: Annotated[int, Field(ge=1)] = 50
    """Steps of the generator in a round."""
    generator_batch_size: Annotated[int, Field(ge=1)] = 128
    """Representations per step of the generator."""
    generator_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of the generator's Adam (α). Its moments go on from round to round."""
    diversity: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the diversity loss."""
    noise_dim: Annotated[int, Field(ge=1)] = 32
    """Dimension of the noise from which a representation is generated (ε)."""
    hidden_dim: Annotated[int, Field(ge=1)] = 256
    """Width of the generator's hidden layer."""

    def init(self, server: Server) -> FedGenState:
        both = {
            architecture: split_parts(weights_of(network)) for architecture, network in self.networks(server).items()
        }
        extractors = {architecture: extractor for architecture, (extractor, _) in both.items()}
        none = torch.zeros(len(server.task.classes), dtype=torch.int64)
        return FedGenState(extractors, both[server.architectures[0]][1], weights_of(self.generator(server)), None, none)

    def phases(self) -> list[Phase[FedGenState]]:
        aggregate = {"extractor": Mean(by="architecture"), "header": Collect(), "counts": Collect()}
        return [
            Phase("train", self.keep, self.send, self.train, aggregate=aggregate, rounds=self.rounds, check=self.check)
        ]

    def check(self, server: Server, info: ClientInfo, upload: FedGenUpload) -> None:
        """Refuses counts that are not the client's. Its weights have the shapes of those that it was sent.

        Raises:
            GenfedError: the counts do not add up to the client's number of examples.
        """
        check_counts(server, info, upload.counts)

    def generator(self, where: Client | Server) -> RepresentationGenerator:
        """Returns the generator with its initial weights, on the device of `where`."""
        classes, rng = len(where.task.classes), where.common("generator")
        return RepresentationGenerator(self.noise_dim, classes, self.hidden_dim, self.dimension, rng).to(where.device)

    def send(self, server: Server, state: FedGenState, info: ClientInfo) -> FedGenSent:
        """Returns the client's network, the generator, and the counts for p̂(y)."""
        return FedGenSent(state.extractors[info.architecture], state.header, state.generator, state.counts)

    def train(self, client: Client, sent: FedGenSent) -> Reply[FedGenUpload]:
        """Trains on the client: each step takes a real batch and as many generated representations."""
        network = self.classifier(client, SplitNetwork(sent.extractor, sent.header))
        generator, real = self.generator(client), cross_entropy(network)
        generator.load_state_dict(sent.generator)

        def both(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:  # Eq. 5
            labels = torch.multinomial(sent.counts.double(), len(y), replacement=True, generator=rng).to(y.device)
            generated = F.cross_entropy(network.header(generator.sample(labels, rng)), labels, reduction="none")
            return real(x, y, rng) + self.generated_weight * generated

        # differs from the paper: as in its code, nothing is generated before the generator is trained.
        loss = both if self.generated_weight and sent.counts.any() else real
        mean = self.train_representation(network, client, loss)
        counts = torch.bincount(client.data.y.cpu(), minlength=len(sent.counts))
        return Reply(
            FedGenUpload(*split_parts(weights_of(network)), counts), weight=len(client.data), metrics={"loss": mean}
        )

    def keep(self, server: Server, state: FedGenState, reduced: Reduced) -> FedGenState:
        """Averages the networks, and trains the generator against the uploaded headers."""
        headers, counts = list(reduced["header"].values()), torch.stack(list(reduced["counts"].values()))
        share = counts.sum(1).double() / counts.sum()
        stacked = {name: torch.stack([header[name].double() for header in headers]) for name in state.header}
        header = {name: torch.tensordot(share, each, 1).float() for name, each in stacked.items()}
        generator, moments = self.train_generator(server, state, headers, counts)
        return FedGenState(state.extractors | reduced["extractor"], header, generator, moments, counts.sum(0))

    def train_generator(
        self, server: Server, state: FedGenState, headers: Sequence[Weights], counts: Tensor
    ) -> tuple[Weights, OptimizerState]:
        """Trains the generator by Eq. 4 with the diversity loss. Returns it and the state of its optimizer."""
        generator = self.generator(server)
        generator.load_state_dict(state.generator)
        adam = torch.optim.Adam(generator.parameters(), lr=self.generator_learning_rate, fused=True)
        load_optimizer_state(adam, state.moments)
        vote = combine_headers(headers, counts, server.device)

        def loss(noise: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            z = generator(noise, y)
            return F.cross_entropy(vote(z, y), y, reduction="none") + self.diversity * diversity_loss(noise, z)

        n = self.generator_steps * self.generator_batch_size
        y = torch.multinomial(counts.sum(0).double(), n, replacement=True, generator=server.rng)
        drawn = Data(torch.randn(n, self.noise_dim, generator=server.rng), y).to(server.device)
        size, rng = self.generator_batch_size, server.rng
        fit([Objective(loss, adam)], drawn, epochs=1, batch_size=size, rng=rng, precision=server.precision)
        return weights_of(generator), optimizer_state(adam)

    def send_classifier(self, server: Server, state: FedGenState, info: ClientInfo) -> SplitNetwork:
        return SplitNetwork(state.extractors[info.architecture], state.header)

    def classifier(self, client: Client, sent: SplitNetwork) -> RepresentationNetwork:
        network = self.network(client, client.info.architecture)
        network.load_state_dict(join_parts(sent.extractor, sent.header))
        return network
