"""Memorisation: do samples copy training examples?

The mean nearest-neighbor distance ratio (MND): Kang, Cha, Kang, GeFL, arXiv 2412.18460. Copies: a sample far nearer to
one training example than to the next ones, after Carlini, Hayes, Nasr, Jagielski, Sehwag, Tramèr, Balle, Ippolito,
Wallace, Extracting Training Data from Diffusion Models, USENIX Security 2023, arXiv 2301.13188, whose small-model
attack has that distance.

Blurred samples are near everything, in the training data or not. So no bare distance is used: MND is compared with that
of held-out examples, and the distance of a copy is divided by the distance to the next training examples.
"""

from dataclasses import dataclass
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
ATTACKED, AMONG = 1000, 600
"""Training examples whose ratio is taken for MND, and samples and held-out examples to which it refers; as in the
paper."""
NEIGHBORS = 50
"""Training examples by whose mean distance the distance to the nearest is divided; n of the paper."""
HALF = 0.5
"""Maximum of that ratio for a copy; α of the paper."""


@dataclass(frozen=True)
class MemorisationParts:
    """The examples that are compared, as vectors [n, d]."""

    rows: Tensor
    """Rows of `Case.train` that `train` is."""
    train: Tensor
    """Training examples."""
    generated: Data
    """Synthetic examples as the generator gives them."""
    samples: Tensor
    """The same, as vectors."""
    calibration: Tensor
    """Held-out examples by which the limit of copies is set."""
    fresh: Tensor
    """Held-out examples beside which samples stand in MND."""
    fakes: Tensor
    """Held-out examples that take the place of samples in the control with nothing to find."""

    @property
    def attacked(self) -> Tensor:
        """Training examples whose ratio is taken."""
        return self.train[: min(ATTACKED, len(self.train) // 2)]

    @property
    def apart(self) -> Tensor:
        """The other training examples."""
        return self.train[len(self.attacked) :]

    @property
    def like(self) -> Tensor:
        """Held-out examples whose ratio is taken, at most as many as training examples."""
        return self.calibration[: len(self.attacked)]

    @property
    def size(self) -> int:
        """Number of samples, and of held-out examples, among which a ratio is taken."""
        return min(AMONG, len(self.fresh), len(self.samples), len(self.apart))


@settings
class Memorisation(Audit):
    """Looks for training examples among the samples: MND, copies, and a picture of the nearest pairs."""

    sees = ("samples",)
    attacker = (
        "Anyone who is given synthetic examples holds the training examples that are among them. Only someone with the "
        "training examples can say which, so this is no attack but a count of what was given away."
    )

    samples: Annotated[int, Field(ge=10)] = 1000
    """Number of synthetic examples."""
    members: Annotated[int, Field(ge=20)] = 5000
    """Maximum number of training examples in which originals are sought; fewer find fewer copies."""
    alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Maximum share of held-out examples that would count as copies."""
    planted: Annotated[int, Field(ge=1)] = 50
    """Copies of training examples among the samples in the planted leak."""
    noise: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of the noise added to these copies, for pixels in [−1, 1]."""
    shown: Annotated[int, Field(ge=0)] = 10
    """Number of pairs in the picture."""

    def examine(self, case: Case) -> Findings:
        parts = self._prepare(case)
        train, size = parts.train, parts.size
        count = min(self.planted, len(parts.samples) // 2, len(parts.attacked))
        copied = self._copy_members(case, parts.attacked, count)
        near, which = relative_distance(parts.samples, train)
        near_planted = relative_distance(copied, train)[0]
        limit = min(HALF, float(torch.quantile(relative_distance(parts.calibration, train)[0], self.alarms)))
        mnd = [
            measure_mnd(case, parts, some) for some in (parts.samples, torch.cat([copied, parts.samples]), parts.apart)
        ]
        copies = [
            measure_copies(case, distance < limit)
            for distance in (near, torch.cat([near_planted, near[count:]]), relative_distance(parts.fakes, train)[0])
        ]
        readings = (
            Reading("nearest-neighbor distance ratio", ABOVE, 0.0, *mnd),
            Reading("copies", COPIES, 2 * self.alarms, *copies),
        )
        third = len(parts.fakes)
        notes = (
            f"MND of {size} samples beside {size} held-out examples, of training examples and of {len(parts.like)} "
            "other held-out ones: samples that are near to both alike copy neither.",
            "A copy is a sample whose distance to the nearest training example (Euclidean, in inputs) is below "
            f"{limit:.2f} of the mean to its {min(NEIGHBORS, len(train))} nearest: half at most, and less where more "
            f"than {100 * self.alarms:g} % of {third} held-out examples would pass. Twice that is no leak.",
            f"Planted leak: {count} noisy training examples among the samples, of which "
            f"{int((near_planted < limit).sum())} were found as copies.",
            f"Nothing to find: {third} held-out examples take the place of the samples; for MND {size} training "
            "examples whose ratio is not taken, so that a difference in kind from held-out ones would show.",
            *describe_features(case),
        )
        sizes = {"training examples": len(train), "samples": len(parts.samples), "held-out examples": 3 * third}
        pictures = self._pictures(case, parts.generated, case.train[parts.rows], near, which)
        return Findings(readings, sizes, notes, pictures)

    def _prepare(self, case: Case) -> MemorisationParts:
        """Returns all examples that the audit compares.

        Raises:
            NotPossible: there are too few of a kind, or the synthetic ones are not finite.
        """
        rng = case.rng("memorisation", "labels")
        y = case.train.y[torch.randint(len(case.train), (self.samples,), generator=rng)]
        generated = case.samples(y, "memorisation")
        if len(generated) < 10:
            raise NotPossible(f"there are {len(generated)} synthetic examples; it takes 10 at least")
        if not bool(normalize_pixels(generated.x).isfinite().all()):
            raise NotPossible("the synthetic examples hold numbers that are not finite")
        rows = torch.randperm(len(case.train), generator=case.rng("memorisation", "members"))[: self.members]
        order = torch.randperm(len(case.held_out), generator=case.rng("memorisation", "held out"))
        third = len(order) // 3
        if third < 10:
            raise NotPossible(f"there are {len(order)} held-out examples; it takes 30 at least")
        if len(rows) < 20:
            raise NotPossible(f"there are {len(rows)} training examples to look at; it takes 20 at least")
        calibration, fresh, fakes = (
            comparable_vectors(case, case.held_out[part]) for part in torch.split(order[: 3 * third], third)
        )
        train = comparable_vectors(case, case.train[rows])
        return MemorisationParts(rows, train, generated, to_vectors(generated), calibration, fresh, fakes)

    def _copy_members(self, case: Case, attacked: Tensor, count: int) -> Tensor:
        """Returns noisy copies [count, d] of training examples, the planted leak."""
        draws = case.rng("memorisation", "planted")
        copied = attacked[torch.randperm(len(attacked), generator=draws)[:count]]
        return copied + self.noise * torch.randn(copied.shape, generator=draws)

    def _pictures(self, case: Case, generated: Data, real: Data, near: Tensor, which: Tensor) -> tuple[Picture, ...]:
        """Returns the samples that are most likely copies, one per training example, above these."""
        if case.task.kind != "image" or case.features is not None or not self.shown:
            return ()
        order = torch.argsort(near).tolist()
        first = {int(which[i]): i for i in reversed(order)}
        pairs = sorted(((i, k) for k, i in first.items()), key=lambda pair: float(near[pair[0]]))[: self.shown]
        rows = torch.tensor(pairs)
        above, below = (denormalize_pixels(normalize_pixels(x)) for x in (generated.x[rows[:, 0]], real.x[rows[:, 1]]))
        caption = (
            "The most likely copies (nearer to one training example than to the next ones), the most likely first; "
            "each training example once."
        )
        return (Picture(caption, ("sample", "training example"), torch.stack([above, below])),)


def measure_mnd(case: Case, parts: MemorisationParts, some: Tensor) -> dict[str, Estimate]:
    """Measures MND of training examples among samples `some` [m, d], and by how much it is above that of others."""
    # As many real ones as samples, or the larger set would be the nearer.
    size = parts.size
    inside, outside = (distance_ratios(x, parts.fresh[:size], some[:size]) for x in (parts.attacked, parts.like))
    draws = case.rng("memorisation", "bootstrap", "MND")
    return {ABOVE: mean_with_interval(inside, draws, less=outside), RATIO: mean_with_interval(inside, draws)}


def measure_copies(case: Case, copies: Tensor) -> dict[str, Estimate]:
    """Measures the share of copies; `copies`: bool [n]."""
    return {COPIES: mean_with_interval(copies.double(), case.rng("memorisation", "bootstrap", "copies"))}


def relative_distance(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distance from each of x [n, d] to the nearest of `train`, divided by the mean distance to its nearest
    `NEIGHBORS` (0 if all these are 0), and the index of the nearest. Each [n].
    """
    far, which = nearest_neighbors(x, train, min(NEIGHBORS, len(train)))
    return far[:, 0] / far.mean(1).clamp(min=1e-30), which[:, 0]
