"""Feature spaces of GeFL-F: how a client's examples become features, and which of its networks classifies them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genfed.core.client import Client, Server, Slot
from genfed.core.method import TrainedNetwork
from genfed.core.task import Data, Task, Weights
from genfed.encoders.encoder import ENCODED, Encoder, build_encoder, encode_examples
from genfed.generators.gaussian import Gaussian
from genfed.generators.statistics_generator import STEPS
from genfed.training.evaluation import predict
from genfed.training.split_network import (
    FEATURES,
    SplitNetwork,
    find_feature_task,
    find_shared_feature_task,
    initial_parts,
    load_features,
    load_parts,
)
from genfed.training.weights import build_classifier, new_classifier, weights_of


class OpenHeader(NamedTuple):
    """A client's header and what it learns from."""

    header: nn.Module
    """The header, from features of `task` to logits."""
    task: Task
    """The task of classifying features."""
    features: Data
    """The features of the client's examples."""


class FeatureSpace(ABC):
    """How examples become features. What the server sends of it is called the extractor."""

    slot: Slot[Any]
    """Slot in which a client stores its features."""

    @abstractmethod
    def begin(self, server: Server) -> tuple[Weights, dict[str, Weights]]:
        """Returns the extractor, and the initial headers by architecture.

        Raises:
            GenfedError: the architectures do not fit.
        """

    @abstractmethod
    def find_task(self, server: Server) -> Task:
        """Returns the task of classifying features."""

    @abstractmethod
    def encode(self, client: Client, extractor: Weights) -> tuple[Task, Data]:
        """Returns the task of classifying features, and the features of the client's examples."""

    @abstractmethod
    def open_header(self, client: Client, sent: SplitNetwork) -> OpenHeader:
        """Returns the client's header with the weights that were sent, and what it learns from."""

    @abstractmethod
    def represent(self, server: Server, extractor: Weights, x: Tensor) -> Tensor:
        """Returns the features of examples x (as in `Data.x`), on the CPU."""

    @abstractmethod
    def join(self, client: Client, sent: SplitNetwork) -> nn.Module:
        """Returns the client's classifier of examples."""

    def trained_headers(self, server: Server) -> list[TrainedNetwork]:
        """Returns the headers, where they are not parts of the clients' classifiers."""
        return []


class SharedExtractor(FeatureSpace):
    """The features of the extractor that all architectures share, once it is trained."""

    slot = FEATURES

    def begin(self, server: Server) -> tuple[Weights, dict[str, Weights]]:
        return initial_parts(server)

    def find_task(self, server: Server) -> Task:
        return find_shared_feature_task(server)

    def encode(self, client: Client, extractor: Weights) -> tuple[Task, Data]:
        network = client.new_network(client.rng)
        network.get_submodule("extractor").load_state_dict(extractor)
        return find_feature_task(network, client.task), load_features(client, network)

    def open_header(self, client: Client, sent: SplitNetwork) -> OpenHeader:
        network = load_parts(client, sent)
        task = find_feature_task(network, client.task)
        return OpenHeader(network.get_submodule("header"), task, load_features(client, network))

    def represent(self, server: Server, extractor: Weights, x: Tensor) -> Tensor:
        network = server.new_network(server.architectures[0], server.common("shape")).get_submodule("extractor")
        network.load_state_dict(extractor)
        return predict(network, x.to(server.device)).cpu()

    def join(self, client: Client, sent: SplitNetwork) -> nn.Module:
        return load_parts(client, sent)


