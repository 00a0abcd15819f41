"""GeFL. Kang, Cha, Kang, GeFL: Model-Agnostic Federated Learning with Generative Models, arXiv 2412.18460,
Algorithm 1: a generator is trained federatedly, then every client trains its own architecture on generated and on real
examples.
"""

from dataclasses import dataclass, replace
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
from genfed.core.task import Data, Weights
from genfed.methods.bases.federated_generator import (
    GENERATOR_MEMORY,
    FederatedGenerator,
    GeneratedSupply,
    GeneratorStart,
    SentGenerator,
)
from genfed.training.classifier import train
from genfed.training.weights import Model, build_classifier, initial_classifiers, weights_of


@dataclass(frozen=True)
class GeFLState:
    """The global generator and the global weights of each architecture."""

    generator: Weights
    classifiers: dict[str, Weights]
    pool: Data | None = None
    """What the server drew for this round; None where clients draw their own."""


@dataclass(frozen=True)
class GeFLSent:
    """What a joint round starts from."""

    supply: GeneratedSupply
    classifier: Weights


@settings
class GeFL(FederatedGenerator[GeFLState]):
    """A generator that all clients train together; then each client trains its classifier on generated and real
    examples.

    1. generator, `generator_rounds` rounds. Server → client: the generator. Client: trains it on its examples. Client →
       server: the generator. The server averages the generators, all alike.
    2. pool, before each joint round if `pool` = "server", on the server: draws examples from the generator.
    3. joint, `rounds` rounds. Server → client: the generator or the pool, and the weights of its architecture. Client:
       trains the classifier on generated examples, then on its own. Client → server: the weights. The server averages
       them within an architecture, weighted by examples. After each of the first `interleaved` joint rounds there is
       one more generator round.

    >>> from genfed.core.phase import flatten_phases
    >>> [phase.name for phase in flatten_phases(GeFL(rounds=2, interleaved=1).phases())]
    ['generator', 'joint', 'generator', 'joint']
    """

    state = GeFLState
    generates = True

    interleaved: Annotated[int, Field(ge=0)] = 0
    """Further generator rounds, one after each of the first so many joint rounds (the paper's DCGAN has 50); 0: the
    generator stands still once the joint rounds begin."""

    def __post_init__(self) -> None:
        if self.interleaved > self.rounds:
            raise GenfedError(f"interleaved = {self.interleaved}: at most rounds = {self.rounds} is allowed")

    def init(self, server: Server) -> GeFLState:
        return GeFLState(self.initial_generator(server, server.task), initial_classifiers(server))

    def phases(self) -> list[Phase[GeFLState] | Repeat[GeFLState]]:
        generator = Phase(
            "generator",
            self.keep_generator,
            self.send_generator,
            self.train_generator,
            aggregate={"generator": Mean()},
            rounds=self.generator_rounds,
            slots=(GENERATOR_MEMORY,),
            changes_classifier=False,
        )
        joint = Phase(
            "joint",
            self.keep_classifiers,
            self.send_both,
            self.train_classifier,
            aggregate={"classifier": Mean(by="architecture")},
        )
        draw = Phase("pool", self.keep_pool, changes_classifier=False)
        # A generator round after a joint one starts from the generator that the joint one drew from: the same as
        # training it at the end of the joint round, as the paper has it.
        both: list[Phase[GeFLState] | Repeat[GeFLState]] = [
            self.joint_rounds(1, draw, joint),
            replace(generator, rounds=1),
        ]
        together = Repeat(self.interleaved, both)
        return [generator, together, self.joint_rounds(self.rounds - self.interleaved, draw, joint)]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"generator": [self.declare_generator()], "joint": [self.training.declare()]}

    def trained_networks(self, server: Server) -> list[TrainedNetwork]:
        return [self.new_generator(server, server.task)]

    def send_generator(self, server: Server, state: GeFLState, info: ClientInfo) -> GeneratorStart:
        """The global generator."""
        return GeneratorStart(state.generator, server.round / (self.generator_rounds + self.interleaved))

    def train_generator(self, client: Client, sent: GeneratorStart) -> Reply[SentGenerator]:
        """Step 1, on a client: T_g epochs; Adam's moments stay here from round to round."""
        trained, loss = self.train_local_generator(client, client.task, sent.generator, client.data, sent.progress)
        return Reply(SentGenerator(trained), metrics={"loss": loss})  # unweighted, as the paper has it

    def keep_generator(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """The mean over all clients."""
        return GeFLState(reduced["generator"], state.classifiers)

    def keep_pool(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """A new pool, where the server draws one."""
        return replace(state, pool=self.draw_pool(server, server.task, state.generator))

    def send_both(self, server: Server, state: GeFLState, info: ClientInfo) -> GeFLSent:
        """The generator, or a pool of its examples, and the client's architecture."""
        return GeFLSent(self.supply(state.generator, state.pool), state.classifiers[info.architecture])

    def train_classifier(self, client: Client, sent: GeFLSent) -> Reply[Model]:
        """Step 2, on a client: T_s epochs on generated, then T_r epochs on real examples."""
        network = build_classifier(client, client.info.architecture, sent.classifier)
        metrics = self.train_on_generated(network, client, client.task, sent.supply)
        metrics["loss"] = train(network, client, self.training)
        return Reply(Model(weights_of(network)), weight=len(client.data), metrics=metrics)

    def keep_classifiers(self, server: Server, state: GeFLState, reduced: Reduced) -> GeFLState:
        """The means within each architecture; one that nobody answered for keeps its own."""
        return replace(state, classifiers=state.classifiers | reduced["classifier"])

    def send_classifier(self, server: Server, state: GeFLState, info: ClientInfo) -> Model:
        return Model(state.classifiers[info.architecture])

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, client.info.architecture, sent.classifier)

    def generate(self, server: Server, state: GeFLState, y: Tensor) -> Tensor:
        return self.sample_from(server, server.task, state.generator, y)
