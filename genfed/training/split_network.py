"""Networks in two parts: an extractor that can be shared, and a header.

Such a network has exactly two children, `extractor` and `header`, and computes header(extractor(x)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Reply
from genfed.core.record import digest, pack
from genfed.core.task import Data, Task, Weights
from genfed.training.classifier import Training, train
from genfed.training.evaluation import predict
from genfed.training.stored_features import StoredFeatures, recall_features
from genfed.training.weights import Model, build_classifier, initial_classifiers, weights_of

FEATURES = Slot("features", StoredFeatures)
"""A client's stored features of its examples, by the last extractor for which it needed them."""


@dataclass(frozen=True)
class SplitNetwork:
    """The weights of a classifier's two parts."""

    extractor: Weights
    header: Weights


def split_parts(weights: Weights) -> tuple[Weights, Weights]:
    """Splits a network's weights into those of the extractor and of the header, without the prefixes of the names."""
    return _strip_prefix("extractor.", weights), _strip_prefix("header.", weights)


def join_parts(extractor: Weights, header: Weights) -> Weights:
    """Joins the weights of both parts to those of the whole network."""
    return {f"extractor.{k}": v for k, v in extractor.items()} | {f"header.{k}": v for k, v in header.items()}


def initial_parts(server: Server) -> tuple[Weights, dict[str, Weights]]:
    """Returns the initial extractor (that of the first architecture) and the initial headers by architecture.

    Raises:
        GenfedError: the architectures cannot share an extractor.
    """
    check_parts(server)
    split = {architecture: split_parts(weights) for architecture, weights in initial_classifiers(server).items()}
    return next(iter(split.values()))[0], {architecture: header for architecture, (_, header) in split.items()}


def load_parts(client: Client, sent: SplitNetwork) -> nn.Module:
    """Returns the client's network with the weights that were sent."""
    return build_classifier(client, client.info.architecture, join_parts(sent.extractor, sent.header))


def train_parts(
    client: Client, sent: SplitNetwork, training: Training, epochs: int | None = None
) -> Reply[SplitNetwork]:
    """Trains extractor and header together on the client's examples.

    Args:
        client: The client.
        sent: The weights that the server sent.
        training: The settings.
        epochs: The passes over the examples; None: the setting's.
    """
    network = load_parts(client, sent)
    loss = train(network, client, training, epochs=epochs)
    return Reply(SplitNetwork(*split_parts(weights_of(network))), weight=len(client.data), metrics={"loss": loss})


def check_parts(server: Server) -> None:
    """Checks that all architectures can share an extractor.

    Raises:
        GenfedError: an architecture lacks one of the two parts, or the extractors differ in names or shapes.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for architecture in server.architectures:
        network = server.new_network(architecture, server.common("classifier", architecture))
        if {name for name, _ in network.named_children()} != {"extractor", "header"}:
            raise GenfedError(
                f"architecture {architecture} has no extractor and header: a network whose extractor is shared has "
                "exactly these two children"
            )
        shapes[architecture] = {k: tuple(v.shape) for k, v in split_parts(weights_of(network))[0].items()}
    first, *others = shapes
    for other in others:
        if shapes[other] != shapes[first]:
            raise GenfedError(f"architectures {first} and {other} have different extractors, which cannot be averaged")


def find_shared_feature_task(server: Server) -> Task:
    """Returns the task of classifying the features of the extractor that all architectures share.

    Raises:
        GenfedError: the features differ in shape, or some are below 0.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    unknown: GenfedError | None = None
    for architecture in server.architectures:
        network = server.new_network(architecture, server.common("classifier", architecture))
        x = torch.randn(8, *server.task.shape, generator=server.common("shape")).clamp(-1, 1)
        try:
            with torch.no_grad():
                features: Tensor = network.get_submodule("extractor").eval()(x.to(server.device))
        except GenfedError as error:  # only the architecture's site can run it, and checks it there
            unknown = error
            continue
        if bool((features < 0).any()):
            raise GenfedError(
                f"architecture {architecture}: its extractor gives features below 0, which generators cannot generate: "
                "let it end in a ReLU"
            )
        shapes[architecture] = tuple(features.shape[1:])
    if unknown and not shapes:
        raise unknown
    first, *others = shapes
    for other in others:
        if shapes[other] != shapes[first]:
            raise GenfedError(
                f"architectures {first} and {other} have features of the shapes {shapes[first]} and {shapes[other]}: "
                "one generator cannot generate both"
            )
    return Task("features", shapes[first], server.task.classes)


def find_feature_task(network: nn.Module, task: Task) -> Task:
    """Returns the task of classifying the extractor's features, whose shape is found by one forward pass."""
    device = next(network.parameters()).device
    with torch.no_grad():
        features: Tensor = network.get_submodule("extractor").eval()(torch.zeros(1, *task.shape, device=device))
    return Task("features", tuple(features.shape[1:]), task.classes)


def load_features(client: Client, network: nn.Module) -> Data:
    """Returns the features of the client's examples, float32 [n, *feature shape], computed once for each extractor."""
    extractor = network.get_submodule("extractor")
    of = digest(pack(Model(weights_of(extractor))), 32)  # a server could look for two extractors of one short digest
    return recall_features(client, FEATURES, of, lambda: predict(extractor, client.data.x))


def _strip_prefix(prefix: str, weights: Weights) -> Weights:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