@dataclass(frozen=True)
class FixedEncoder(FeatureSpace):
    """The features of an encoder that learns nothing. A header is a network of the client's own architecture that takes
    features. What is sent as the extractor is the digest of the encoder, and what features are whitened by.
    """

    encoder: Encoder
    slot = ENCODED

    def begin(self, server: Server) -> tuple[Weights, dict[str, Weights]]:
        built = build_encoder(self.encoder, server)
        digest = torch.frombuffer(bytearray.fromhex(built.digest), dtype=torch.uint8)
        return {"digest": digest}, {name: weights_of(header) for name, header in self._headers(server, built.task)}

    def find_task(self, server: Server) -> Task:
        return build_encoder(self.encoder, server).task

    def encode(self, client: Client, extractor: Weights) -> tuple[Task, Data]:
        features = encode_examples(client, self.encoder, _read_digest(extractor))
        features = replace(features, x=whiten(features.x, extractor))
        return Task("features", tuple(features.x.shape[1:]), client.task.classes), features

    def open_header(self, client: Client, sent: SplitNetwork) -> OpenHeader:
        task, features = self.encode(client, sent.extractor)
        header = build_classifier(client, client.info.architecture, sent.header, task=task)
        return OpenHeader(header, task, features)

    def represent(self, server: Server, extractor: Weights, x: Tensor) -> Tensor:
        built = build_encoder(self.encoder, server, _read_digest(extractor))
        return whiten(built.encode(x.to(server.device)).cpu(), extractor)

    def join(self, client: Client, sent: SplitNetwork) -> nn.Module:
        built = build_encoder(self.encoder, client, _read_digest(sent.extractor))
        header = build_classifier(client, client.info.architecture, sent.header, task=built.task)
        between = [Whitening(sent.extractor).to(client.device)] if "mean" in sent.extractor else []
        return nn.Sequential(built.network, *between, header)

    def trained_headers(self, server: Server) -> list[TrainedNetwork]:
        task = self.find_task(server)
        return [TrainedNetwork(f"the header of {name}", header, task) for name, header in self._headers(server, task)]

    def _headers(self, server: Server, task: Task) -> list[tuple[str, nn.Module]]:
        names = server.architectures
        return [(name, new_classifier(server, name, server.common("classifier", name), task)) for name in names]


def _read_digest(extractor: Weights) -> str:
    """Returns the digest of the encoder that is sent as the extractor."""
    return bytes(extractor["digest"].tolist()).hex()


Whiten = Literal["none", "diagonal", "full"]
"""What features are whitened by: nothing, the variances within classes, or the covariance within classes."""


def whitening_statistics(kind: Whiten) -> Gaussian:
    """Returns what measures the sums that `estimate_whitening` needs."""
    return Gaussian(covariance="tied" if kind == "full" else "diagonal")


def estimate_whitening(kind: Whiten, task: Task, statistics: Weights) -> Weights:
    """Returns what features are whitened by: their "mean" [d], and the "factor" of the variation within classes, [d]
    standard deviations or a lower triangle [d, d].

    Args:
        kind: What is asked for; not "none".
        task: The task of classifying features.
        statistics: Sums over the examples of all clients, as `whitening_statistics` measures them.

    Raises:
        GenfedError: there are no examples.
    """
    gaussian = whitening_statistics(kind).estimate(task, statistics)
    shares = gaussian["prior"].double()
    mean = shares @ gaussian["mean"].double()
    if kind == "full":
        factor = gaussian["factor"][0]
    else:
        factor = (shares @ gaussian["factor"].double().square()).clamp_min(1 / STEPS**2).sqrt()
    return {"mean": mean.float(), "factor": factor.float()}


def whiten(x: Tensor, how: Mapping[str, Tensor]) -> Tensor:
    """Returns features x [n, d] with mean 0 and variance 1 within classes. `how`: see `estimate_whitening`; without
    "mean" they stay as they are.
    """
    if "mean" not in how:
        return x
    x = x.to(how["mean"].dtype)  # features of an autocast have fewer digits than these steps need
    with torch.autocast(x.device.type, enabled=False):
        factor, centered = how["factor"].to(x), x.flatten(1) - how["mean"].to(x)
        if factor.ndim == 1:
            return (centered / factor).reshape(x.shape)
        white: Tensor = torch.linalg.solve_triangular(factor, centered.T, upper=False).T
        return white.reshape(x.shape)


class Whitening(nn.Module):
    """Whitens features, as a layer of a classifier."""

    mean: Tensor
    factor: Tensor

    def __init__(self, how: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", how["mean"])
        self.register_buffer("factor", how["factor"])

    def forward(self, x: Tensor) -> Tensor:
        """See `whiten`."""
        return whiten(x, {"mean": self.mean, "factor": self.factor})
