"""GeFL. Kang, Cha, Kang, GeFL: Model-Agnostic Federated Learning with Generative Models, arXiv 2412.18460,
Algorithm 1: clients train a generator together, then each trains its own architecture on generated and on real
examples.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.method import TrainedNetwork
from genfed.core.phase import Phase, Reduced, Repeat, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.cvae import CVAE
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.feature_statistics import count_largest
from genfed.methods.bases.federated_generator import (
    FederatedGenerator,
    GeneratedSupply,
    GeneratorStart,
    SentGenerator,
)
from genfed.methods.bases.summed_generator import SumsRequest, sums_phase
from genfed.methods.bases.warm_start import WarmStart, WarmStartState
from genfed.training.pixels import normalize_pixels
from genfed.training.server_optimizer import ServerMoments
from genfed.training.weights import Model, build_classifier, initial_classifiers, weights_of


@dataclass(frozen=True)
class GeFLState:
    """The server's state: the generator, and the classifiers by architecture."""

    generator: Weights
    classifiers: dict[str, Weights]
    pool: Data | None = None
    """Examples that the server drew for this round. None: clients draw their own."""
    moments: ServerMoments = field(default_factory=ServerMoments)
    """What the server's optimizer keeps of the generator rounds."""
    warm_start: WarmStartState | None = None
    """What the warm start needs until the generator rounds begin. None: it is over, or there is none."""


@dataclass(frozen=True)
class GeFLSent:
    """What a client is sent in a joint round."""

    supply: GeneratedSupply
    classifier: Weights


