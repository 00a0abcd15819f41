"""GeFL-F. Kang, Cha, Kang, GeFL: Model-Agnostic Federated Learning with Generative Models, arXiv 2412.18460,
Algorithm 2: the generator generates features of an extractor that all clients share, not images.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.method import TrainedNetwork
from genfed.core.phase import Phase, Reduced, Repeat, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.methods.bases.federated_generator import (
    FederatedGenerator,
    GeneratedSupply,
    SentGenerator,
)
from genfed.training.evaluation import predict
from genfed.training.server_optimizer import ServerMoments
from genfed.training.split_network import (
    FEATURES,
    SplitNetwork,
    find_feature_task,
    find_shared_feature_task,
    initial_parts,
    load_features,
    load_parts,
    train_parts,
)
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

    1. extractor, `extractor_rounds` rounds. Server → client: the extractor, and the header of its architecture. Client:
       trains both on its examples. Client → server: both. The server averages extractors over all clients and headers
       within an architecture, weighted by examples. Then the extractor is fixed.
    2. generator, `generator_rounds` rounds. Server → client: the generator and the extractor. Client: trains the
       generator on the features of its examples. Client → server: the generator. The server averages them, all alike.
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

    extractor_rounds: Annotated[int, Field(ge=0)] = 20
    """Rounds that train extractor and headers on real examples (T_FE). Then the extractor is fixed."""
    extractor_epochs: Annotated[int, Field(ge=0)] = 5
    """Local epochs in such a round, on extractor and header (T_w)."""

    def init(self, server: Server) -> GeFLFState:
        extractor, headers = initial_parts(server)
        return GeFLFState(extractor, headers, self.initial_generator(server, find_shared_feature_task(server)))

    def phases(self) -> list[Phase[GeFLFState] | Repeat[GeFLFState]]:
        by_architecture = Mean(by="architecture")
        joint = Phase(
            "joint",
            self.keep_headers,
            self.send_all,
            self.train_header,
            aggregate={"header": by_architecture},
            slots=(FEATURES,),
        )
        return [
            Phase(
                "extractor",
                self.keep_network,
                self.send_classifier,
                self.train_network,
                aggregate={"extractor": Mean(), "header": by_architecture},
                rounds=self.extractor_rounds,
            ),
            self.generator_phase(self.keep_generator, self.send_generator, self.train_generator, (FEATURES,)),
            self.joint_rounds(self.rounds, Phase("pool", self.keep_pool, changes_classifier=False), joint),
        ]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]] | None:
        if not self.is_declared:
            return None
        # The stored features of an example depend on no other example, since the extractor is fixed.
        return {
            "extractor": [self.training.declare(self.extractor_epochs)],
            "generator": [self.declare_generator()],
            "joint": [self.training.declare()],
        }

    def trained_networks(self, server: Server) -> list[TrainedNetwork]:
        return [self.new_generator(server, self.features(server))]

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
        network = client.new_network(client.rng)
        network.get_submodule("extractor").load_state_dict(sent.extractor)
        task, features = find_feature_task(network, client.task), load_features(client, network)
        trained, loss = self.train_local_generator(client, task, sent.generator, features, sent.progress)
        return Reply(SentGenerator(trained), metrics={"loss": loss})  # unweighted, as in the paper

    def keep_generator(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Takes the mean over all clients, by the server's optimizer."""
        generator, moments = self.update_generator(
            server, self.features(server), state.generator, reduced["generator"], state.moments
        )
        return replace(state, generator=generator, moments=moments)

    def keep_pool(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Draws a new pool."""
        return replace(state, pool=self.draw_pool(server, self.features(server), state.generator))

    def features(self, server: Server) -> Task:
        """Returns the task of classifying features of the shared extractor."""
        return find_shared_feature_task(server)

    def send_all(self, server: Server, state: GeFLFState, info: ClientInfo) -> GeFLFSent:
        """Returns extractor, header, and the generator or a pool of its features."""
        return GeFLFSent(state.extractor, state.headers[info.architecture], self.supply(state.generator, state.pool))

    def train_header(self, client: Client, sent: GeFLFSent) -> Reply[GeFLFHeader]:
        """Trains the header on the client (step 3): T_s epochs on generated, then T_r epochs on real features."""
        network = load_parts(client, SplitNetwork(sent.extractor, sent.header))
        header, task = network.get_submodule("header"), find_feature_task(network, client.task)
        metrics = self.train_jointly(header, client, task, sent.supply, load_features(client, network))
        return Reply(GeFLFHeader(weights_of(header)), weight=len(client.data), metrics=metrics)

    def keep_headers(self, server: Server, state: GeFLFState, reduced: Reduced) -> GeFLFState:
        """Takes the mean headers within an architecture."""
        return replace(state, headers=state.headers | reduced["header"])

    def generate(self, server: Server, state: GeFLFState, y: Tensor) -> Tensor:
        return self.sample_from(server, self.features(server), state.generator, y)

    def represent(self, server: Server, state: GeFLFState, x: Tensor) -> Tensor:
        extractor = server.new_network(server.architectures[0], server.common("shape")).get_submodule("extractor")
        extractor.load_state_dict(state.extractor)
        return predict(extractor, x.to(server.device)).cpu()

    def classifier(self, client: Client, sent: SplitNetwork) -> nn.Module:
        return load_parts(client, sent)
