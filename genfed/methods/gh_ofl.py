"""GH-OFL. Turazza, Picone, Mamei, The Gaussian-Head OFL Family: One-Shot Federated Learning from Client Global
Statistics, ICLR 2026, arXiv 2602.01186: from sums of fixed features the server has Gaussian heads in closed form, or
trains heads on draws from the Gaussians.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task, Weights
from genfed.generators.gaussian import Gaussian, GaussianNetwork, LinearDiscriminant, linear_discriminant
from genfed.generators.gaussian_mixture import GaussianMixture, GaussianMixtureNetwork
from genfed.methods.bases.drawn_head import draw_features, train_head
from genfed.methods.bases.feature_statistics import FeatureStatistics
from genfed.training.classifier import Training
from genfed.training.fit import Loss

Densities = GaussianNetwork | GaussianMixtureNetwork


@settings
class GHOFL(FeatureStatistics):
    """A head from the class-conditional densities of all clients' features, in closed form or trained on draws.

    1. statistics, once; with a mixture in as many rounds as it has passes. Server → client: the digest of the encoder,
       and the mixture of the pass before. Client: encodes its examples. Client → server: the sums that the generator is
       estimated from. The server estimates the generator, and makes the head that `head` names.

    >>> [phase.name for phase in GHOFL(head="fisher_mix").phases()]
    ['statistics']
    """

    unaugmented = ("head_training",)  # heads learn from features

    head: Literal["closed_form", "fisher_mix", "proto_hyper"] = "closed_form"
    """Head. "closed_form": Bayes' rule, which is naive Bayes for a gaussian with diagonal covariance (NB), linear or
    quadratic discriminant analysis with a tied or full one (LDA, QDA), mixture discriminant analysis for a mixture;
    "fisher_mix": by the angle in the Fisher subspace, trained on draws with a margin; "proto_hyper": naive Bayes plus a
    residual of low rank that learns from draws and from the head in closed form. The last two need a gaussian."""
    rank: Annotated[int, Field(ge=0, le=4096)] = 32
    """Rank of the residual of "proto_hyper", and the most dimensions of the Fisher subspace, which has one fewer than
    there are classes at most. 0: the residual is none."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Margin of the cosine in the loss of "fisher_mix"."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the divergence from the head in closed form in the loss of "proto_hyper"; the rest is cross-entropy."""
    samples: Annotated[int, Field(ge=2)] = 10_000
    """Features that a trained head learns from."""
    head_training: Training = Field(
        default_factory=lambda: Training(epochs=10, batch_size=64, optimizer="adam", learning_rate=1e-3)
    )
    """Training of the head on the drawn features."""

    def __post_init__(self) -> None:
        if not isinstance(self.generator, Gaussian | GaussianMixture):
            raise GenfedError(f"generator = {type(self.generator).__name__}: a gaussian or a mixture is allowed")
        if self.head != "closed_form" and not isinstance(self.generator, Gaussian):
            raise GenfedError(f'head = "{self.head}": its generator is a gaussian; a mixture has "closed_form"')

    def make_head(self, server: Server, generator: Weights) -> Weights:
        if self.head == "closed_form":
            return linear_discriminant(generator) if self._is_linear else generator
        densities = self.load_generator(server, generator)
        assert isinstance(densities, GaussianNetwork)
        draws = draw_features(server, densities, densities.prior, self.samples)
        if self.head == "fisher_mix":
            angles = CosineHead(*find_fisher_subspace(densities, self.rank))
            return train_head(server, angles, draws, self.head_training, angles.margin_loss(self.margin))
        refined = ResidualHead(draws.x.shape[1], len(densities.prior), self.rank, server.common("head"))
        refined.begin(densities)
        refined.to(server.device)
        return train_head(server, refined, draws, self.head_training, refined.loss(densities, self.distillation))

    def new_head(self, features: int, classes: int) -> nn.Module:
        if self.head == "fisher_mix":
            size = min(max(1, self.rank), classes - 1, features)
            return CosineHead(torch.zeros(features), torch.zeros(features, size), torch.zeros(classes, size))
        if self.head == "proto_hyper":
            return ResidualHead(features, classes, self.rank, torch.Generator())
        if self._is_linear:
            return LinearDiscriminant(features, classes)
        densities = self.generator.new(
            Task("features", (features,), tuple(map(str, range(classes)))), torch.Generator()
        )
        assert isinstance(densities, GaussianNetwork | GaussianMixtureNetwork)
        return BayesHead(densities)

    @property
    def _is_linear(self) -> bool:
        return isinstance(self.generator, Gaussian) and self.generator.covariance == "tied"


class BayesHead(nn.Module):
    """Bayes' rule: the logits of a class are log p(x, y) up to a constant. Its state dict is that of the densities."""

    def __init__(self, densities: Densities) -> None:
        super().__init__()
        self.densities = densities

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [n, classes] of features [n, d]."""
        return self.densities.log_joint(x)

    def load_state_dict(self, weights: Weights, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        return self.densities.load_state_dict(weights)


class CosineHead(nn.Module):
    """Logits by the angle between features and a direction per class, in a subspace around a center; for the margin
    see CosFace (Wang et al., CVPR 2018).

    Args:
        center: The center [d].
        subspace: A basis of the subspace [d, r].
        directions: The initial directions of the classes [classes, r].
    """

    SCALE = 16.0
    """Logit of an angle of 0."""
    center: Tensor
    subspace: Tensor

    def __init__(self, center: Tensor, subspace: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("subspace", subspace)
        self.directions = nn.Parameter(directions)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [n, classes] of features [n, d]."""
        z = (x - self.center) @ self.subspace
        return self.SCALE * F.normalize(z, dim=1) @ F.normalize(self.directions, dim=1).T

    def margin_loss(self, margin: float) -> Loss:
        """Returns the cross-entropy in which the cosine of the true class is smaller by `margin`."""

        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            logits: Tensor = self(x)
            return F.cross_entropy(logits - self.SCALE * margin * F.one_hot(y, logits.shape[1]), y, reduction="none")

        return loss


