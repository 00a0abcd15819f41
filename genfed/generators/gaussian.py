"""The class-conditional Gaussian of features. Its training is a sum: numbers, sums and second moments of the examples.

With one covariance for all classes it is linear discriminant analysis (Fisher 1936); covariances of classes are shrunk
as in Friedman ("Regularized Discriminant Analysis", JASA 1989).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.privacy import SumBounds
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.generator import CHUNK, GeneratorNetwork
from genfed.generators.noisy_moments import denoise, drop_noisy_counts
from genfed.generators.statistics_generator import (
    LARGEST_FEATURE,
    STEPS,
    StatisticsGenerator,
    check_counts_and_forms,
    require_examples,
    round_features,
    subtract,
)
from genfed.training.fit import Objective

Covariance = Literal["tied", "full", "diagonal"]
CANDIDATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Shrinkages of which "held_out" chooses one."""
HALF = "half_"
"""Prefix of the names of statistics of half of the examples."""


@settings
class Gaussian(StatisticsGenerator):
    """A Gaussian per class, estimated from sums of the clients' features; features are rounded to steps of 1/64 and
    clipped to ±8. Its statistics are: "counts" [classes]; "sums" of the features of each class [classes, d]; and
    "products", the upper triangle of Σ x xᵀ [1 or classes, d (d + 1) / 2], or Σ x² [classes, d].

    >>> Gaussian(shrinkage=0.01).covariance, Gaussian(shrinkage="held_out").bounded
    ('tied', False)
    """

    covariance: Covariance = "tied"
    """Covariance: "tied", one for all classes; "full", one per class; "diagonal", variances of each class alone."""
    tying: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of the tied covariance in that of a class, for "full": 0 is each class's own, 1 is the tied one."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] | Literal["held_out"] = 1e-3
    """Weight of a multiple of the identity, of equal trace, in every covariance. "held_out": of nine weights from 1e-4
    to 1, that by which covariances of half of the examples give the other half the highest likelihood. Clients upload
    the sums of one half too, which doubles the upload: for few examples. Privacy of sums does not support it."""
    noise_floor: Annotated[float, Field(ge=0, le=2)] = 0.12
    """Under privacy of sums: eigenvalues of covariances within classes that are below this share of the noise's largest
    eigenvalue are raised to it, after they were denoised. Without noise it changes nothing."""

    def new(self, task: Task, rng: torch.Generator) -> "GaussianNetwork":
        """Returns a network whose Gaussians have mean 0 and variance 1."""
        return GaussianNetwork(task, self.covariance)

    @property
    def bounded(self) -> bool:
        return self.shrinkage != "held_out"

    @property
    def divides_classes(self) -> bool:
        return self.shrinkage == "held_out"

    @property
    def joins_groups(self) -> bool:
        return self.shrinkage != "held_out"

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        x, classes = round_features(data.x), len(task.classes)
        statistics = self._add_up(x, data.y, classes)
        if self.shrinkage == "held_out":
            half = x.sum(1).remainder(2) == 1  # by the features alone: the same for any split over clients
            of_half = self._add_up(x[half], data.y[half], classes)
            statistics |= {HALF + name: value for name, value in of_half.items()}
        return statistics

    def _add_up(self, x: Tensor, y: Tensor, classes: int) -> Weights:
        """Returns the statistics of features x [n, d] in whole steps."""
        members = F.one_hot(y, classes).double()
        if self.covariance == "diagonal":
            products = members.T @ x.square()
        elif self.covariance == "tied":
            products = fold_triangle((x.T @ x)[None])
        else:
            products = fold_triangle(torch.stack([(rows := x[y == label]).T @ rows for label in range(classes)]))
        exact = {"counts": members.sum(0), "sums": members.T @ x, "products": products}
        return {name: value.long().cpu() for name, value in exact.items()}

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        check_counts_and_forms(statistics, self.shapes(task), examples)
        for part in _halves(statistics) if self.shrinkage == "held_out" else [statistics]:
            self._check_moments(part, math.prod(task.shape), examples)

    def _check_moments(self, statistics: Weights, width: int, examples: int) -> None:
        most = STEPS * LARGEST_FEATURE
        impossible = GenfedError(f"its statistics are not those of {examples} examples within ±{LARGEST_FEATURE}")
        counts, sums, products = (statistics[name].double() for name in ("counts", "sums", "products"))
        if bool((counts < 0).any() or (sums.abs() > counts[:, None] * most).any()):
            raise impossible
        means = sums / counts.clamp_min(1)[:, None]
        if self.covariance == "diagonal":
            if bool((products < sums * means - 0.5).any() or (products > counts[:, None] * most**2).any()):
                raise impossible
            return
        if not are_moments(counts, sums, unfold_triangle(products, width)):
            raise impossible

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        counts = require_examples(statistics, "estimate a Gaussian")
        width, shrinkage = math.prod(task.shape), self._choose_shrinkage(statistics, math.prod(task.shape))
        mean = statistics["sums"].double() / STEPS / counts.clamp_min(1)[:, None]
        factor = self._find_factors(statistics, width, shrinkage)
        prior = counts / counts.sum()
        return {"prior": prior.float(), "mean": mean.float(), "factor": factor.float()}

    def _choose_shrinkage(self, statistics: Weights, width: int) -> float:
        """Returns the shrinkage: the one that is set, or that of the highest likelihood of either half by the other."""
        if self.shrinkage != "held_out":
            return self.shrinkage
        one, other = _halves(statistics)
        if min(int(half["counts"].sum()) for half in (one, other)) < 2:
            return max(CANDIDATES)  # too few examples to tell
        pairs = ((one, other), (other, one))
        return max(CANDIDATES, key=lambda value: sum(self._judge(*pair, width, value) for pair in pairs))

    def _judge(self, fitted: Weights, held: Weights, width: int, shrinkage: float) -> float:
        """Returns the log likelihood of how `held` varies within classes, by the covariances of `fitted`."""
        factor = self._find_factors(fitted, width, shrinkage)
        counts, sums, products = (held[name].double() for name in ("counts", "sums", "products"))
        means = sums / counts.clamp_min(1)[:, None]
        if self.covariance == "diagonal":
            within = (products - sums * means) / STEPS**2
            each = counts[:, None] * factor.log() + within / factor.square() / 2
            return -float(each[fitted["counts"] > 1].sum())  # one example has no variance
        between = means[:, :, None] * sums[:, None, :]
        if len(factor) == 1:
            counts, between = counts.sum(0, keepdim=True), between.sum(0, keepdim=True)
        within = (unfold_triangle(products, width) - between) / STEPS**2
        volume = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return -float((counts * volume + (torch.cholesky_inverse(factor) * within).sum((1, 2)) / 2).sum())

    def join_groups(self, groups: Sequence[Weights]) -> Weights:
        """Returns statistics with the median share and the median mean of each class, by coordinate, and the geometric
        median of the second moments within classes: a mixture of those of the groups, so that they stay moments.
        """
        if len(groups) == 1:
            return groups[0]
        counts, sums, products = (
            torch.stack([each[name].double() for each in groups]) for name in ("counts", "sums", "products")
        )
        size, means = counts.sum(1), sums / counts.clamp_min(1)[..., None]
        absent = (counts == 0)[..., None]
        total = ((counts / size.clamp_min(1)[:, None]).median(0).values * size.sum()).round()
        mean = means.masked_fill(absent, math.nan).nanmedian(0).values.nan_to_num()
        within = torch.stack([p - self._between(*of) for p, *of in zip(products, counts, means, strict=True)])
        scale = (counts if len(within[0]) == counts.shape[1] else size[:, None]).clamp_min(1)[..., None]
        weights = geometric_median((within / scale).flatten(1))
        share = torch.einsum("g,gkt->kt", weights, within / scale)
        joined = share * (total if len(share) == len(total) else total.sum()[None])[:, None]
        rounded = (total[:, None] * mean).round()
        between = self._between(total, rounded / total.clamp_min(1)[:, None])
        found = {"counts": total, "sums": rounded, "products": joined + between}
        return {name: value.round().long() for name, value in found.items()}

    def _between(self, counts: Tensor, means: Tensor) -> Tensor:
        """Returns the products of examples that are all at the mean [classes, d] of their class."""
        if self.covariance == "diagonal":
            return counts[:, None] * means.square()
        if self.covariance == "tied":
            return fold_triangle((means.T @ (counts[:, None] * means))[None])
        return fold_triangle(counts[:, None, None] * means[:, :, None] * means[:, None, :])

    def noise_scales(self, statistics: Weights, bounds: SumBounds) -> Weights:
        width = statistics["sums"].shape[1]
        norm = bounds.norm(width) * STEPS
        products = torch.full(statistics["products"].shape, norm**2 / math.sqrt(bounds.product_share)).double()
        if self.covariance != "diagonal":
            diagonal = products[:, _diagonal_places(width)]
            products /= math.sqrt(2)  # ‖x xᵀ‖² counts what is off the diagonal twice, and the triangle has it once
            products[:, _diagonal_places(width)] = diagonal
        return {
            "counts": torch.full(statistics["counts"].shape, 1 / math.sqrt(bounds.count_share)).double(),
            "sums": torch.full(statistics["sums"].shape, norm / math.sqrt(bounds.sum_share)).double(),
            "products": products,
        }

    def estimate_noisy(self, task: Task, statistics: Weights, deviations: Weights) -> Weights:
        return self.estimate(task, self._denoise(statistics, deviations))

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        classes, width = len(task.classes), math.prod(task.shape)
        triangle = width * (width + 1) // 2
        products = {"tied": (1, triangle), "full": (classes, triangle), "diagonal": (classes, width)}
        shapes = {"counts": (classes,), "sums": (classes, width), "products": products[self.covariance]}
        if self.shrinkage == "held_out":
            shapes |= {HALF + name: shape for name, shape in shapes.items()}
        return shapes

    def _denoise(self, statistics: Weights, deviations: Weights) -> Weights:
        """Returns noisy statistics as some set of examples could have them: classes whose count could be noise are
        empty, and no variance within classes is below what its noise allows.
        """
        counts, sums, products = (statistics[name].double() for name in ("counts", "sums", "products"))
        counts = drop_noisy_counts(counts, deviations["counts"])
        sums = sums * (counts > 0)[:, None]
        n = counts.clamp_min(1)[:, None]
        between, extra = sums[:, :, None] * sums[:, None, :] / n[:, :, None], deviations["sums"].square() / n
        if self.covariance == "diagonal":
            squares = between.diagonal(dim1=1, dim2=2)
            within = (products - squares + extra).maximum(self.noise_floor * deviations["products"])
            return {"counts": counts, "sums": sums, "products": within + squares}
        if self.covariance == "tied":
            between, extra = between.sum(0, keepdim=True), (extra * (counts > 0)[:, None]).sum(0, keepdim=True)
        within = unfold_triangle(products, sums.shape[1]) - between + torch.diag_embed(extra)
        noise = float(deviations["products"].min())  # that off the diagonals
        within = denoise(within, noise, self.noise_floor)
        return {"counts": counts, "sums": sums, "products": fold_triangle(within + between)}

    def _find_factors(self, statistics: Weights, width: int, shrinkage: float) -> Tensor:
        """Returns the standard deviations [classes, d], or the lower Cholesky factors [1 or classes, d, d]."""
        counts = statistics["counts"].double()
        mean = statistics["sums"].double() / STEPS / counts.clamp_min(1)[:, None]
        products = statistics["products"].double() / STEPS**2
        if self.covariance == "diagonal":
            variance = products / counts.clamp_min(1)[:, None] - mean.square()
            return shrink_variances(variance, shrinkage).sqrt()
        covariance = find_covariances(counts, mean, unfold_triangle(products, width), self.tying)
        level = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1 / STEPS**2)  # rounding has about this variance
        eye = torch.eye(width, dtype=covariance.dtype)
        shrunk = (1 - shrinkage) * covariance + shrinkage * level[:, None, None] * eye
        factors: Tensor
        factors, failed = torch.linalg.cholesky_ex(shrunk + level[:, None, None] * 1e-6 * eye)
        if bool(failed.any()):  # under masks nobody sees a single upload
            raise GenfedError("the sums of the clients are those of no examples: one of them uploaded something else")
        return factors


