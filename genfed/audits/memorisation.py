"""Memorisation: do samples copy training examples?

The mean nearest-neighbour distance ratio (MND): Kang, Cha, Kang, GeFL, arXiv 2412.18460. Copies: a sample nearer to a
training example than it should be, after Carlini, Hayes, Nasr, Jagielski, Sehwag, Tramèr, Balle, Ippolito, Wallace,
Extracting Training Data from Diffusion Models, USENIX Security 2023, arXiv 2301.13188, Definition 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.candidates import flat
from genfed.audits.rates import mean
from genfed.core.audit import Audit, Case, Estimate, Findings, NotPossible, Picture, Reading
from genfed.core.method import Data
from genfed.core.settings import settings
from genfed.learn.fit import scaled, unscaled
from genfed.learn.nearest import LARGEST, distances, nearest, ratios

RATIO, COPIES = "MND", "share of copies"
ASKED, AMONG = 1000, 600
"""Of MND: training examples whose ratio is taken, and samples and held-out examples among which it is; the paper's."""


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
    members: Annotated[int, Field(ge=10)] = 5000
    """Training examples among which their originals are sought, at most; fewer find fewer copies."""
    alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of held-out examples that would pass for copies, which sets the distance below which a sample is one."""
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
        if not bool(scaled(made.x).isfinite().all()):
            raise NotPossible("the synthetic examples hold numbers that are not finite")
        chosen = torch.randperm(len(case.train), generator=case.rng("memorisation", "members"))[: self.members]
        order = torch.randperm(len(case.held_out), generator=case.rng("memorisation", "held out"))
        third = len(order) // 3
        if third < 10:
            raise NotPossible(f"there are {len(order)} held-out examples; it takes 30 at least")
        calibration, fresh, fakes = (flat(case.held_out[rows]) for rows in torch.split(order[: 3 * third], third))
        train, samples = flat(case.train[chosen]), flat(made)
        count = min(self.planted, len(samples) // 2)
        draws = case.rng("memorisation", "planted")
        copied = train[torch.randperm(len(train), generator=draws)[:count]]
        copied = copied + self.noise * torch.randn(copied.shape, generator=draws)
        leak = torch.cat([copied, samples[count:]])
        near_fresh = nearest(calibration, train)[0]
        limit = float(torch.quantile(near_fresh, self.alarms))

        asked = train[: min(len(train), ASKED)]
        size = min(AMONG, third, len(samples))
        among = flat(case.held_out[order[: 3 * third]])[: 3 * AMONG]

        def ratio(some: Tensor) -> dict[str, Estimate]:
            # As many real ones as samples, or the larger set would be the nearer.
            draws = case.rng("memorisation", "bootstrap", "MND")
            return {RATIO: mean(ratios(asked, fresh[:size], some[:size]), draws)}

        def chance() -> float:
            """The highest MND of 40 with held-out examples for samples."""
            far, splits = distances(asked, among), case.rng("memorisation", "chance")
            found = []
            for _ in range(40):
                v, s = torch.split(torch.randperm(len(among), generator=splits)[: 2 * size], size)
                found.append((far[:, v].min(1).values / far[:, s].min(1).values).clamp(max=LARGEST).nanmean())
            return float(torch.stack(found).max())

        def copies(some: Tensor) -> dict[str, Estimate]:
            found = (nearest(some, train)[0] < limit).double()
            return {COPIES: mean(found, case.rng("memorisation", "bootstrap", "copies"))}

        leak_near = nearest(leak[:count], train)[0]
        readings = (
            Reading("nearest-neighbour distance ratio", RATIO, chance(), ratio(samples), ratio(asked), ratio(fakes)),
            Reading("copies", COPIES, 2 * self.alarms, copies(samples), copies(leak), copies(fakes)),
        )
        notes = (
            f"MND of {size} samples beside {size} held-out examples; the value of no leak is the highest of 40 where "
            "held-out examples stood for samples.",
            f"A copy is a sample nearer to a training example (Euclidean, in inputs) than {100 * self.alarms:g} % of "
            f"{third} held-out examples are; twice that share is the value of no leak.",
            f"Planted leak: for MND the training examples themselves; for copies {count} noisy training examples among "
            f"the samples, of which {int((leak_near < limit).sum())} were found.",
            f"Nothing to find: {third} held-out examples stand in the place of the samples.",
        )
        sizes = {"training examples": len(train), "samples": len(samples), "held-out examples": 3 * third}
        return Findings(readings, sizes, notes, self._pictures(case, made, case.train[chosen], samples, train))

    def _pictures(self, case: Case, made: Data, real: Data, samples: Tensor, train: Tensor) -> tuple[Picture, ...]:
        """The samples that lie nearest to a training example, one of each example, over these."""
        if case.task.kind != "image" or not self.shown:
            return ()
        distance, which = nearest(samples, train)
        order = torch.argsort(distance)
        first = {int(which[i]): int(i) for i in reversed(order.tolist())}
        pairs = sorted(((i, k) for k, i in first.items()), key=lambda pair: float(distance[pair[0]]))[: self.shown]
        rows = torch.tensor(pairs)
        above, below = (unscaled(scaled(x)) for x in (made.x[rows[:, 0]], real.x[rows[:, 1]]))
        caption = "The nearest pairs of a sample and a training example, the nearest first, each training example once."
        return (Picture(caption, ("sample", "training example"), torch.stack([above, below])),)
