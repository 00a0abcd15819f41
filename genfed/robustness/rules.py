"""Robust aggregators: what can stand in the place of the means of uploads where some clients may be bad."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.schedule import round_up_share
from genfed.core.settings import settings
from genfed.robustness.robust_mean import CoordinatewiseRule, LinearCombination

Share = Annotated[float, Field(ge=0, lt=0.5)]


def _refuse(count: int, share: float, fewest: int, why: str) -> None:
    if count < fewest:
        bad = round_up_share(share, count)
        raise GenfedError(
            f"aggregation.share = {share:g}: {bad} of {count} uploads are taken to be bad, and {why} needs "
            f"{fewest} uploads then; lower it, or have more clients in a group"
        )


@settings
class Median(CoordinatewiseRule):
    """The median of each coordinate, weights aside. Yin, Chen, Ramchandran, Bartlett, arXiv 1803.01498, option I."""

    def reduce(self, values: Tensor) -> Tensor:
        """Of an even number of values the mean of the two in the middle."""
        ordered, n = values.sort(dim=0).values, len(values)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


@settings
class TrimmedMean(CoordinatewiseRule):
    """The mean of each coordinate without its largest and smallest values, weights aside. Yin, Chen, Ramchandran,
    Bartlett, arXiv 1803.01498, option II.
    """

    share: Share = 0.2
    """Of a group's uploads the share that is left out at either end (β), rounded up; 0 is the unweighted mean."""

    def check(self, count: int) -> None:
        _refuse(count, self.share, 2 * round_up_share(self.share, count) + 1, "a trimmed mean")

    def reduce(self, values: Tensor) -> Tensor:
        """The mean of what is left."""
        bad = round_up_share(self.share, len(values))
        return values.sort(dim=0).values[bad : len(values) - bad].mean(0)


@settings
class Krum(LinearCombination):
    """The one upload that is nearest to its neighbours, weights aside. Blanchard, El Mhamdi, Guerraoui, Stainer,
    Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017, arXiv 1703.02757.
    """

    share: Share = 0.2
    """Of a group's uploads the share that is taken to be bad; f of n, rounded up, and n ≥ 2·f + 3."""

    def check(self, count: int) -> None:
        _refuse(count, self.share, 2 * round_up_share(self.share, count) + 3, "Krum")

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """1 for the upload of the lowest score, among equals for the first."""
        return _lowest(krum_scores(gram, round_up_share(self.share, len(gram))), 1)


@settings
class MultiKrum(LinearCombination):
    """The unweighted mean of the uploads that are nearest to their neighbours. Blanchard, El Mhamdi, Guerraoui,
    Stainer, arXiv 1703.02757, section 5 (m-Krum).
    """

    share: Share = 0.2
    """Of a group's uploads the share that is taken to be bad; f of n, rounded up, and n ≥ 2·f + 3."""
    chosen: Annotated[int, Field(ge=1)] | None = None
    """Uploads that are averaged (m), at most those of the smallest group; left out: n − f."""

    def check(self, count: int) -> None:
        _refuse(count, self.share, 2 * round_up_share(self.share, count) + 3, "Krum")
        if self.chosen is not None and self.chosen > count:
            raise GenfedError(
                f"aggregation.chosen = {self.chosen}: a group has {count} uploads, and no more are allowed"
            )

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """1/m for the m uploads of the lowest scores."""
        bad = round_up_share(self.share, len(gram))
        return _lowest(krum_scores(gram, bad), self.chosen or len(gram) - bad)


def krum_scores(gram: Tensor, bad: int) -> Tensor:
    """Of each of n uploads the sum of its squared distances to the n − f − 2 nearest others, [n]."""
    lengths = gram.diagonal()
    apart = (lengths[:, None] + lengths - 2 * gram).clamp_min(0)
    apart.fill_diagonal_(math.inf)  # sorts last: an upload is no neighbour of itself
    return apart.sort(dim=1).values[:, : max(0, len(gram) - bad - 2)].sum(1)


def _lowest(score: Tensor, count: int) -> Tensor:
    chosen = score.argsort(stable=True)[:count]
    return torch.zeros_like(score).index_fill_(0, chosen, 1 / count)


@settings
class NormBounding(LinearCombination):
    """The declared weighted mean of updates that are shortened to a bound. Sun, Kairouz, Suresh, McMahan, Can You
    Really Backdoor Federated Learning?, arXiv 1911.07963, section 3.
    """

    bound: Annotated[float, Field(gt=0)] | None = None
    """Length that an update may have (M); left out: the median length of the group's updates in the round."""

    # differs from the paper: there the bound is given. One number does not fit a generator and classifiers alike.

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """wᵢ / Σw · min(1, M / ‖Δᵢ‖)."""
        lengths = gram.diagonal().clamp_min(0).sqrt()
        return weights / weights.sum() * _shortened(lengths, self.bound)


@settings
class CenteredClipping(LinearCombination):
    """The state that was sent, moved again and again by the unweighted mean of what is left to each upload, shortened
    to a radius. Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, arXiv 2012.10333,
    Eq. 5.
    """

    # differs from the paper: it clips momenta around the last aggregated one; updates are clipped here, and begin at 0.

    radius: Annotated[float, Field(gt=0)] | None = None
    """Length that what is left may have (τ); left out: the median of the group's lengths, anew in every iteration."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """How often the centre moves (L)."""

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """The centre v = Σ cᵢ·Δᵢ, and v ← v + 1/n · Σ (Δᵢ − v) · min(1, τ / ‖Δᵢ − v‖)."""
        c = torch.zeros_like(weights)
        for _ in range(self.iterations):
            along = gram @ c
            left = (gram.diagonal() - 2 * along + c @ along).clamp_min(0).sqrt()
            moved = _shortened(left, self.radius) / len(c)
            c = c * (1 - moved.sum()) + moved
        return c


def _shortened(lengths: Tensor, bound: float | None) -> Tensor:
    """min(1, bound / length); without a bound it is the (lower) median of the lengths."""
    most = lengths.new_tensor(bound) if bound is not None else lengths.median()
    return torch.where(lengths > most, most / lengths, 1.0)