def _halves(statistics: Mapping[str, Tensor]) -> list[Weights]:
    """Returns the statistics of one half of the examples, and of the other."""
    half = {name.removeprefix(HALF): value for name, value in statistics.items() if name.startswith(HALF)}
    return [half, subtract({name: statistics[name] for name in half}, half)]


class GaussianNetwork(GeneratorNetwork):
    """A Gaussian of features for each class."""

    prior: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(self, task: Task, covariance: Covariance) -> None:
        super().__init__()
        classes, width = len(task.classes), math.prod(task.shape)
        self.shape = task.shape
        self.register_buffer("prior", torch.full((classes,), 1 / classes))
        self.register_buffer("mean", torch.zeros(classes, width))
        eye = torch.eye(width).repeat(1 if covariance == "tied" else classes, 1, 1)
        self.register_buffer("factor", torch.ones(classes, width) if covariance == "diagonal" else eye)

    def objectives(self) -> Sequence[Objective]:
        """Returns none: the Gaussians are estimated, not trained."""
        return []

    @torch.no_grad()
    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        z = torch.randn(len(y), self.mean.shape[1], generator=rng).to(y.device)
        chunks = zip(torch.split(z, CHUNK), torch.split(y, CHUNK), strict=True)
        return torch.cat([self._place(*chunk) for chunk in chunks])

    def _place(self, z: Tensor, y: Tensor) -> Tensor:
        if self.factor.ndim == 2:
            deviation = self.factor[y] * z
        elif len(self.factor) == 1:
            deviation = z @ self.factor[0].T
        else:
            deviation = torch.empty_like(z)
            for label in set(y.tolist()):
                deviation[y == label] = z[y == label] @ self.factor[label].T
        return (self.mean[y] + deviation).view(-1, *self.shape)

    def log_joint(self, x: Tensor) -> Tensor:
        """Returns log p(x, y) up to a constant, for features x [n, …] and each class y: [n, classes]. A class without
        examples has a score below all others.
        """
        x = x.flatten(1)
        columns = []
        for label, mean in enumerate(self.mean):
            factor = self.factor[label if len(self.factor) > 1 else 0]
            if factor.ndim == 1:
                distance, volume = ((x - mean) / factor).square().sum(1), factor.log().sum()
            else:
                white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
                distance, volume = white.square().sum(0), factor.diagonal().log().sum()
            columns.append(-0.5 * distance - volume)
        return torch.stack(columns, 1) + log_prior(self.prior)


