"""Memorisation: do samples copy training examples?

The mean nearest-neighbour distance ratio (MND): Kang, Cha, Kang, GeFL, arXiv 2412.18460. Copies: a sample far nearer to
one training example than to the next ones, after Carlini, Hayes, Nasr, Jagielski, Sehwag, Tramèr, Balle, Ippolito,
Wallace, Extracting Training Data from Diffusion Models, USENIX Security 2023, arXiv 2301.13188, whose small-model
attack has that distance.

Blurred samples lie near everything, whether or not it was trained on. So neither is read by a bare distance: MND is
compared with that of held-out examples, and a copy by its distance over that to the next training examples.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import comparable_vectors, describe_features, to_vectors
from genfed.audits.findings import Estimate, Findings, Picture, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.metrics.nearest_neighbors import distance_ratios, nearest_neighbors
from genfed.training.pixels import denormalize_pixels, normalize_pixels

ABOVE, RATIO, COPIES = "MND above that of held-out examples", "MND", "share of copies"
ASKED, AMONG = 1000, 600
"""Of MND: training examples whose ratio is taken, and samples and held-out examples among which it is; the paper's."""
NEIGHBOURS = 50
"""Training examples over whose mean distance that to the nearest is taken; the paper's (n)."""
HALF = 0.5
"""What that ratio of a copy is below at most; the paper's (α)."""


@settings
class Memorisation(Audit):
    """Looks for training examples among the samples: MND, copies, and a picture of the nearest pairs."""

    sees = ("samples",)
    attacker = (
        "Whoever is given synthetic examples holds the training examples that are among them. It takes the training "
        "examples to tell which, so this is no attack but a count of what was given away."
    )

    samples: Annotated[int, Field(ge=10)] = 1000
    """Synthetic examples that are looked at."""
    members: Annotated[int, Field(ge=20)] = 5000
    """Training examples among which their originals are sought, at most; fewer find fewer copies."""
    alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of held-out examples that would pass for copies, at most."""
    planted: Annotated[int, Field(ge=1)] = 50
    """Of the planted leak: copies of training examples that stand among the samples."""
    noise: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of what is added to these copies, where pixels are in [−1, 1]."""
    shown: Annotated[int, Field(ge=0)] = 10
    """Pairs in the picture."""

    def examine(self, case: Case) -> Findings:
        rng = case.rng("memorisation", "labels")
        y = case.train.y[torch.randint(len(case.train), (self.samples,), generator=rng)]
        made = case.samples(y, "memorisation")
        if len(made) < 10:
            raise NotPossible(f"there are {len(made)} synthetic examples; it takes 10 at least")
        if not bool(normalize_pixels(made.x).isfinite().all()):
            raise NotPossible("the synthetic examples hold numbers that are not finite")
        chosen = torch.randperm(len(case.train), generator=case.rng("memorisation", "members"))[: self.members]
        order = torch.randperm(len(case.held_out), generator=case.rng("memorisation", "held out"))
        third = len(order) // 3
        if third < 10:
            raise NotPossible(f"there are {len(order)} held-out examples; it takes 30 at least")
        if len(chosen) < 20:
            raise NotPossible(f"there are {len(chosen)} training examples to look at; it takes 20 at least")
        calibration, fresh, fakes = (
            comparable_vectors(case, case.held_out[rows]) for rows in torch.split(order[: 3 * third], third)
        )
        train, samples = comparable_vectors(case, case.train[chosen]), to_vectors(made)
        half = min(ASKED, len(train) // 2)
        asked, like, apart = train[:half], calibration[:half], train[half:]
        count = min(self.planted, len(samples) // 2, half)
        draws = case.rng("memorisation", "planted")
        copied = asked[torch.randperm(half, generator=draws)[:count]]
        copied = copied + self.noise * torch.randn(copied.shape, generator=draws)
        near, which = relative_distance(samples, train)
        near_planted = relative_distance(copied, train)[0]
        limit = min(HALF, float(torch.quantile(relative_distance(calibration, train)[0], self.alarms)))
        size = min(AMONG, third, len(samples), len(apart))

        def ratio(some: Tensor) -> dict[str, Estimate]:
            # As many real ones as samples, or the larger set would be the nearer.
            inside, outside = (distance_ratios(x, fresh[:size], some[:size]) for x in (asked, like))
            draws = case.rng("memorisation", "bootstrap", "MND")
            return {ABOVE: mean_with_interval(inside, draws, less=outside), RATIO: mean_with_interval(inside, draws)}

        def copies(near: Tensor) -> dict[str, Estimate]:
            return {
                COPIES: mean_with_interval((near < limit).double(), case.rng("memorisation", "bootstrap", "copies"))
            }

        leaked = torch.cat([copied, samples])
        readings = (
            Reading("nearest-neighbour distance ratio", ABOVE, 0.0, ratio(samples), ratio(leaked), ratio(apart)),
            Reading(
                "copies", COPIES, 2 * self.alarms,
                copies(near), copies(torch.cat([near_planted, near[count:]])),
                copies(relative_distance(fakes, train)[0]),
            ),
        )  # fmt: skip
        notes = (
            f"MND of {size} samples beside {size} held-out examples, of training examples and of {len(like)} other "
            "held-out ones: samples that are near to both alike copy neither.",
            "A copy is a sample whose distance to the nearest training example (Euclidean, in inputs) is below "
            f"{limit:.2f} of the mean to its {min(NEIGHBOURS, len(train))} nearest: half at most, and less where more "
            f"than {100 * self.alarms:g} % of {third} held-out examples would pass. Twice that is no leak.",
            f"Planted leak: {count} noisy training examples among the samples, of which "
            f"{int((near_planted < limit).sum())} were found as copies.",
            f"Nothing to find: {third} held-out examples stand in the place of the samples; for MND {size} training "
            "examples whose ratio is not taken, so that a difference in kind from held-out ones would show.",
            *describe_features(case),
        )
        sizes = {"training examples": len(train), "samples": len(samples), "held-out examples": 3 * third}
        return Findings(readings, sizes, notes, self._pictures(case, made, case.train[chosen], near, which))

    def _pictures(self, case: Case, made: Data, real: Data, near: Tensor, which: Tensor) -> tuple[Picture, ...]:
        """The samples that are likeliest to be copies, one of each training example, over these."""
        if case.task.kind != "image" or case.features is not None or not self.shown:
            return ()
        order = torch.argsort(near).tolist()
        first = {int(which[i]): i for i in reversed(order)}
        pairs = sorted(((i, k) for k, i in first.items()), key=lambda pair: float(near[pair[0]]))[: self.shown]
        rows = torch.tensor(pairs)
        above, below = (denormalize_pixels(normalize_pixels(x)) for x in (made.x[rows[:, 0]], real.x[rows[:, 1]]))
        caption = (
            "The likeliest copies (nearer to one training example than to the next ones), the likeliest first, each "
            "training example once."
        )
        return (Picture(caption, ("sample", "training example"), torch.stack([above, below])),)


def relative_distance(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """The distance from each of x [n, d] to the nearest of `train` over the mean of those to its nearest `NEIGHBOURS`,
    0 where all these are 0; and which is the nearest. Each [n].
    """
    far, which = nearest_neighbors(x, train, min(NEIGHBOURS, len(train)))
    return far[:, 0] / far.mean(1).clamp(min=1e-30), which[:, 0]
