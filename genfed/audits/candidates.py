"""Whom an attacker is asked about: training examples, and held-out ones of the same classes; and what is left over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genfed.core.audit import Case, NotPossible
from genfed.core.method import Data
from genfed.learn.fit import scaled

FEWEST = 10
"""Pairs of a member and a non-member; with fewer a bootstrap interval lies above chance too often by chance."""


@dataclass(frozen=True)
class Candidates:
    """As many members as non-members, in the same numbers of each class: else the class alone would tell them apart."""

    members: Tensor
    """Rows of `Case.train`."""
    others: Tensor
    """Rows of `Case.held_out`: half of it, where they are not restricted further."""
    reference: Tensor
    """Held-out rows that the attacker has as data of their own: a quarter."""
    fresh: Tensor
    """Held-out rows for the control that has nothing to find: a quarter."""

    @property
    def sizes(self) -> dict[str, int]:
        """For the report."""
        return {"members": len(self.members), "non-members": len(self.others), "reference": len(self.reference)}


def candidates(case: Case, most: int, rng: torch.Generator) -> Candidates:
    """At most `most` members and as many non-members, at random.

    Raises:
        NotPossible: too few classes have examples in both.
    """
    order = torch.randperm(len(case.held_out), generator=rng)
    half, quarter = len(order) // 2, len(order) // 4
    others, reference, fresh = order[:half], order[half : half + quarter], order[half + quarter :]
    mine = torch.randperm(len(case.train), generator=rng)
    pairs = matched(case.train.y[mine], case.held_out.y[others])
    some = torch.randperm(len(pairs[0]), generator=rng)[:most]
    if len(some) < FEWEST or min(len(reference), len(fresh)) < 2:
        raise NotPossible(
            f"there are {len(some)} pairs of a training and a held-out example of one class, where an audit takes "
            f"{FEWEST}: more held-out examples would help"
        )
    return Candidates(mine[pairs[0][some]], others[pairs[1][some]], reference, fresh)


def matched(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of labels `one` [n] and `other` [m]: the first of each class, as many of one as of the other, class by
    class in the same order.
    """
    rows = []
    for c in torch.unique(torch.cat([one, other])).tolist():
        mine, theirs = (torch.nonzero(y == c).flatten() for y in (one, other))
        count = min(len(mine), len(theirs))
        rows.append((mine[:count], theirs[:count]))
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def flat(data: Data) -> Tensor:
    """Examples as vectors [n, d], on the scale of `learn.fit.scaled`."""
    return scaled(data.x).flatten(1).float()
