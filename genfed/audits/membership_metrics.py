"""How well scores separate members from non-members: AUC and true-positive rates at low false-positive rates, with
stratified bootstrap intervals (members and non-members are resampled separately; 2.5 and 97.5 %).

Low false-positive rates matter most: Carlini, Chien, Nasr, Song, Terzis, Tramèr, Membership Inference Attacks From
First Principles, arXiv 2112.03570.
"""

import torch
from torch import Tensor

from genfed.audits.audit import NotPossible
from genfed.audits.findings import Estimate

AUC = "AUC"
RATES = {"TPR at 0.1 % FPR": 0.001, "TPR at 1 % FPR": 0.01}
DRAWS = 1000
"""Number of bootstrap samples."""
_AT_ONCE = 20_000_000
"""Maximum number of bootstrap counts in memory at once."""


def membership_numbers(
    members: Tensor, others: Tensor, rng: torch.Generator, draws: int = DRAWS
) -> dict[str, Estimate]:
    """Returns AUC and true-positive rates of scores [n] that are higher for members, by name. A false-positive rate
    below one over the number of non-members cannot be interpreted.

    Raises:
        NotPossible: a score is not finite.
    """
    _check(members, others)
    scores, place = torch.unique(torch.cat([members, others]).double(), return_inverse=True)
    parts = (place[: len(members)], place[len(members) :])
    counted = [torch.bincount(part, minlength=len(scores))[None].double() for part in parts]
    exact = _numbers(*counted)
    drawn: list[Tensor] = []
    at_once = max(1, min(draws, _AT_ONCE // len(scores)))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        drawn.append(_numbers(*(_redrawn(part, len(scores), count, rng) for part in parts)))
    low, high = torch.quantile(torch.cat(drawn, 1), torch.tensor([0.025, 0.975], dtype=torch.float64), 1)
    found = {}
    for i, (name, rate) in enumerate({AUC: 1.0, **RATES}.items()):
        few = f"{len(others)} non-members are too few: it takes {round(1 / rate)}" if len(others) * rate < 1 else ""
        found[name] = Estimate(float(exact[i, 0]), float(low[i]), float(high[i]), few)
    return found


def mean_with_interval(
    values: Tensor, rng: torch.Generator, draws: int = DRAWS, less: Tensor | None = None
) -> Estimate:
    """Returns the mean of values [n] with its bootstrap interval. `less` [m]: values whose mean is subtracted.

    Raises:
        NotPossible: a value is not finite.
    """
    parts = [values.double(), (torch.zeros(1) if less is None else less).double()]
    _check(*parts)
    means = [
        torch.stack([part[torch.randint(len(part), part.shape, generator=rng)].mean() for _ in range(draws)])
        for part in parts
    ]
    low, high = torch.quantile(means[0] - means[1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(float(parts[0].mean() - parts[1].mean()), float(low), float(high))


def _check(*values: Tensor) -> None:
    if not all(bool(part.isfinite().all()) for part in values):
        raise NotPossible("there are scores that are not finite: a model has diverged")


def _redrawn(place: Tensor, bins: int, draws: int, rng: torch.Generator) -> Tensor:
    """Returns how often each score occurs in each bootstrap sample, [draws, bins]."""
    chosen = place[torch.randint(len(place), (draws, len(place)), generator=rng)]
    counts = torch.zeros(draws, bins, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones(chosen.shape, dtype=torch.float64))


def _numbers(members: Tensor, others: Tensor) -> Tensor:
    """Returns AUC and rates [1 + rates, b] from counts by rising score, each [b, bins]."""
    n = others.sum(1)
    below = others.cumsum(1) - others
    area = (members * (below + others / 2)).sum(1)
    found = [area / (members.sum(1) * n)]
    above = others.flip(1).cumsum(1).flip(1)  # non-members with that score or a higher one
    for rate in RATES.values():
        allowed = torch.floor(rate * n + 1e-9)
        found.append((members * (above <= allowed[:, None])).sum(1) / members.sum(1))
    return torch.stack(found)
