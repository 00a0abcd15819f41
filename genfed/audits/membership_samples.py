"""Membership inference from samples alone: was the generator trained on an example?

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
    """Recognizes training examples by how near synthetic ones are: distance to the closest record, DOMIAS ratio."""

    sees = ("samples",)
    attacker = (
        "Someone who is given synthetic examples, from the trained generator or from the server's synthetic dataset, "
        "and has some real examples of the same kind on which no client trained. No model (for features: the "
        "extractor), no upload."
    )

    samples: Annotated[int, Field(ge=10)] = 1000
    """Synthetic examples that the attacker has."""
    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Maximum number of attacked training examples, and of others."""
    components: Annotated[int, Field(ge=1)] = 20
    """Principal components of the attacker's real examples in which densities are estimated."""
    planted: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the members that are copied into the samples in the planted leak."""
    noise: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of the noise added to these copies, for pixels in [−1, 1]."""

    def examine(self, case: Case) -> Findings:
        attacked = select_candidates(case, self.members, case.rng("membership_samples", "candidates"))
        members = comparable_vectors(case, case.train[attacked.members])
        others, reference = (
            comparable_vectors(case, case.held_out[rows]) for rows in (attacked.others, attacked.reference)
        )
        rng = case.rng("membership_samples", "labels")
        y = case.train.y[torch.randint(len(case.train), (self.samples,), generator=rng)]
        synthetic = to_vectors(case.samples(y, "membership_samples"))
        if len(synthetic) < 10:
            raise NotPossible(f"there are {len(synthetic)} synthetic examples; the attack takes 10 at least")
        if not bool(synthetic.isfinite().all()):
            raise NotPossible("the synthetic examples hold numbers that are not finite")
        apart = comparable_vectors(case, case.train[attacked.apart[: len(synthetic)]])
        leak = self._planted(synthetic, members, case.rng("membership_samples", "planted"))
        attacks: dict[str, Attack] = {
            "distance to the closest record": nearest_sample,
            f"density ratio (DOMIAS, {self.components} components)": Density(reference, self.components).ratio,
        }

        def score(attack: Attack, samples: Tensor, name: str) -> dict[str, Estimate]:
            draws = case.rng("membership_samples", "bootstrap", name)
            return membership_numbers(attack(members, samples), attack(others, samples), draws)

        readings = tuple(
            Reading(
                name, AUC, 0.5, score(attack, synthetic, name), score(attack, leak, name), score(attack, apart, name)
            )
            for name, attack in attacks.items()
        )
        copies = int(self.planted * len(members))
        notes = (
            f"Planted leak: noisy copies of {min(copies, len(synthetic))} of the members are among the samples.",
            f"Nothing to find: {len(apart)} training examples that are not attacked take the place of the "
            "samples, so that a difference in kind between members and others would show.",
            *describe_features(case),
        )
        return Findings(readings, attacked.sizes | {"samples": len(synthetic)}, notes)

    def _planted(self, synthetic: Tensor, members: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the samples with the first ones replaced by noisy copies of some members."""
        count = min(len(synthetic), max(1, int(self.planted * len(members))))
        copied = members[torch.randperm(len(members), generator=rng)[:count]]
        return torch.cat([copied + self.noise * torch.randn(copied.shape, generator=rng), synthetic[count:]])


def nearest_sample(x: Tensor, samples: Tensor) -> Tensor:
    """Returns the negative distance [n] of each of x [n, d] to the nearest sample."""
    return -nearest_distance(x, samples)[0]


class Density:
    """Densities in the principal components of the attacker's own examples, each scaled to variance 1."""

    # differs from the paper: it estimates them in a learned representation of images, or by a flow; a kernel estimate
    # in principal components needs no training.

    def __init__(self, reference: Tensor, components: int) -> None:
        """Fits the density to `reference`, the attacker's own examples [n, d], in at most `components` components."""
        x = reference.double()
        self._mean = x.mean(0)
        _, values, axes = torch.linalg.svd(x - self._mean, full_matrices=False)
        spread = values / math.sqrt(max(1, len(x) - 1))
        kept = spread[:components] > 1e-6 * spread[0].clamp(min=1e-30)
        self._axes = (axes[:components][kept] / spread[:components][kept][:, None]).T
        self._reference = self._low(reference)

    def ratio(self, x: Tensor, samples: Tensor) -> Tensor:
        """Returns log p_samples(x) − log p_reference(x), [n]."""
        z = self._low(x)
        return log_density(z, self._low(samples)) - log_density(z, self._reference)

    def _low(self, x: Tensor) -> Tensor:
        z: Tensor = (x.double() - self._mean) @ self._axes
        return z


def log_density(x: Tensor, points: Tensor) -> Tensor:
    """Returns the log-density at x [n, d] of Gaussian kernels on `points` [m, d], with Scott's width m^(−1/(d + 4))."""
    m, d = points.shape
    width = m ** (-1 / (d + 4))
    squares = torch.cat([torch.cdist(some, points).square() for some in torch.split(x, 1000)])
    constant = math.log(m) + d * math.log(width * math.sqrt(2 * math.pi))
    return torch.logsumexp(-squares / (2 * width**2), 1) - constant