def geometric_median(values: Tensor, steps: int = 50) -> Tensor:
    """Returns the weights [g], with the sum 1, of rows [g, m] in the point with the least sum of distances to them, by
    Weiszfeld's iteration.
    """
    weights = values.new_full((len(values),), 1 / len(values))
    for _ in range(steps):
        away = (values - weights @ values).norm(dim=1)
        weights = 1 / away.clamp_min(1e-6 * float(away.mean()) + 1e-300)
        weights = weights / weights.sum()
    return weights


def are_moments(counts: Tensor, sums: Tensor, products: Tensor) -> bool:
    """Returns whether there can be examples with these moments, in whole steps.

    Args:
        counts: Numbers of examples of each group [g].
        sums: Their sums [g, d].
        products: Their Σ x xᵀ, of each group [g, d, d] or of all together [1, d, d].
    """
    most = STEPS * LARGEST_FEATURE
    means = sums / counts.clamp_min(1)[:, None]
    if len(products) < len(counts):
        counts, between = counts.sum(0, keepdim=True), (means.T @ sums)[None]
    else:
        between = means[:, :, None] * sums[:, None, :]
    squares = products.diagonal(dim1=1, dim2=2)
    if bool((squares > counts[:, None] * most**2).any()):
        return False
    # What varies within groups is a sum of squares: no direction has less than 0, but for rounding.
    within = products - between + torch.eye(products.shape[1]) * (1 + 1e-9 * squares.amax())
    return not bool(torch.linalg.cholesky_ex(within).info.any())


