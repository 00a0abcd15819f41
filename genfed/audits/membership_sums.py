"""Membership inference from the sum of second moments over all clients.

The leverage xᵀ S⁻¹ x of an example in S = Σ x xᵀ (Hoaglin, Welsch, The Hat Matrix in Regression and ANOVA, The American
Statistician 1978) is at most 1 for an example in the sum, and without bound for others. That it tells members from
others is our use of it.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import FEWEST, select_candidates
from genfed.audits.findings import Findings, Reading
from genfed.audits.membership_metrics import AUC, membership_numbers
from genfed.audits.uploaded_sums import describe_added, find_sums, limit_to_added, read_added, vectors_as_uploaded
from genfed.core.settings import settings
from genfed.core.task import Weights
from genfed.generators.gaussian import unfold_triangle
from genfed.generators.statistics_generator import STEPS
from genfed.methods.bases.feature_statistics import StatisticsState

_SMALLEST = 1e-9
"""Least eigenvalue of the second moments, as a share of their mean; a direction in which no example lies has 0."""


@settings
class MembershipSums(Audit):
    """Recognizes training examples by their leverage in the second moments that the server has of all clients together:
    masks hide whose they are, and no more.
    """

    sees = ("state",)
    attacker = (
        "The server: it holds the sum of all clients' statistics, with secure aggregation too, and knows the encoder. "
        "It knows the attacked example and its class."
    )

    members: Annotated[int, Field(ge=FEWEST)] = 1000
    """Maximum number of attacked training examples, and of others."""
    planted: Annotated[int, Field(ge=FEWEST)] = 20
    """Members over which the planted leak sums; only these are attacked there."""

    def examine(self, case: Case) -> Findings:
        sums = find_sums(case)
        generator = sums.generator
        if not isinstance(case.state, StatisticsState) or "products" not in case.state.statistics:
            raise NotPossible(f"the server of {case.label} keeps no second moments of all clients")
        case = limit_to_added(case, sums)
        train, held_out = read_added(case, case.train, sums), read_added(case, case.held_out, sums)
        task = describe_added(case, train)
        if case.state.statistics["products"].shape[1] == task.shape[0]:
            raise NotPossible("the second moments are those of single features: they have no directions")
        attacked = select_candidates(case, self.members, case.rng("membership_sums", "candidates"))
        y = train.y[attacked.members]
        members = vectors_as_uploaded(generator, train[attacked.members], task)
        others = vectors_as_uploaded(generator, held_out[attacked.others], task)
        few = slice(min(self.planted, len(members)))
        numbers = []
        for name, statistics, some in (
            ("this run", case.state.statistics, slice(None)),
            ("planted leak", generator.measure(train[attacked.members[few]], task), few),
            ("nothing to find", generator.measure(train[attacked.apart], task), slice(None)),
        ):
            inside, outside = (-find_leverage(statistics, vectors[some], y[some]) for vectors in (members, others))
            numbers.append(membership_numbers(inside, outside, case.rng("membership_sums", "bootstrap", name)))
        features = members.shape[1]
        notes = (
            f"The run adds up {len(case.train):,} examples of {features:,} features.",
            f"Planted leak: second moments of {len(members[few])} members alone; only these are attacked.",
            "Nothing to find: second moments of training examples that are not attacked.",
        )
        return Findings((Reading("leverage in the second moments", AUC, 0.5, *numbers),), attacked.sizes, notes)


def find_leverage(statistics: Weights, vectors: Tensor, y: Tensor) -> Tensor:
    """Returns xᵀ S⁻¹ x [n] of vectors [n, d] with classes y [n], where S is the second moments of all examples, or of
    those of the class.
    """
    second = unfold_triangle(statistics["products"].double() / STEPS**2, vectors.shape[1])
    values, directions = torch.linalg.eigh(second)
    values = values.clamp_min(_SMALLEST * values.mean().clamp_min(1e-12))
    of_class = y if len(second) > 1 else torch.zeros_like(y)
    found = torch.empty(len(vectors), dtype=torch.float64)
    for place in torch.unique(of_class).tolist():
        rows = of_class == place
        found[rows] = ((vectors[rows] @ directions[place]).square() / values[place]).sum(1)
    return found
