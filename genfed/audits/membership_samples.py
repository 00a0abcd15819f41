"""Membership inference from samples alone: was this example among those that the generator was trained on?

Distance to the closest record: Chen, Yu, Zhang, Fritz, GAN-Leaks: A Taxonomy of Membership Inference Attacks against
Generative Models, CCS 2020, arXiv 1909.03935 (their full black-box attack). Density ratio: van Breugel, Sun, Qian, van
der Schaar, Membership Inference Attacks against Synthetic Data through Overfitting Detection (DOMIAS), AISTATS 2023,
arXiv 2302.12580, Eq. 2.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import FEWEST, comparable_vectors, describe_features, select_candidates, to_vectors
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import AUC, membership_numbers
from genfed.core.settings import settings
from genfed.metrics.nearest_neighbors import nearest_distance

Attack = Callable[[Tensor, Tensor], Tensor]
"""(x [n, d], samples [m, d]) → scores [n], higher for members."""


@settings
class MembershipSamples(Audit):
    """Tells training examples by how near synthetic ones lie: distance to the closest record, DOMIAS density ratio."""

    sees = ("samples",)
    attacker = (
        "Someone who is given synthetic examples, by the trained generator or from the set that the server keeps, and "
        "has some real examples of the same kind that nobody trained on. No model (of features: the extractor), no "
        "upload."
    )

    samples: Annotated[int, Field(ge=10)] = 1000
    """Synthetic examples that the attacker has."""
    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Training examples that are asked about, and as many others, at most."""
    components: Annotated[int, Field(ge=1)] = 20
    """Principal components of the attacker's real examples in which densities are estimated."""
    planted: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Of the planted leak: share of the members whose copies stand among the samples."""
    noise: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of what is added to these copies, where pixels are in [−1, 1]."""

    def examine(self, case: Case) -> Findings:
        asked = select_candidates(case, self.members, case.rng("membership_samples", "candidates"))
        members = comparable_vectors(case, case.train[asked.members])
        others, reference = (comparable_vectors(case, case.held_out[rows]) for rows in (asked.others, asked.reference))
        rng = case.rng("membership_samples", "labels")
        y = case.train.y[torch.randint(len(case.train), (self.samples,), generator=rng)]
        made = to_vectors(case.samples(y, "membership_samples"))
        if len(made) < 10:
            raise NotPossible(f"there are {len(made)} synthetic examples; the attack takes 10 at least")
        if not bool(made.isfinite().all()):
            raise NotPossible("the synthetic examples hold numbers that are not finite")
        apart = comparable_vectors(case, case.train[asked.apart[: len(made)]])
        leak = self._planted(made, members, case.rng("membership_samples", "planted"))
        attacks: dict[str, Attack] = {
            "distance to the closest record": nearest_sample,
            f"density ratio (DOMIAS, {self.components} components)": Density(reference, self.components).ratio,
        }

        def told(attack: Attack, samples: Tensor, name: str) -> dict[str, Estimate]:
            draws = case.rng("membership_samples", "bootstrap", name)
            return membership_numbers(attack(members, samples), attack(others, samples), draws)

        readings = tuple(
            Reading(name, AUC, 0.5, told(attack, made, name), told(attack, leak, name), told(attack, apart, name))
            for name, attack in attacks.items()
        )
        copies = int(self.planted * len(members))
        notes = (
            f"Planted leak: noisy copies of {min(copies, len(made))} of the members stand among the samples.",
            f"Nothing to find: {len(apart)} training examples that nobody is asked about stand in the place of the "
            "samples, so that a difference in kind between members and others would show.",
            *describe_features(case),
        )
        return Findings(readings, asked.sizes | {"samples": len(made)}, notes)

    def _planted(self, made: Tensor, members: Tensor, rng: torch.Generator) -> Tensor:
        """The samples with noisy copies of some members in the place of the first."""
        count = min(len(made), max(1, int(self.planted * len(members))))
        copied = members[torch.randperm(len(members), generator=rng)[:count]]
        return torch.cat([copied + self.noise * torch.randn(copied.shape, generator=rng), made[count:]])


def nearest_sample(x: Tensor, samples: Tensor) -> Tensor:
    """The negative distance of each of x [n, d] to the nearest sample, [n]."""
    return -nearest_distance(x, samples)[0]


class Density:
    """Densities in the principal components of the attacker's own examples, each brought to variance 1."""

    # differs from the paper: it estimates them in a learned representation of images, or by a flow; a kernel estimate
    # in principal components needs no training.

    def __init__(self, reference: Tensor, components: int) -> None:
        """`reference` [n, d]; of components as many as it has at most."""
        x = reference.double()
        self._mean = x.mean(0)
        _, values, axes = torch.linalg.svd(x - self._mean, full_matrices=False)
        spread = values / math.sqrt(max(1, len(x) - 1))
        kept = spread[:components] > 1e-6 * spread[0].clamp(min=1e-30)
        self._axes = (axes[:components][kept] / spread[:components][kept][:, None]).T
        self._reference = self._low(reference)

    def ratio(self, x: Tensor, samples: Tensor) -> Tensor:
        """Log p_samples(x) − log p_reference(x), [n]."""
        z = self._low(x)
        return log_density(z, self._low(samples)) - log_density(z, self._reference)

    def _low(self, x: Tensor) -> Tensor:
        z: Tensor = (x.double() - self._mean) @ self._axes
        return z


def log_density(x: Tensor, points: Tensor) -> Tensor:
    """Of x [n, d] by a Gaussian kernel on each of `format_points` [m, d], whose width is Scott's m^(−1/(d + 4))."""
    m, d = points.shape
    width = m ** (-1 / (d + 4))
    squares = torch.cat([torch.cdist(some, points).square() for some in torch.split(x, 1000)])
    constant = math.log(m) + d * math.log(width * math.sqrt(2 * math.pi))
    return torch.logsumexp(-squares / (2 * width**2), 1) - constant