def find_covariances(counts: Tensor, mean: Tensor, second: Tensor, tying: float) -> Tensor:
    """Returns the covariances of classes [classes, d, d], or the one of all [1, d, d] if `second` is that of all.

    Args:
        counts: Numbers of examples [classes].
        mean: Means of the classes [classes, d].
        second: Sums of x xᵀ, of each class [classes, d, d] or of all [1, d, d].
        tying: Weight of the tied covariance, in [0, 1]. A class with less than two examples has the tied one.
    """
    between = counts[:, None, None] * mean[:, :, None] * mean[:, None, :]
    tied = (second.sum(0) - between.sum(0)) / counts.sum()
    if len(second) == 1:
        return tied[None]
    own = (second - between) / counts.clamp_min(1)[:, None, None]
    known = (counts > 1)[:, None, None]  # one example has no covariance
    return torch.where(known, (1 - tying) * own + tying * tied, tied)


def linear_discriminant(gaussian: Mapping[str, Tensor]) -> Weights:
    """Returns the weights of the linear layer with the same decisions as Gaussians with a tied covariance, for a
    `LinearDiscriminant`.
    """
    mean, factor = gaussian["mean"].double(), gaussian["factor"][0].double()
    weight = torch.cholesky_solve(mean.T, factor).T
    bias = log_prior(gaussian["prior"]).double() - 0.5 * (weight * mean).sum(1)
    # What is common to all classes decides nothing, and is so large that single precision would lose the rest.
    there = gaussian["prior"] > 0
    weight, bias = weight - weight[there].mean(0), bias - bias[there].mean()
    return {"weight": weight.float(), "bias": bias.float()}


