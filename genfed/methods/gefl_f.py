"""GeFL-F. Kang, Cha, Kang, GeFL: Model-Agnostic Federated Learning with Generative Models, arXiv 2412.18460,
Algorithm 2: the generator generates features of an extractor that all clients share, not images.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import TrainedNetwork
from genfed.core.phase import Phase, Reduced, Repeat, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.encoders.encoder import Encoder
from genfed.encoders.shared import Shared
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.feature_space import (
    FeatureSpace,
    FixedEncoder,
    SharedExtractor,
    Whiten,
    estimate_whitening,
    whitening_statistics,
)
from genfed.methods.bases.feature_statistics import count_largest
from genfed.methods.bases.federated_generator import (
    FederatedGenerator,
    GeneratedSupply,
    SentGenerator,
)
from genfed.methods.bases.summed_generator import SumsRequest, sums_phase
from genfed.training.server_optimizer import ServerMoments
from genfed.training.split_network import SplitNetwork, train_parts
from genfed.training.weights import weights_of


@dataclass(frozen=True)
class GeFLFState:
    """The server's state: the shared extractor, the headers by architecture, and the generator of features."""

    extractor: Weights
    headers: dict[str, Weights]
    generator: Weights
    pool: Data | None = None
    """Features that the server drew for this round. None: clients draw their own."""
    moments: ServerMoments = field(default_factory=ServerMoments)
    """What the server's optimizer keeps of the generator rounds."""


@dataclass(frozen=True)
class FeatureGenerator:
    """What a client is sent in a generator round: the generator, and the extractor of its features."""

    extractor: Weights
    generator: Weights
    progress: float
    """Completed share of all generator rounds, in [0, 1)."""


@dataclass(frozen=True)
class GeFLFSent:
    """What a client is sent in a joint round."""

    extractor: Weights
    header: Weights
    supply: GeneratedSupply


@dataclass(frozen=True)
class GeFLFHeader:
    """What a client uploads in a joint round."""

    header: Weights