@settings
class GeFL(FederatedGenerator[GeFLState]):
    """A generator that all clients train together; then each client trains its classifier on generated and real
    examples.

    0. decoder and distil, if `warm_start` is set. Client → server, once: the decoder of a CVAE of its own, and the
       number of its examples of each class. The server distils the decoders into the generator.
    1. generator, `generator_rounds` rounds. Server → client: the generator. Client: trains it on its examples. Client →
       server: the generator. The server averages the generators, all alike (`server_optimizer`).
       A generator that is estimated from sums has as many rounds as passes: the client adds up its examples, and the
       server estimates the generator.
    2. pool, before each joint round if `pool` = "server", on the server: draws examples from the generator.
    3. joint, `rounds` rounds. Server → client: the generator or the pool, and the weights of its architecture. Client:
       trains the classifier on generated examples, then on its own (`mix`). Client → server: the weights. The server
       averages them within an architecture, weighted by examples. After each of the first `interleaved` joint rounds
       there is one more generator round.

    >>> from genfed.core.phase import flatten_phases
    >>> [phase.name for phase in flatten_phases(GeFL(rounds=2, interleaved=1).phases())]
    ['generator', 'joint', 'generator', 'joint']
    """

    state = GeFLState
    generates = True

    interleaved: Annotated[int, Field(ge=0)] = 0
    """Number of joint rounds, from the first on, that are each followed by a generator round (50 in the paper, DCGAN).
    0: the generator does not change once the joint rounds begin."""

    warm_start: WarmStart | None = None
    """How own CVAEs of clients become the first global generator. None: it has random weights, as in the paper."""

    def __post_init__(self) -> None:
        if self.warm_start is not None and (not isinstance(self.generator, CVAE) or self.generator.keep_encoder):
            raise GenfedError("warm_start: the generator must be a cvae without keep_encoder")
        if self.interleaved > self.rounds:
            raise GenfedError(f"interleaved = {self.interleaved}: at most rounds = {self.rounds} is allowed")
        if self.interleaved and isinstance(self.generator, StatisticsGenerator):
            name = type(self.generator).__name__
            raise GenfedError(
                f"interleaved = {self.interleaved}: a {name} is estimated once, before the joint rounds; 0 is allowed"
            )

    def init(self, server: Server) -> GeFLState:
        warm_start = None if self.warm_start is None else WarmStartState()
        generator = self.initial_generator(server, server.task)
        return GeFLState(generator, initial_classifiers(server), warm_start=warm_start)

    def phases(self) -> list[Phase[GeFLState] | Repeat[GeFLState]]:
        generator = self._generator_phase()
        joint = Phase(
            "joint",
            self.keep_classifiers,
            self.send_both,
            self.train_classifier,
            aggregate={"classifier": Mean(by="architecture")},
        )
        draw = Phase("pool", self.keep_pool, changes_classifier=False)
        # A generator round after a joint one starts from the generator that the joint one used. This is the same as
        # training it at the end of the joint round, as in the paper.
        both: list[Phase[GeFLState] | Repeat[GeFLState]] = [
            self.joint_rounds(1, draw, joint),
            replace(generator, rounds=1),
        ]
        together = Repeat(self.interleaved, both)
        return [
            *self._warm_start_phases(),
            generator,
            together,
            self.joint_rounds(self.rounds - self.interleaved, draw, joint),
        ]

    def _generator_phase(self) -> Phase[GeFLState]:
        if isinstance(generator := self.generator, StatisticsGenerator):
            return sums_phase("generator", generator, self.estimate, self.send_request, _examples, lambda s: s.task)
        return self.generator_phase(self.keep_generator, self.send_generator, self.train_generator)

    def advise_on_labels(self) -> str:
        """Returns a sentence on what to change if the generator ignores labels, without its full stop."""
        if self.warm_start is not None:
            return "Set more epochs or distillation_epochs of warm_start"
        advice = super().advise_on_labels()
        return (
            f'{advice}. Or set warm_start = {{}} and mix = "balanced"' if isinstance(self.generator, CVAE) else advice
        )

    def _warm_start_phases(self) -> list[Phase[GeFLState]]:
        if (how := self.warm_start) is None:
            return []
        assert isinstance(self.generator, CVAE)
        start = how.decoder_start(self.generator)
        distil = Phase("distil", self.distill_decoders, rounds=how.distillation_epochs, changes_classifier=False)
        return [start.upload(self.keep_decoders), distil]

    def keep_decoders(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Takes the clients' decoders and label counts (warm start)."""
        return replace(state, warm_start=WarmStartState(reduced["decoder"], reduced["labels"]))

    def distill_decoders(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Trains the generator for one epoch on the images of the clients' decoders (warm start)."""
        assert self.warm_start is not None
        assert state.warm_start is not None
        assert isinstance(self.generator, CVAE)
        generator, rest = self.warm_start.distill(server, self.generator, state.generator, state.warm_start)
        last = server.round + 1 == self.warm_start.distillation_epochs
        return replace(state, generator=generator, warm_start=None if last else rest)

    def private_trainings(self) -> dict[str, list[DeclaredTraining]] | None:
        if not self.is_declared or self.warm_start is not None:
            return None
        return {"generator": [self.declare_generator()], "joint": [self.training.declare()]}

    def trained_networks(self, server: Server) -> list[TrainedNetwork]:
        return [self.new_generator(server, server.task)]

    def send_generator(self, server: Server, state: GeFLState, info: ClientInfo) -> GeneratorStart:
        """Returns the generator and its progress."""
        return GeneratorStart(state.generator, server.round / (self.generator_rounds + self.interleaved))

    def train_generator(self, client: Client, sent: GeneratorStart) -> Reply[SentGenerator]:
        """Trains the generator on the client for T_g epochs (step 1). The optimizer's state stays on the client."""
        trained, loss = self.train_local_generator(client, client.task, sent.generator, client.data, sent.progress)
        return Reply(SentGenerator(trained), metrics={"loss": loss})  # unweighted, as in the paper

    def keep_generator(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Takes the mean over all clients, by the server's optimizer."""
        generator, moments = self.update_generator(
            server, server.task, state.generator, reduced["generator"], state.moments
        )
        return GeFLState(generator, state.classifiers, moments=moments)

    def send_request(self, server: Server, state: GeFLState, info: ClientInfo) -> SumsRequest:
        """Sends how many examples a client has at most, and the generator of the pass before."""
        return SumsRequest({}, count_largest(server), state.generator)

    def estimate(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Estimates the generator from the sums over all clients."""
        return replace(state, generator=self.estimate_generator(server, server.task, state.generator, reduced))

    def keep_pool(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Draws a new pool."""
        return replace(state, pool=self.draw_pool(server, server.task, state.generator))

    def send_both(self, server: Server, state: GeFLState, info: ClientInfo) -> GeFLSent:
        """Returns the generator or a pool of its examples, and the classifier of the client's architecture."""
        return GeFLSent(self.supply(state.generator, state.pool), state.classifiers[info.architecture])

    def train_classifier(self, client: Client, sent: GeFLSent) -> Reply[Model]:
        """Trains the classifier on the client (step 2): T_s epochs on generated, then T_r epochs on real examples."""
        network = build_classifier(client, client.info.architecture, sent.classifier)
        metrics = self.train_jointly(network, client, client.task, sent.supply, client.data)
        return Reply(Model(weights_of(network)), weight=len(client.data), metrics=metrics)

    def keep_classifiers(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """Takes the means as the weights of each architecture. An architecture without an upload keeps its weights."""
        return replace(state, classifiers=state.classifiers | reduced["classifier"])

    def send_classifier(self, server: Server, state: GeFLState, info: ClientInfo) -> Model:
        return Model(state.classifiers[info.architecture])

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, client.info.architecture, sent.classifier)

    def generate(self, server: Server, state: GeFLState, y: Tensor) -> Tensor:
        return self.sample_from(server, server.task, state.generator, y)


def _examples(client: Client, extractor: Weights) -> tuple[Task, Data]:
    """Returns the client's examples on the scale of networks, and their task."""
    return client.task, Data(normalize_pixels(client.data.x), client.data.y)