class LinearDiscriminant(nn.Linear):
    """A linear layer that adds up in double precision: with a covariance near to a singular one, logits are small
    differences of large numbers.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits [n, classes] of features x [n, d]."""
        logits = F.linear(x.double(), self.weight.double(), self.bias.double())
        return logits.to(self.weight.dtype)


def log_prior(prior: Tensor) -> Tensor:
    """Returns the logarithm of the classes' shares; −10⁶ for a class without examples, below all scores of others."""
    return torch.where(prior > 0, prior.clamp_min(1e-30).log(), -1e6)


def shrink_variances(variance: Tensor, shrinkage: float) -> Tensor:
    """Returns variances [..., d] with this weight of their mean over d, which is at least that of rounding."""
    variance = variance.clamp_min(0)
    level = variance.mean(-1, keepdim=True).clamp_min(1 / STEPS**2)
    return (1 - shrinkage) * variance + (shrinkage + 1e-6) * level


def unfold_triangle(upper: Tensor, width: int) -> Tensor:
    """Returns the symmetric matrices [g, d, d] of which `upper` [g, d (d + 1) / 2] are the upper triangles by rows."""
    rows, columns = torch.triu_indices(width, width)
    matrix = upper.new_empty(len(upper), width, width)
    matrix[:, rows, columns] = upper
    matrix[:, columns, rows] = upper
    return matrix


def fold_triangle(matrix: Tensor) -> Tensor:
    """Returns the upper triangles by rows [g, d (d + 1) / 2] of symmetric matrices [g, d, d]."""
    rows, columns = torch.triu_indices(*matrix.shape[1:])
    return matrix[:, rows, columns]


def _diagonal_places(width: int) -> Tensor:
    """Returns the places of the diagonal in an upper triangle by rows."""
    row = torch.arange(width)
    return row * width - row * (row - 1) // 2
