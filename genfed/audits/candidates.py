"""Whom an attacker is asked about: training examples, and held-out ones of the same classes; what is left over;
and classifiers that leak them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.audits.audit import Case, ClientExamples, NotPossible
from genfed.core.task import Data
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.pixels import normalize_pixels

FEWEST = 10
"""Pairs of a member and a non-member; with fewer a bootstrap interval lies above chance too often by chance."""


@dataclass(frozen=True)
class Candidates:
    """As many members as non-members, in the same numbers of each class: else the class alone would tell them apart."""

    members: Tensor
    """Rows of `Case.train`: half of it at most."""
    others: Tensor
    """Rows of `Case.held_out`: half of it, where they are not restricted further."""
    reference: Tensor
    """Held-out rows that the attacker has as data of their own: the other half."""
    apart: Tensor
    """Rows of `Case.train` that nobody is asked about. Whoever has learnt these alone, or gives them away, tells
    members from others by their kind only: the control that has nothing to find."""

    @property
    def sizes(self) -> dict[str, int]:
        """For the report."""
        return {"members": len(self.members), "non-members": len(self.others), "reference": len(self.reference)}


@dataclass(frozen=True)
class AskedExamples:
    """Whom the attacker asks a client's classifier about, in pairs of one class."""

    members: Tensor
    """Of the client's training examples: rows of `Case.train` [p]."""
    others: Tensor
    """Rows of `Case.held_out` [p]; no other client has them either."""
    rest: Tensor
    """The client's other training examples, which are in every shadow as well."""


def select_candidates(case: Case, most: int, rng: torch.Generator) -> Candidates:
    """At most `most` members and as many non-members, at random.

    Raises:
        NotPossible: too few classes have examples in both.
    """
    others, reference = torch.randperm(len(case.held_out), generator=rng).tensor_split(2)
    mine = torch.randperm(len(case.train), generator=rng)
    one, other = match_classes(case.train.y[mine], case.held_out.y[others])
    some = torch.randperm(len(one), generator=rng)[: min(most, len(mine) // 2)]
    if len(some) < FEWEST:
        raise NotPossible(
            f"there are {len(some)} pairs of a training and a held-out example of one class, where an audit takes "
            f"{FEWEST}: more examples would help, held-out ones above all"
        )
    rest = torch.ones(len(mine), dtype=torch.bool).index_fill_(0, one[some], False)
    return Candidates(mine[one[some]], others[other[some]], reference, mine[rest])


def pair_examples(case: Case, most: int) -> tuple[list[AskedExamples], Tensor]:
    """For each holding pairs of one class, where the held-out part is like the client's; and a quarter of the held-out
    part as the attacker's own population.

    Raises:
        NotPossible: a client has no held-out example of its classes, or there are too few pairs.
    """
    order = torch.randperm(len(case.held_out), generator=case.rng("membership_classifier", "held out"))
    quarter = len(order) // 4
    population, free = order[:quarter], order[quarter:]
    at_most = max(1, most // len(case.holdings))
    asked = []
    for place, holding in enumerate(case.holdings):
        share = _share(case, holding, free, len(case.holdings) - place)[:at_most]
        draws = case.rng("membership_classifier", "own", place)
        mine = holding.rows[torch.randperm(len(holding.rows), generator=draws)]
        one, other = match_classes(case.train.y[mine], case.held_out.y[share])
        if not len(one) or not quarter:
            why = "has no held-out examples of its classes left to be compared with"
            raise NotPossible(f"client {holding.client.id} {why}: more held-out examples, or fewer clients, would help")
        rest = torch.ones(len(mine), dtype=torch.bool).index_fill_(0, one, False)
        asked.append(AskedExamples(mine[one], share[other], mine[rest]))
        free = free[~torch.isin(free, share[other])]
    if (count := sum(len(each.members) for each in asked)) < FEWEST:
        raise NotPossible(f"there are {count} pairs to be asked about, where it takes {FEWEST}")
    return asked, population


def _share(case: Case, holding: ClientExamples, free: Tensor, clients: int) -> Tensor:
    """A client's part of the held-out rows that nobody has yet: of each of its classes, one over the clients left."""
    able = free if holding.like is None else free[torch.isin(free, holding.like)]
    y, chosen = case.held_out.y[able], []
    for c in torch.unique(case.train.y[holding.rows]).tolist():
        rows = able[y == c]
        chosen.append(rows[: -(-len(rows) // clients)])
    kept = torch.cat(chosen)
    return able[torch.isin(able, kept)]  # in their random order, whatever the class


def match_classes(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of labels `one` [n] and `other` [m]: the first of each class, as many of one as of the other, class by
    class in the same order.
    """
    rows = []
    for c in torch.unique(torch.cat([one, other])).tolist():
        mine, theirs = (torch.nonzero(y == c).flatten() for y in (one, other))
        count = min(len(mine), len(theirs))
        rows.append((mine[:count], theirs[:count]))
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def to_vectors(data: Data) -> Tensor:
    """Examples as vectors [n, d], on the scale of `normalize_pixels`."""
    return normalize_pixels(data.x).flatten(1).float()


def comparable_vectors(case: Case, data: Data) -> Tensor:
    """Real examples as vectors [n, d] that can be compared with samples: of features, where samples are such."""
    return to_vectors(data if case.features is None else case.features(data))


def describe_features(case: Case) -> list[str]:
    """What a reader must know where samples are features."""
    if case.features is None:
        return []
    return [
        "Samples are features: real examples are compared with them as the extractor has them that all clients share."
    ]


def overfit_control(
    network: nn.Module,
    data: Data,
    epochs: int,
    rng: torch.Generator,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
) -> nn.Module:
    """The classifier itself, a planted leak: trained on these few examples by Adam; in eval mode."""
    player = Objective(cross_entropy(network.train()), torch.optim.Adam(network.parameters(), lr=learning_rate))
    fit([player], data, epochs=epochs, batch_size=batch_size, rng=rng)
    return network.eval()
