"""FedPFT. Beitollahi, Bie, Hemati, Brunswic, Li, Chen, Zhang, Parametric Feature Transfer: One-shot Federated Learning
with Foundation Models, arXiv 2402.01862: clients upload Gaussian mixtures of their features once; the server trains the
head on draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Task, Weights
from genfed.encoders.encoder import ENCODED, build_encoder, encode_examples
from genfed.generators.gaussian_mixture import GaussianMixture, GaussianMixtureNetwork
from genfed.generators.statistics_generator import LARGEST_FEATURE, StatisticsGenerator, estimate_alone
from genfed.methods.bases.drawn_head import draw_features, new_layers, train_head
from genfed.methods.bases.feature_statistics import FeatureStatistics, StatisticsRequest, StatisticsState
from genfed.training.classifier import Training
from genfed.training.upload_checks import check_counts, check_form


@dataclass(frozen=True)
class ClientMixtures:
    """The only upload of a client."""

    counts: Tensor
    """Number of its examples of each class, int64 [classes]."""
    mixtures: Weights
    """The mixtures of the p classes that it has, in order: weight [p, k], mean and deviation [p, k, d]."""


@settings
class FedPFT(FeatureStatistics):
    """A head trained on draws from the Gaussian mixtures that clients fit to their own features.

    1. mixtures, once. Server → client: the digest of the encoder. Client: encodes its examples, and fits a mixture to
       the features of each of its classes. Client → server: the mixtures, and the number of its examples of each class.
       The server draws features from the mixtures of all clients, in proportion to their examples, and trains the head.

    >>> [phase.name for phase in FedPFT().phases()]
    ['mixtures']
    """

    unprotected_upload = "how many examples of each class it has, and Gaussian mixtures of their features"
    unaugmented = ("head_training",)  # heads learn from features

    # differs from the paper: covariances are diagonal; it has full and spherical ones too.
    generator: InstanceOf[StatisticsGenerator] = Field(default_factory=lambda: GaussianMixture(em_steps=50))
    """Mixture that a client fits to the features of each class; its EM steps are the client's own, no rounds."""
    samples: Annotated[int, Field(ge=2)] = 10_000
    """Features that the server draws."""
    hidden: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Width of the head's hidden layer. 0: the head is linear."""
    head_training: Training = Field(
        default_factory=lambda: Training(epochs=20, batch_size=64, optimizer="adam", learning_rate=1e-3)
    )
    """Training of the head on the drawn features."""

    def __post_init__(self) -> None:
        if not isinstance(self.generator, GaussianMixture):
            raise GenfedError(f"generator = {type(self.generator).__name__}: clients fit mixtures, its kind is mixture")

    def phases(self) -> list[Phase[StatisticsState]]:
        every = {"counts": Collect(), "mixtures": Collect()}
        return [Phase("mixtures", self.collect, self.request, self.fit, every, slots=(ENCODED,), check=self.check)]

    def fit(self, client: Client, sent: StatisticsRequest) -> Reply[ClientMixtures]:
        """Fits a mixture to the client's features of each class."""
        features = encode_examples(client, self.encoder, sent.encoder)
        self.generator.check_examples(features.x)
        task = Task("features", tuple(features.x.shape[1:]), client.task.classes)
        # All clients begin with the same directions, so one client alone has the mixture of federated EM.
        fitted = estimate_alone(self.generator, features, task, client.common("generator"))
        counts = torch.bincount(features.y, minlength=len(task.classes)).cpu()
        mixtures = {name: fitted[name][counts > 0] for name in ("weight", "mean", "deviation")}
        return Reply(ClientMixtures(counts, mixtures), weight=len(client.data))

    def check(self, server: Server, info: ClientInfo, upload: ClientMixtures) -> None:
        """Refuses mixtures from which no features can be drawn.

        Raises:
            GenfedError: the counts are not the client's; or the mixtures have other names or shapes, weights that do
                not add up to 1, or means or deviations out of bounds.
        """
        assert isinstance(self.generator, GaussianMixture)
        check_counts(server, info, upload.counts)
        present, parts = int((upload.counts > 0).sum()), self.generator.components
        whole = (present, parts, build_encoder(self.encoder, server).task.shape[0])
        shapes = {"weight": (present, parts), "mean": whole, "deviation": whole}
        if unlike := upload.mixtures.keys() ^ shapes.keys():
            raise GenfedError(f"its mixtures have {min(unlike)!r} too many or too few")
        for name, shape in shapes.items():
            check_form(name, upload.mixtures[name], torch.float32, shape)
        weight, mean, deviation = (upload.mixtures[name] for name in shapes)
        if not bool(((weight >= 0).all(1) & ((weight.sum(1) - 1).abs() < 1e-3)).all()):
            raise GenfedError("the weights of a mixture are not 0 or more with the sum 1")
        inside = (mean.abs() <= LARGEST_FEATURE) & (deviation > 0) & (deviation <= LARGEST_FEATURE)
        if not bool(inside.all()):
            raise GenfedError(f"means of features are within ±{LARGEST_FEATURE}, and deviations above 0 up to it")

    def collect(self, server: Server, state: StatisticsState, reduced: Reduced) -> StatisticsState:
        """Joins the mixtures of all clients, and trains the head on draws from them."""
        generator = join_mixtures(reduced["counts"], reduced["mixtures"])
        return StatisticsState(state.encoder, {}, generator, self.make_head(server, generator))

    def forgets(self) -> bool:
        return False  # the joined mixture does not say which parts are whose

    def load_generator(self, server: Server, weights: Weights) -> GaussianMixtureNetwork:
        network = GaussianMixtureNetwork(build_encoder(self.encoder, server).task, weights["weight"].shape[1])
        network.load_state_dict(weights)
        return network.to(server.device)

    def make_head(self, server: Server, generator: Weights) -> Weights:
        draws = draw_features(server, self.load_generator(server, generator), generator["prior"], self.samples)
        classes = len(server.task.classes)
        head = new_layers(draws.x.shape[1], self.hidden, classes, server.common("head")).to(server.device)
        return train_head(server, head, draws, self.head_training)

    def new_head(self, features: int, classes: int) -> nn.Module:
        return new_layers(features, self.hidden, classes, torch.Generator())


def join_mixtures(counts: Mapping[int, Tensor], mixtures: Mapping[int, Weights]) -> Weights:
    """Returns one mixture per class, with the components of all clients that have the class, weighted by their numbers
    of examples. Classes with fewer components than others have more of weight 0.

    Args:
        counts: Numbers of examples of each class [classes], by client.
        mixtures: See `ClientMixtures`, by client.
    """
    total = torch.stack([*counts.values()]).sum(0)
    parts: list[list[dict[str, Tensor]]] = [[] for _ in total]
    for client, own in counts.items():
        for place, label in enumerate(own.nonzero()[:, 0].tolist()):
            part = {name: value[place] for name, value in mixtures[client].items()}
            parts[label].append(part | {"weight": part["weight"] * (own[label] / total[label])})
    _, k, width = next(iter(mixtures.values()))["mean"].shape
    most = k * max(map(len, parts))
    weight, mean = torch.zeros(len(total), most), torch.zeros(len(total), most, width)
    joined = {"weight": weight, "mean": mean, "deviation": torch.ones_like(mean)}
    for label, found in enumerate(parts):
        for name in joined if found else ():
            value = torch.cat([part[name] for part in found])
            joined[name][label, : len(value)] = value
    return {"prior": (total / total.sum()).float()} | joined