@settings
class GeFLF(FederatedGenerator[GeFLFState]):
    """GeFL on features: all clients share an extractor and a generator of its features; each trains its own header.

    1. extractor, `extractor_rounds` rounds; none for an `encoder` that is fixed. Server → client: the extractor, and
       the header of its architecture. Client: trains both on its examples. Client → server: both. The server averages
       extractors over all clients and headers within an architecture, weighted by examples. Then the extractor is
       fixed.
       For an `encoder` that is fixed instead: whiten, once. Server → client: the digest of the encoder. Client: adds up
       its features. Client → server: the sums. The server estimates what features are whitened by.
    2. generator, `generator_rounds` rounds. Server → client: the generator and the extractor. Client: trains the
       generator on the features of its examples. Client → server: the generator. The server averages them, all alike.
       A generator that is estimated from sums has as many rounds as passes: the client adds up its features, and the
       server estimates the generator.
    3. pool, before each joint round if `pool` = "server", on the server: draws features from the generator.
    4. joint, `rounds` rounds. Server → client: extractor, header, and the generator or the pool. Client: trains the
       header on generated features, then on those of its examples. Client → server: the header. The server averages
       headers within an architecture, weighted by examples.

    >>> from genfed.core.phase import flatten_phases
    >>> [phase.name for phase in flatten_phases(GeFLF(rounds=1, pool="server").phases())]
    ['extractor', 'generator', 'pool', 'joint']
    """

    state = GeFLFState
    unaugmented = ("training",)  # headers learn from features
    of_features = True

    encoder: InstanceOf[Encoder] = Field(default_factory=lambda: Shared())
    """Map from examples to features. shared: the extractor that clients train, as in the paper. Any other is fixed, so
    there are no extractor rounds; a header is then a network of the client's architecture that takes features."""
    whitening: Whiten = "full"
    """What the features of a fixed encoder are whitened by: "full", their covariance within classes, "diagonal", their
    variances within classes, or "none". It is estimated once from sums of all clients' features."""
    extractor_rounds: Annotated[int, Field(ge=0)] = 20
    """Rounds that train extractor and headers on real examples (T_FE). Then the extractor is fixed."""
    extractor_epochs: Annotated[int, Field(ge=0)] = 5
    """Local epochs in such a round, on extractor and header (T_w)."""

    def init(self, server: Server) -> GeFLFState:
        extractor, headers = self.space.begin(server)
        return GeFLFState(extractor, headers, self.initial_generator(server, self.features(server)))

    @property
    def space(self) -> FeatureSpace:
        """The features that the generator generates."""
        return SharedExtractor() if isinstance(self.encoder, Shared) else FixedEncoder(self.encoder)

    def phases(self) -> list[Phase[GeFLFState] | Repeat[GeFLFState]]:
        by_architecture = Mean(by="architecture")
        joint = Phase(
            "joint",
            self.keep_headers,
            self.send_all,
            self.train_header,
            aggregate={"header": by_architecture},
            slots=(self.space.slot,),
        )
        extractor = Phase(
            "extractor",
            self.keep_network,
            self.send_classifier,
            self.train_network,
            aggregate={"extractor": Mean(), "header": by_architecture},
            rounds=self.extractor_rounds,
        )
        return [
            *([extractor] if isinstance(self.encoder, Shared) else self._whitening()),
            self._generator_phase(),
            self.joint_rounds(self.rounds, Phase("pool", self.keep_pool, changes_classifier=False), joint),
        ]

    def _generator_phase(self) -> Phase[GeFLFState]:
        space, slots = self.space, (self.space.slot,)
        if isinstance(generator := self.generator, StatisticsGenerator):
            return sums_phase(
                "generator", generator, self.estimate, self.send_request, space.encode, self.features, slots
            )
        return self.generator_phase(self.keep_generator, self.send_generator, self.train_generator, slots)

    def _whitening(self) -> list[Phase[GeFLFState]]:
        if self.whitening == "none":
            return []
        statistics, space, slots = whitening_statistics(self.whitening), self.space, (self.space.slot,)
        if isinstance(self.generator, StatisticsGenerator):
            statistics = replace(statistics, minimum_class_count=self.generator.minimum_class_count)
        return [
            sums_phase("whiten", statistics, self.keep_whitening, self.send_encoder, space.encode, self.features, slots)
        ]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]] | None:
        whitened = not isinstance(self.encoder, Shared) and self.whitening != "none"
        if whitened or not self.is_declared:
            return None  # of sums of features nothing is declared
        # The stored features of an example depend on no other example, since the extractor is fixed.
        shared = {"extractor": [self.training.declare(self.extractor_epochs)]}
        return (shared if isinstance(self.encoder, Shared) else {}) | {
            "generator": [self.declare_generator()],
            "joint": [self.training.declare()],
        }

    def trained_networks(self, server: Server) -> list[TrainedNetwork]:
        return [self.new_generator(server, self.features(server)), *self.space.trained_headers(server)]

    def send_classifier(self, server: Server, state: GeFLFState, info: ClientInfo) -> SplitNetwork:
        return SplitNetwork(state.extractor, state.headers[info.architecture])

    def train_network(self, client: Client, sent: SplitNetwork) -> Reply[SplitNetwork]:
        """Trains the whole network on the client for T_w epochs (step 1)."""
        return train_parts(client, sent, self.training, self.extractor_epochs)

    def keep_network(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Takes the mean extractor over all clients, and the mean headers within an architecture."""
        return replace(state, extractor=reduced["extractor"], headers=state.headers | reduced["header"])

    def send_generator(self, server: Server, state: GeFLFState, info: ClientInfo) -> FeatureGenerator:
        """Sends the extractor and the generator."""
        return FeatureGenerator(state.extractor, state.generator, server.round / self.generator_rounds)

    def train_generator(self, client: Client, sent: FeatureGenerator) -> Reply[SentGenerator]:
        """Trains the generator on the client's features for T_g epochs (step 2)."""
        task, features = self.space.encode(client, sent.extractor)
        trained, loss = self.train_local_generator(client, task, sent.generator, features, sent.progress)
        return Reply(SentGenerator(trained), metrics={"loss": loss})  # unweighted, as in the paper

    def keep_generator(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Takes the mean over all clients, by the server's optimizer."""
        generator, moments = self.update_generator(
            server, self.features(server), state.generator, reduced["generator"], state.moments
        )
        return replace(state, generator=generator, moments=moments)

    def send_request(self, server: Server, state: GeFLFState, info: ClientInfo) -> SumsRequest:
        """Sends the extractor, how many examples a client has at most, and the generator of the pass before."""
        return SumsRequest(state.extractor, count_largest(server), state.generator)

    def send_encoder(self, server: Server, state: GeFLFState, info: ClientInfo) -> SumsRequest:
        """Sends the digest of the encoder, and how many examples a client has at most."""
        return SumsRequest(state.extractor, count_largest(server), {})

    def keep_whitening(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Adds to the extractor what features are whitened by."""
        statistics = {name: value.long() for name, value in reduced["statistics"].items()}
        found = estimate_whitening(self.whitening, self.features(server), statistics)
        return replace(state, extractor=state.extractor | found)

    def estimate(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Estimates the generator from the sums over all clients."""
        task = self.features(server)
        return replace(state, generator=self.estimate_generator(server, task, state.generator, reduced))

    def keep_pool(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Draws a new pool."""
        return replace(state, pool=self.draw_pool(server, self.features(server), state.generator))

    def features(self, server: Server) -> Task:
        """Returns the task of classifying features."""
        return self.space.find_task(server)

    def send_all(self, server: Server, state: GeFLFState, info: ClientInfo) -> GeFLFSent:
        """Returns extractor, header, and the generator or a pool of its features."""
        return GeFLFSent(state.extractor, state.headers[info.architecture], self.supply(state.generator, state.pool))

    def train_header(self, client: Client, sent: GeFLFSent) -> Reply[GeFLFHeader]:
        """Trains the header on the client (step 3): T_s epochs on generated, then T_r epochs on real features."""
        header, task, features = self.space.open_header(client, SplitNetwork(sent.extractor, sent.header))
        metrics = self.train_jointly(header, client, task, sent.supply, features)
        return Reply(GeFLFHeader(weights_of(header)), weight=len(client.data), metrics=metrics)

    def keep_headers(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Takes the mean headers within an architecture."""
        return replace(state, headers=state.headers | reduced["header"])

    def generate(self, server: Server, state: GeFLFState, y: Tensor) -> Tensor:
        return self.sample_from(server, self.features(server), state.generator, y)

    def represent(self, server: Server, state: GeFLFState, x: Tensor) -> Tensor:
        return self.space.represent(server, state.extractor, x)

    def classifier(self, client: Client, sent: SplitNetwork) -> nn.Module:
        return self.space.join(client, sent)
