"""Base of methods whose clients upload statistics: they add up what a generator of features is estimated from."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Sum
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.privacy import SumBounds
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.encoders.encoder import ENCODED, Encoder, build_encoder, encode_examples
from genfed.encoders.random_conv import RandomConv
from genfed.generators.gaussian import Gaussian
from genfed.generators.generator import GeneratorNetwork
from genfed.generators.statistics_generator import (
    StatisticsGenerator,
    bound_rows,
    count_examples,
    drop_small_classes,
    narrow,
    narrow_type,
    subtract,
)
from genfed.training.precision import FullPrecision


@dataclass(frozen=True)
class StatisticsState:
    """The server's state: the sum of all statistics, and what was estimated from it."""

    encoder: str
    """Digest of the encoder."""
    statistics: Weights
    """Sums over the examples of all clients in the last pass, int64. Empty: there are none yet."""
    generator: Weights
    """The generator of features for these sums. Empty: there is none yet."""
    head: Weights
    """The head that classifies features. Empty: there is none yet."""


@dataclass(frozen=True)
class StatisticsRequest:
    """What a client is sent before it measures."""

    encoder: str
    """Digest of the server's encoder."""
    largest: int
    """Number of examples of the largest client, which decides how many bits a sum needs."""
    present: Weights
    """The generator that was estimated in the pass before. Empty: this is the first pass."""


@dataclass(frozen=True)
class FeatureHead:
    """What a client is sent to classify examples."""

    encoder: str
    """Digest of the server's encoder."""
    head: Weights
    """The head that classifies its features. Empty: there is none yet."""


@dataclass(frozen=True)
class Statistics:
    """What a client uploads in a pass."""

    statistics: Weights
    """Sums over its examples, int32 or int64."""


@settings
class FeatureStatistics(Method[StatisticsState]):
    """Base of methods whose clients upload statistics of their examples' features, once or in as many passes as the
    generator needs. The sum is the same for any split of the examples over clients.
    """

    state = StatisticsState
    of_features = True
    ignores_architecture = True
    unprotected_upload = "sums and second moments of the features of its examples"

    encoder: InstanceOf[Encoder] = Field(default_factory=lambda: RandomConv())
    """Fixed map from examples to features."""
    generator: InstanceOf[StatisticsGenerator] = Field(default_factory=lambda: Gaussian())
    """Generator of features that is estimated from the sums."""

    def init(self, server: Server) -> StatisticsState:
        return StatisticsState(build_encoder(self.encoder, server).digest, {}, {}, {})

    def phases(self) -> list[Phase[StatisticsState]]:
        smallest = self.generator.minimum_class_count
        return [
            Phase(
                "statistics",
                self.estimate,
                self.request,
                self.measure,
                aggregate={"statistics": Sum()},
                rounds=self.generator.passes,
                slots=(ENCODED,),
                screen=self.screen,
                expected=self.expected,
                by_class=True,
                # One example more can bring a class of several into the sums: they have no bound then.
                noise_scales=self.noise_scales if self.generator.bounded and not smallest else None,
                smallest_class=smallest,
                join_sums={"statistics": self.generator.join_groups} if self.generator.joins_groups else {},
            )
        ]

    def request(self, server: Server, state: StatisticsState, info: ClientInfo) -> StatisticsRequest:
        """Sends the digest of the encoder, how many examples a client has at most, and the present generator."""
        present = state.generator if self.generator.passes > 1 else {}
        return StatisticsRequest(state.encoder, count_largest(server), present)

    def measure(self, client: Client, sent: StatisticsRequest) -> Reply[Statistics]:
        """Adds up the statistics of the client's features."""
        features = encode_examples(client, self.encoder, sent.encoder)
        if client.sums is None:
            self.generator.check_examples(features.x)
        task = Task("features", tuple(features.x.shape[1:]), client.task.classes)
        if client.sums is not None:
            norm = client.sums.bounds.norm(features.x.shape[1])
            features = replace(features, x=bound_rows(features.x, norm))
        return measure_features(self.generator, features, task, sent.largest, sent.present)

    def expected(self, server: Server) -> Statistics:
        """Returns statistics of the shapes and the type that every client uploads."""
        return expect_statistics(server, self.generator, build_encoder(self.encoder, server).task)

    def noise_scales(self, bounds: SumBounds, values: Mapping[str, Weights]) -> Mapping[str, Weights]:
        """See `Phase.noise_scales`."""
        return {"statistics": self.generator.noise_scales(values["statistics"], bounds)}

    def screen(self, server: Server, info: ClientInfo, upload: Statistics) -> None:
        """Refuses statistics that the client's number of examples cannot have.

        Raises:
            GenfedError: see `StatisticsGenerator.check`.
        """
        screen_statistics(self.generator, upload, build_encoder(self.encoder, server).task, info, server.round)

    def estimate(self, server: Server, state: StatisticsState, reduced: Reduced) -> StatisticsState:
        """Estimates the generator from the sums, and the head from the generator."""
        return self.with_statistics(server, state, reduced["statistics"])

    def with_statistics(self, server: Server, state: StatisticsState, statistics: Weights) -> StatisticsState:
        """Returns the state after a pass with these sums, whichever clients they come from."""
        statistics = {name: value.long() for name, value in statistics.items()}
        task, draws = build_encoder(self.encoder, server, state.encoder).task, server.common("generator")
        present = state.generator if self.generator.passes > 1 else {}
        if server.sums is not None and server.sums.multiplier:
            scales = self.generator.noise_scales(statistics, server.sums.bounds)
            deviations = {name: scale * server.sums.multiplier for name, scale in scales.items()}
            generator = self.generator.estimate_noisy(task, statistics, deviations)
        else:
            generator = self.generator.estimate(task, statistics, present or None, draws)
        return replace(state, statistics=statistics, generator=generator, head=self.make_head(server, generator))

    def forgets(self) -> bool:
        return self.generator.passes == 1  # later passes depend on the client in more ways than by its own sums

    def forget(
        self, server: Server, state: StatisticsState, info: ClientInfo, upload: Callable[[], Statistics]
    ) -> StatisticsState:
        return self.with_statistics(server, state, subtract(state.statistics, upload().statistics))

    @abstractmethod
    def make_head(self, server: Server, generator: Weights) -> Weights:
        """Returns the head for this generator."""

    @abstractmethod
    def new_head(self, features: int, classes: int) -> nn.Module:
        """Returns a head for features [n, d] that takes the weights of `make_head`."""

    def send_classifier(self, server: Server, state: StatisticsState, info: ClientInfo) -> FeatureHead:
        return FeatureHead(state.encoder, state.head)

    def classifier(self, client: Client, sent: FeatureHead) -> nn.Module:
        built = build_encoder(self.encoder, client, sent.encoder)
        head = self.new_head(built.task.shape[0], len(built.task.classes)).to(client.device)
        if sent.head:  # before the upload there is none
            head.load_state_dict(sent.head)
        return FullPrecision(built.network, head)

    def load_generator(self, server: Server, weights: Weights) -> GeneratorNetwork:
        """Returns the generator of features with these weights, on the server's device."""
        network = self.generator.new(build_encoder(self.encoder, server).task, server.rng)
        network.load_state_dict(weights)
        return network.to(server.device)

    def generate(self, server: Server, state: StatisticsState, y: Tensor) -> Tensor:
        if not state.generator:
            raise GenfedError("no client has uploaded its statistics yet")
        return self.load_generator(server, state.generator).sample(y.to(server.device), server.rng)

    def represent(self, server: Server, state: StatisticsState, x: Tensor) -> Tensor:
        return build_encoder(self.encoder, server, state.encoder).encode(x.to(server.device)).cpu()


