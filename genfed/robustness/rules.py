"""Robust aggregation rules, for federations in which some clients may be malicious."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.schedule import round_up_share
from genfed.core.settings import settings
from genfed.robustness.robust_mean import CoordinatewiseRule, GroupedRule, LinearCombination

Share = Annotated[float, Field(ge=0, lt=0.5)]


def _require(count: int, share: float, minimum: int, rule: str) -> None:
    if count < minimum:
        malicious = round_up_share(share, count)
        raise GenfedError(
            f"aggregation.share = {share:g}: {malicious} of {count} uploads are assumed malicious, and {rule} then "
            f"needs {minimum} uploads; lower the share, or have more clients in a group"
        )


@settings
class Median(CoordinatewiseRule):
    """The median of each coordinate, weights aside. Yin, Chen, Ramchandran, Bartlett, arXiv 1803.01498, option I."""

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the median [m]; of an even number of values, the mean of the two in the middle."""
        ordered, n = values.sort(dim=0).values, len(values)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


@settings
class MedianOfMeans(GroupedRule):
    """Sums over groups of clients, and what most of the groups say: for methods of sums. Minsker, Geometric median and
    robust estimation in Banach spaces, Bernoulli 2015; Chen, Su, Xu, Distributed Statistical Machine Learning in
    Adversarial Settings, arXiv 1705.05491, Algorithm 2.
    """

    groups: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Number of groups of clients, of which fewer than half may have a malicious client. 1: the plain sum."""

    def check(self, count: int) -> None:
        if count < self.groups:
            raise GenfedError(
                f"aggregation.groups = {self.groups}: there are {count} uploads; 1 to {count} are allowed"
            )


@settings
class TrimmedMean(CoordinatewiseRule):
    """The mean of each coordinate without its largest and smallest values, weights aside. Yin, Chen, Ramchandran,
    Bartlett, arXiv 1803.01498, option II.
    """

    share: Share = 0.2
    """Share of a group's uploads that is excluded at either end (β), rounded up. 0: the unweighted mean."""

    def check(self, count: int) -> None:
        _require(count, self.share, 2 * round_up_share(self.share, count) + 1, "a trimmed mean")

    def reduce(self, values: Tensor) -> Tensor:
        """Returns the mean [m] of the values that are not excluded."""
        excluded = round_up_share(self.share, len(values))
        return values.sort(dim=0).values[excluded : len(values) - excluded].mean(0)


@settings
class Krum(LinearCombination):
    """The one upload that is nearest to its neighbors, weights aside. Blanchard, El Mhamdi, Guerraoui, Stainer,
    Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017, arXiv 1703.02757.
    """

    share: Share = 0.2
    """Share of a group's uploads assumed malicious: f of n, rounded up, where n ≥ 2·f + 3."""

    def check(self, count: int) -> None:
        _require(count, self.share, 2 * round_up_share(self.share, count) + 3, "Krum")

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Returns 1 for the upload with the lowest score; of equal ones, for the first."""
        return _select_lowest(krum_scores(gram, round_up_share(self.share, len(gram))), 1)


@settings
class MultiKrum(LinearCombination):
    """The unweighted mean of the uploads that are nearest to their neighbors. Blanchard, El Mhamdi, Guerraoui,
    Stainer, arXiv 1703.02757, section 5 (m-Krum).
    """

    share: Share = 0.2
    """Share of a group's uploads assumed malicious: f of n, rounded up, where n ≥ 2·f + 3."""
    chosen: Annotated[int, Field(ge=1)] | None = None
    """Number of uploads that are averaged (m), at most the size of the smallest group. Unset: n − f."""

    def check(self, count: int) -> None:
        _require(count, self.share, 2 * round_up_share(self.share, count) + 3, "Krum")
        if self.chosen is not None and self.chosen > count:
            raise GenfedError(
                f"aggregation.chosen = {self.chosen}: a group has {count} uploads, and no more are allowed"
            )

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Returns 1/m for the m uploads with the lowest scores."""
        malicious = round_up_share(self.share, len(gram))
        return _select_lowest(krum_scores(gram, malicious), self.chosen or len(gram) - malicious)


def krum_scores(gram: Tensor, malicious: int) -> Tensor:
    """Returns each upload's sum of squared distances to its n − f − 2 nearest neighbors, [n].

    Args:
        gram: the updates' inner products, float64 [n, n].
        malicious: the number of clients assumed malicious (f).
    """
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp_min(0)
    distances.fill_diagonal_(math.inf)  # sorts last: an upload is no neighbor of itself
    return distances.sort(dim=1).values[:, : max(0, len(gram) - malicious - 2)].sum(1)


def _select_lowest(score: Tensor, count: int) -> Tensor:
    chosen = score.argsort(stable=True)[:count]
    return torch.zeros_like(score).index_fill_(0, chosen, 1 / count)


@settings
class NormBounding(LinearCombination):
    """The declared weighted mean of updates that are clipped to a bound. Sun, Kairouz, Suresh, McMahan, Can You
    Really Backdoor Federated Learning?, arXiv 1911.07963, section 3.
    """

    bound: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of an update (M). Unset: the median norm of the group's updates in the round."""

    # differs from the paper: there the bound is given. One number cannot fit both a generator and classifiers.

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Returns wᵢ / Σw · min(1, M / ‖Δᵢ‖)."""
        norms = gram.diagonal().clamp_min(0).sqrt()
        return weights / weights.sum() * _clip_factors(norms, self.bound)


@settings
class CenteredClipping(LinearCombination):
    """The state that was sent, moved repeatedly by the unweighted mean of the differences to the uploads, each clipped
    to a radius. Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, arXiv 2012.10333,
    Eq. 5.
    """

    # differs from the paper: it clips momenta around the last aggregated one; updates are clipped here, and begin at 0.

    radius: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a difference (τ). Unset: the median norm in the group, anew in every iteration."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Number of times that the center moves (L)."""

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Returns c of the center v = Σ cᵢ·Δᵢ, after v ← v + 1/n · Σ (Δᵢ − v) · min(1, τ / ‖Δᵢ − v‖)."""
        c = torch.zeros_like(weights)
        for _ in range(self.iterations):
            along = gram @ c
            norms = (gram.diagonal() - 2 * along + c @ along).clamp_min(0).sqrt()
            step = _clip_factors(norms, self.radius) / len(c)
            c = c * (1 - step.sum()) + step
        return c


def _clip_factors(norms: Tensor, bound: float | None) -> Tensor:
    """Returns min(1, bound / norm). None: the bound is the (lower) median of the norms."""
    largest = norms.new_tensor(bound) if bound is not None else norms.median()
    return torch.where(norms > largest, largest / norms, 1.0)
