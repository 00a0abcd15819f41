"""A mixture of Gaussians of features for each class, by federated expectation–maximization. Dempster, Laird, Rubin,
Maximum Likelihood from Incomplete Data via the EM Algorithm, JRSS B 1977; as a classifier it is mixture discriminant
analysis (Hastie, Tibshirani, Discriminant Analysis by Gaussian Mixtures, JRSS B 1996). A step needs sums over examples
alone.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.gaussian import log_prior, shrink_variances
from genfed.generators.generator import CHUNK, GeneratorNetwork
from genfed.generators.statistics_generator import (
    LARGEST_FEATURE,
    STEPS,
    StatisticsGenerator,
    check_counts_and_forms,
    require_examples,
    round_features,
)
from genfed.training.fit import Objective

SHARES = 2**12
"""Number of equal parts of an example that the components of its class divide among themselves."""
_NARROWEST = 1 / STEPS**2
"""Smallest variance of a feature: a component that shrinks to one example keeps the width of a step."""


@settings
class GaussianMixture(StatisticsGenerator):
    """Several Gaussians per class with diagonal covariances, by EM. In the first pass clients add up what the Gaussian
    of each class is estimated from. From it the components begin, moved apart by draws from the run's seed, so nobody
    looks at single examples. In each further pass clients divide every example among the components of its class, in
    4,096 equal shares, and add up: "counts" [classes]; "shares" [classes, k]; "sums" of the features and "squares" of
    them, each as often as there are shares [classes, k, d]. In the first pass k is 1.
    """

    shares: ClassVar[int] = SHARES

    components: Annotated[int, Field(ge=1, le=1024)] = 4
    """Number of Gaussians per class (k)."""
    em_steps: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Number of EM steps, each of which is a round; one Gaussian per class needs none."""
    spread: Annotated[float, Field(gt=0, le=8)] = 0.3
    """Distance of the components from the mean of their class at the beginning, in standard deviations of each feature
    (the deviation of normal draws)."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Weight of the mean variance of a component's features in each of its variances."""

    @property
    def passes(self) -> int:
        return 1 if self.components == 1 else 1 + self.em_steps

    def new(self, task: Task, rng: torch.Generator) -> "GaussianMixtureNetwork":
        """Returns a network whose Gaussians have mean 0 and variance 1."""
        return GaussianMixtureNetwork(task, self.components)

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        x, classes, parts = round_features(data.x, SHARES), len(task.classes), 1 if present is None else self.components
        counts = torch.zeros(classes, dtype=torch.int64)
        shares = torch.zeros(classes, parts, dtype=torch.float64)
        sums = torch.zeros(classes, parts, x.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(sums)
        for label in set(data.y.tolist()):
            rows = x[data.y == label]
            divided = torch.full((len(rows), 1), float(SHARES), dtype=torch.float64, device=x.device)
            if present is not None:
                divided = divide(_score(rows, *(present[name][label].to(x.device) for name in _PARTS)))
            counts[label], shares[label] = len(rows), divided.sum(0)
            sums[label], squares[label] = divided.T @ rows, divided.T @ rows.square()
        exact = {"counts": counts, "shares": shares, "sums": sums, "squares": squares}
        return {name: value.long() for name, value in exact.items()}

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        classes, parts = len(task.classes), self.components if done else 1
        whole = (classes, parts, math.prod(task.shape))
        return {"counts": (classes,), "shares": (classes, parts), "sums": whole, "squares": whole}

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        check_counts_and_forms(statistics, self.shapes(task, done), examples)
        shares, most = statistics["shares"].long(), (STEPS * LARGEST_FEATURE) ** 2
        if bool((shares < 0).any()) or not torch.equal(shares.sum(1), statistics["counts"].long() * SHARES):
            raise GenfedError(f"its shares do not add up to {SHARES} for each example")
        weight, sums, squares = (statistics[name].double() for name in ("shares", "sums", "squares"))
        # Cauchy–Schwarz, as for one Gaussian.
        if bool((sums.square() > weight[..., None] * squares).any() or (squares > weight[..., None] * most).any()):
            raise GenfedError(f"its statistics are not those of {examples} examples within ±{LARGEST_FEATURE}")

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        counts, shares = require_examples(statistics, "estimate a mixture"), statistics["shares"].double()
        taken = shares.clamp_min(1)[..., None]
        mean = statistics["sums"].double() / STEPS / taken
        variance = statistics["squares"].double() / STEPS**2 / taken - mean.square()
        deviation = shrink_variances(variance, self.shrinkage).clamp_min(_NARROWEST).sqrt()
        weight = shares / (counts.clamp_min(1)[:, None] * SHARES)
        if present is None:
            mean, deviation, weight = self._begin(mean, deviation, rng or torch.Generator())
        else:
            alive = (shares > 0)[..., None]  # a component without a share stays where it is, with weight 0
            mean = torch.where(alive, mean, present["mean"].double())
            deviation = torch.where(alive, deviation, present["deviation"].double())
            weight = torch.where((counts > 0)[:, None], weight, present["weight"].double())
        found = {"prior": counts / counts.sum(), "weight": weight, "mean": mean, "deviation": deviation}
        return {name: value.float() for name, value in found.items()}

    def _begin(self, mean: Tensor, deviation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns means, deviations [classes, k, d] and weights [classes, k] around the Gaussian of each class."""
        classes, _, width = mean.shape
        deviation = deviation.repeat(1, self.components, 1)
        if self.components > 1:
            draws = torch.randn(classes, self.components, width, generator=rng, dtype=torch.float64)
            mean = (mean + self.spread * deviation * draws).clamp(-LARGEST_FEATURE, LARGEST_FEATURE)
        return mean, deviation, torch.full((classes, self.components), 1 / self.components, dtype=torch.float64)


_PARTS = ("weight", "mean", "deviation")


def _score(x: Tensor, weight: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Returns log(weight · density) up to a constant for each component, float64 [n, k]. Batches and split do not
    change a bit: x are whole steps and the coefficients are rounded, so the sums over features are exact.

    Args:
        x: Features in whole steps, [n, d].
        weight: Weights of the components [k].
        mean: Their means [k, d].
        deviation: Their standard deviations [k, d].
    """
    variance, mean = deviation.double().square().clamp_min(_NARROWEST) * STEPS**2, mean.double() * STEPS
    # Σ over d of |x · mean / variance| ≤ d · 2⁹ · 2⁹ must stay below 2⁵² when it is multiplied by `scale`.
    scale = 2.0 ** (34 - math.ceil(math.log2(x.shape[1])))
    quadratic, linear = (0.5 / variance * scale).round(), (mean / variance * scale).round()
    exact = (x @ linear.T - x.square() @ quadratic.T) / scale
    constant = -0.5 * (mean.square() / variance + variance.log()).sum(1)
    return exact + constant + weight.double().clamp_min(1e-30).log()


def divide(scores: Tensor) -> Tensor:
    """Returns the shares of the components in each example, in proportion to exp(score): whole numbers as float64
    [n, k] whose sum over k is 4,096. The largest share takes what rounding leaves over.
    """
    shares = (scores.softmax(1) * SHARES).round()
    largest = shares.argmax(1, keepdim=True)
    return shares.scatter_add(1, largest, SHARES - shares.sum(1, keepdim=True))


class GaussianMixtureNetwork(GeneratorNetwork):
    """Several Gaussians of features for each class."""

    prior: Tensor
    weight: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, task: Task, components: int) -> None:
        super().__init__()
        classes, width = len(task.classes), math.prod(task.shape)
        self.shape = task.shape
        self.register_buffer("prior", torch.full((classes,), 1 / classes))
        self.register_buffer("weight", torch.full((classes, components), 1 / components))
        self.register_buffer("mean", torch.zeros(classes, components, width))
        self.register_buffer("deviation", torch.ones(classes, components, width))

    def objectives(self) -> Sequence[Objective]:
        """Returns none: the Gaussians are estimated, not trained."""
        return []

    @torch.no_grad()
    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        chosen = torch.rand(len(y), 1, generator=rng).to(y.device)
        z = torch.randn(len(y), self.mean.shape[2], generator=rng).to(y.device)
        bounds = self.weight.cumsum(1)[y]
        part = (chosen * bounds[:, -1:] >= bounds).sum(1).clamp_max(bounds.shape[1] - 1)
        chunks = zip(*(torch.split(each, CHUNK) for each in (z, y, part)), strict=True)
        drawn = torch.cat([self.mean[c, k] + self.deviation[c, k] * each for each, c, k in chunks])
        return drawn.view(-1, *self.shape)

    def log_joint(self, x: Tensor) -> Tensor:
        """Returns log p(x, y) up to a constant, for features x [n, …] and each class y: [n, classes]. A class without
        examples has a score below all others.
        """
        # In double precision, since x² / variance − 2 x · mean / variance + mean² / variance is a small difference of
        # large numbers.
        wide, mean, variance = x.flatten(1).double(), self.mean.double(), self.deviation.double().square()
        linear, quadratic = (mean / variance).flatten(0, 1), (0.5 / variance).flatten(0, 1)
        constant = self.weight.double().clamp_min(1e-30).log() - 0.5 * (mean.square() / variance + variance.log()).sum(
            2
        )
        scores = wide @ linear.T - wide.square() @ quadratic.T
        joint = (scores.view(len(x), *constant.shape) + constant).logsumexp(2)
        return joint.to(x.dtype) + log_prior(self.prior).to(x.dtype)
