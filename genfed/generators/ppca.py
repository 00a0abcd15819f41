"""Probabilistic principal components of each class. Tipping, Bishop, Probabilistic Principal Component Analysis, JRSS B
1999: a Gaussian whose covariance is of low rank, plus the same variance in every direction. Its training is a sum, as
for every Gaussian; as a generator of images it is a linear decoder for each class.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.gaussian import Gaussian, find_covariances, log_prior, unfold_triangle
from genfed.generators.generator import GeneratorNetwork
from genfed.generators.statistics_generator import STEPS, StatisticsGenerator, require_examples
from genfed.training.fit import Objective

_MOMENTS = Gaussian(covariance="full")
"""Its statistics are those that principal components are computed from."""


@settings
class PPCA(StatisticsGenerator):
    """Principal components of each class, computed from sums of the clients' examples. Its statistics are those of a
    `gaussian` with a covariance per class: "counts" [classes], "sums" [classes, d], and "products", the upper triangle
    of Σ x xᵀ [classes, d (d + 1) / 2]. A generated example is its class's mean plus the components in random amounts;
    the variance in the other directions is left out, as a decoder gives the mean of an image.
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 20
    """Number of principal components per class."""
    size: Annotated[int, Field(ge=2, le=64)] | None = None
    """Height and width that images are reduced to before they are added up; generated ones are enlarged again. The
    statistics grow with its fourth power. None: images stay as they are."""
    tying: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the tied covariance in that of a class: 0 is each class's own, 1 is the tied one."""

    def new(self, task: Task, rng: torch.Generator) -> "PPCANetwork":
        """Returns a network that generates zeros.

        Raises:
            GenfedError: `size` is set and the examples are no images, or smaller ones.
        """
        return PPCANetwork(task, self.reduced(task), self.rank)

    def reduced(self, task: Task) -> Task:
        """Returns the task of the examples that are added up."""
        if self.size is None:
            return task
        if task.kind != "image" or min(task.shape[1:]) < self.size:
            raise GenfedError(
                f"generator.size = {self.size}: examples of {task.shape}; allowed are images, none smaller"
            )
        return replace(task, shape=(task.shape[0], self.size, self.size))

    def reduce(self, data: Data, task: Task) -> Data:
        """Returns the examples that are added up."""
        if self.size is None:
            return data
        return Data(F.adaptive_avg_pool2d(data.x.double().reshape(-1, *task.shape), self.size), data.y)

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        reduced = self.reduced(task)
        return _MOMENTS.measure(self.reduce(data, task), reduced)

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        return _MOMENTS.shapes(self.reduced(task))

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        _MOMENTS.check(statistics, self.reduced(task), examples)

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        counts, width = (
            require_examples(statistics, "compute principal components"),
            math.prod(self.reduced(task).shape),
        )
        mean = statistics["sums"].double() / STEPS / counts.clamp_min(1)[:, None]
        second = unfold_triangle(statistics["products"].double() / STEPS**2, width)
        factor, rest = find_components(find_covariances(counts, mean, second, self.tying), self.rank)
        prior, weight = counts / counts.sum(), torch.ones(len(counts), 1)
        found = {
            "prior": prior,
            "weight": weight,
            "mean": mean[:, None],
            "factor": factor[:, None],
            "rest": rest[:, None],
        }
        return {name: value.float() for name, value in found.items()}


def find_components(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the factors [g, d, rank] and the remaining variances [g] of the nearest covariances that are the factor
    times its transpose plus the remaining variance in every direction: the maximum likelihood of Tipping and Bishop.
    Factors of more components than dimensions are filled with zeros.
    """
    width = covariance.shape[1]
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = min(rank, width)
    rest = values[:, : width - kept].mean(1) if kept < width else torch.zeros(len(values), dtype=values.dtype)
    rest = rest.clamp_min(0)
    scale = (values[:, width - kept :] - rest[:, None]).clamp_min(0).sqrt()
    factor = vectors[:, :, width - kept :] * scale[:, None, :]
    return F.pad(factor, (0, rank - kept)), rest


class PPCANetwork(GeneratorNetwork):
    """Means and linear decoders for each class; one of a class's parts is drawn for each example."""

    prior: Tensor
    weight: Tensor
    mean: Tensor
    factor: Tensor
    rest: Tensor

    def __init__(self, task: Task, reduced: Task, rank: int, parts: int = 1) -> None:
        super().__init__()
        classes, width = len(task.classes), math.prod(reduced.shape)
        self.shape, self.inner, self.is_image = task.shape, reduced.shape, task.kind == "image"
        self.register_buffer("prior", torch.full((classes,), 1 / classes))
        self.register_buffer("weight", torch.full((classes, parts), 1 / parts))
        self.register_buffer("mean", torch.zeros(classes, parts, width))
        self.register_buffer("factor", torch.zeros(classes, parts, width, rank))
        self.register_buffer("rest", torch.ones(classes, parts))

    def objectives(self) -> Sequence[Objective]:
        """Returns none: the components are computed, not trained."""
        return []

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        return self.sample_from_noise(self.decode, 1 + self.factor.shape[3], y, rng)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Decodes noise and labels [n] to examples [n, …]; images are in [−1, 1]. Of the noise [n, 1 + rank], the first
        number chooses the part, and the others are the amounts of its components.
        """
        chosen, bounds = torch.special.ndtr(z[:, :1]), self.weight.cumsum(1)[y]
        part = (chosen * bounds[:, -1:] >= bounds).sum(1).clamp_max(bounds.shape[1] - 1)
        x = self.mean[y, part]
        for label, k in {*zip(y.tolist(), part.tolist(), strict=True)}:
            rows = (y == label) & (part == k)
            x[rows] += z[rows, 1:] @ self.factor[label, k].T
        if not self.is_image:
            return x.view(-1, *self.shape)
        x = x.view(-1, *self.inner)
        if self.inner != self.shape:
            x = F.interpolate(x, size=self.shape[1:], mode="bicubic", align_corners=False)
        return x.clamp(-1, 1)

    def log_joint(self, x: Tensor) -> Tensor:
        """Returns log p(x, y) up to a constant, for features x [n, …] and each class y: [n, classes]. A class without
        examples has a score below all others.
        """
        x, columns = x.flatten(1).double(), []
        for weight, *parts in zip(self.weight, self.mean, self.factor, self.rest, strict=True):
            scores = [_score(x, *(value.double() for value in part)) for part in zip(*parts, strict=True)]
            columns.append((torch.stack(scores, 1) + weight.double().clamp_min(1e-30).log()).logsumexp(1))
        return torch.stack(columns, 1).float() + log_prior(self.prior)


def _score(x: Tensor, mean: Tensor, factor: Tensor, rest: Tensor) -> Tensor:
    """Returns the logarithm of the density of x [n, d] up to a constant, [n]."""
    rest = rest.clamp_min(1 / STEPS**2)  # rounding alone has about this variance
    inner = torch.linalg.cholesky(rest * torch.eye(factor.shape[1], device=x.device) + factor.T @ factor)
    centered = x - mean
    explained = torch.linalg.solve_triangular(inner, (centered @ factor).T, upper=False).square().sum(0)
    volume = inner.diagonal().log().sum() + (x.shape[1] - factor.shape[1]) / 2 * rest.log()
    density: Tensor = -(centered.square().sum(1) - explained) / (2 * rest) - volume
    return density