class ResidualHead(nn.Module):
    """Naive Bayes, scaled by a learned factor, plus a residual of low rank that is 0 at first. The residual sees
    features of mean 0, with a variance of 1 within classes.

    Args:
        features: Number of features.
        classes: Number of classes.
        rank: Rank of the residual.
        rng: Source of the initial weights.
    """

    center: Tensor
    deviation: Tensor

    def __init__(self, features: int, classes: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        names = tuple(map(str, range(classes)))
        self.base = GaussianNetwork(Task("features", (features,), names), "diagonal")
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.down = nn.Parameter(torch.randn(features, rank, generator=rng) / features**0.5)
        self.up = nn.Parameter(torch.zeros(rank, classes))

    def begin(self, densities: GaussianNetwork) -> None:
        """Takes the variances of the Gaussians, without their correlations, as those of naive Bayes."""
        factor = densities.factor
        deviation = factor if factor.ndim == 2 else factor.square().sum(2).sqrt()
        own = {"prior": densities.prior, "mean": densities.mean, "factor": deviation.expand_as(densities.mean)}
        self.base.load_state_dict(own)
        self.center.copy_(densities.prior @ densities.mean)
        self.deviation.copy_((densities.prior @ self.base.factor.square()).sqrt())
        # Naive Bayes counts correlated features several times: with many, its scores are too far apart to learn from.
        self.log_scale.data.fill_(-math.log(self.base.mean.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [n, classes] of features [n, d]."""
        absent = self.base.prior == 0
        logits = self.log_scale.exp() * self.base.log_joint(x)
        logits = logits + (x - self.center) / self.deviation @ self.down @ self.up
        return logits.masked_fill(absent, -1e6)

    def loss(self, teacher: GaussianNetwork, distillation: float) -> Loss:
        """Returns the loss (1 − distillation) · cross-entropy + distillation · KL(teacher ‖ head)."""

        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            logits: Tensor = self(x)
            entropy = F.cross_entropy(logits, y, reduction="none")
            target = teacher.log_joint(x).log_softmax(1)
            divergence = F.kl_div(logits.log_softmax(1), target, reduction="none", log_target=True).sum(1)
            return (1 - distillation) * entropy + distillation * divergence

        return loss


def find_fisher_subspace(densities: GaussianNetwork, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the center [d] of all classes, the basis [d, r] in which classes are farthest apart compared with the
    spread within a class (Fisher 1936), where that spread has the identity as covariance, and the classes' means there
    [classes, r]; r is at most `rank`, one fewer than there are classes, and d.
    """
    prior, mean, factor = (each.double().cpu() for each in (densities.prior, densities.mean, densities.factor))
    covariance = factor.square().diag_embed() if factor.ndim == 2 else factor @ factor.mT
    within = covariance[0] if len(covariance) == 1 else (prior[:, None, None] * covariance).sum(0)
    center = prior @ mean
    away = (mean - center) * (prior > 0)[:, None]
    inner = torch.linalg.cholesky(within)
    scaled = torch.linalg.solve_triangular(inner, (prior.sqrt()[:, None] * away).T, upper=False)  # [d, classes]
    size = min(max(1, rank), len(prior) - 1, len(center))
    left, _, _ = torch.linalg.svd(scaled, full_matrices=False)
    basis = torch.linalg.solve_triangular(inner.T, left[:, :size], upper=True)
    return center.float(), basis.float(), (away @ basis).float()