def count_largest(server: Server) -> int:
    """Returns the number of examples of the largest client."""
    return max(client.examples for client in server.clients)


def measure_features(
    generator: StatisticsGenerator, features: Data, task: Task, largest: int, present: Weights
) -> Reply[Statistics]:
    """Returns a client's reply with the statistics of its features, int32 if their sum over all clients always fits,
    otherwise int64. Classes of fewer examples than the generator adds up are left out; the log says how many examples.

    Args:
        generator: The generator.
        features: Features and labels.
        task: The task of classifying them.
        largest: Number of examples of the largest client, as the server says.
        present: The generator that was estimated in the pass before. Empty: this is the first pass.

    Raises:
        GenfedError: the client has more examples than the server says that any has.
    """
    if len(features) > largest:
        raise GenfedError(f"it has {len(features)} examples; the server says that none has over {largest}")
    counts = torch.bincount(features.y, minlength=len(task.classes))
    kept = features[drop_small_classes(counts, generator.minimum_class_count)[features.y] > 0]
    statistics = narrow(generator.measure(kept, task, present or None), largest * generator.shares * generator.largest)
    left_out = {"left_out": float(len(features) - len(kept))} if generator.minimum_class_count else {}
    return Reply(Statistics(statistics), weight=len(features), metrics=left_out)


def screen_statistics(
    generator: StatisticsGenerator, upload: Statistics, task: Task, info: ClientInfo, done: int
) -> None:
    """Refuses statistics that the client's number of examples cannot have; for `Phase.screen`.

    Args:
        generator: The generator.
        upload: What the client uploaded.
        task: The task of its features.
        info: The client.
        done: The number of passes before.

    Raises:
        GenfedError: see `StatisticsGenerator.check`.
    """
    counted = count_examples(upload.statistics, info.examples, generator.minimum_class_count)
    generator.check(upload.statistics, task, counted, done)


def expect_statistics(server: Server, generator: StatisticsGenerator, task: Task) -> Statistics:
    """Returns statistics of the shapes and the type that every client uploads in round `server.round`, on "meta"."""
    kind = narrow_type(count_largest(server) * generator.shares * generator.largest)
    shapes = generator.shapes(task, server.round)
    return Statistics({name: torch.empty(shape, dtype=kind, device="meta") for name, shape in shapes.items()})
