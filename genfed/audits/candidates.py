"""The attacked examples: training examples, and held-out ones of the same classes; and classifiers that leak them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genfed.audits.audit import Case, ClientExamples, NotPossible
from genfed.core.rng import seeded
from genfed.core.task import Data
from genfed.training.evaluation import predict
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.pixels import normalize_pixels

FEWEST = 10
"""Minimum number of pairs of a member and a non-member. With fewer, an interval is above chance too often by chance."""


@dataclass(frozen=True)
class Candidates:
    """Members and non-members in the same number per class, so that the class alone does not separate them."""

    members: Tensor
    """Rows of `Case.train`, at most half of them."""
    others: Tensor
    """Rows of `Case.held_out`, at most half of them."""
    reference: Tensor
    """Held-out rows that the attacker has as their own data: the other half."""
    apart: Tensor
    """Rows of `Case.train` that are not attacked. A model that has seen only these can separate members from others
    only by a difference in kind: the control with nothing to find."""

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of examples, for the report."""
        return {"members": len(self.members), "non-members": len(self.others), "reference": len(self.reference)}


@dataclass(frozen=True)
class AttackedExamples:
    """The attacked examples of one client, in pairs of one class."""

    members: Tensor
    """Training examples of the client: rows of `Case.train` [p]."""
    others: Tensor
    """Rows of `Case.held_out` [p], each for one client only."""
    rest: Tensor
    """The other training examples of the client, which every shadow has too."""


def select_candidates(case: Case, limit: int, rng: torch.Generator) -> Candidates:
    """Returns at most `limit` members and as many non-members, at random.

    Raises:
        NotPossible: too few classes have examples in both.
    """
    others, reference = torch.randperm(len(case.held_out), generator=rng).tensor_split(2)
    mine = torch.randperm(len(case.train), generator=rng)
    one, other = match_classes(case.train.y[mine], case.held_out.y[others])
    some = torch.randperm(len(one), generator=rng)[: min(limit, len(mine) // 2)]
    if len(some) < FEWEST:
        raise NotPossible(
            f"there are {len(some)} pairs of a training and a held-out example of one class, where an audit takes "
            f"{FEWEST}: more examples would help, held-out ones above all"
        )
    rest = torch.ones(len(mine), dtype=torch.bool).index_fill_(0, one[some], False)
    return Candidates(mine[one[some]], others[other[some]], reference, mine[rest])


def pair_examples(case: Case, limit: int) -> tuple[list[AttackedExamples], Tensor]:
    """Returns pairs of one class for each client, with held-out examples that resemble the client's; and a quarter of
    the held-out examples as the attacker's own population.

    Raises:
        NotPossible: a client has no held-out example of its classes, or there are too few pairs.
    """
    order = torch.randperm(len(case.held_out), generator=case.rng("membership_classifier", "held out"))
    quarter = len(order) // 4
    population, free = order[:quarter], order[quarter:]
    at_most = max(1, limit // len(case.holdings))
    attacked = []
    for place, holding in enumerate(case.holdings):
        share = _share(case, holding, free, len(case.holdings) - place)[:at_most]
        draws = case.rng("membership_classifier", "own", place)
        mine = holding.rows[torch.randperm(len(holding.rows), generator=draws)]
        one, other = match_classes(case.train.y[mine], case.held_out.y[share])
        if not len(one) or not quarter:
            why = "has no held-out examples of its classes left to be compared with"
            raise NotPossible(f"client {holding.client.id} {why}: more held-out examples, or fewer clients, would help")
        rest = torch.ones(len(mine), dtype=torch.bool).index_fill_(0, one, False)
        attacked.append(AttackedExamples(mine[one], share[other], mine[rest]))
        free = free[~torch.isin(free, share[other])]
    if (count := sum(len(each.members) for each in attacked)) < FEWEST:
        raise NotPossible(f"there are {count} pairs of examples to attack, where it takes {FEWEST}")
    return attacked, population


def _share(case: Case, holding: ClientExamples, free: Tensor, clients: int) -> Tensor:
    """Returns a client's part of the free held-out rows: of each of its classes, one over the clients left."""
    suitable = free if holding.like is None else free[torch.isin(free, holding.like)]
    y, chosen = case.held_out.y[suitable], []
    for c in torch.unique(case.train.y[holding.rows]).tolist():
        rows = suitable[y == c]
        chosen.append(rows[: -(-len(rows) // clients)])
    return suitable[torch.isin(suitable, torch.cat(chosen))]  # in their random order, over all classes


def match_classes(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows of labels `one` [n] and of `other` [m]: the first rows of each class, the same number of both, in
    the same order of classes.
    """
    rows = []
    for c in torch.unique(torch.cat([one, other])).tolist():
        mine, theirs = (torch.nonzero(y == c).flatten() for y in (one, other))
        count = min(len(mine), len(theirs))
        rows.append((mine[:count], theirs[:count]))
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def to_vectors(data: Data) -> Tensor:
    """Returns examples as vectors [n, d], on the scale of `normalize_pixels`."""
    return normalize_pixels(data.x).flatten(1).float()


def comparable_vectors(case: Case, data: Data) -> Tensor:
    """Returns real examples as vectors [n, d] to compare with samples: features, if samples are features."""
    return to_vectors(data if case.features is None else case.features(data))


def describe_features(case: Case) -> list[str]:
    """Returns a note for the report if samples are features."""
    if case.features is None:
        return []
    return [
        "Samples are features: real examples are compared by their features from the extractor that all clients share."
    ]


def overfit_control(
    network: nn.Module,
    data: Data,
    epochs: int,
    rng: torch.Generator,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
) -> nn.Module:
    """Trains a classifier in place on a few examples by Adam, which makes it leak them. Returns it in eval mode. In
    place of one in closed form, which has nothing to train, it trains and returns a new network.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        network = _new_network(data, predict(network, data.x[:1]).shape[1], rng)
    objective = Objective(cross_entropy(network.train()), torch.optim.Adam(network.parameters(), lr=learning_rate))
    fit([objective], data, epochs=epochs, batch_size=batch_size, rng=rng)
    return network.eval()


def _new_network(data: Data, classes: int, rng: torch.Generator) -> nn.Module:
    """Returns a new classifier of such examples that is wide enough to memorize some hundreds of them."""
    with seeded(rng):
        layers = nn.Linear(data.x[0].numel(), 256), nn.ReLU(), nn.Linear(256, classes)
    return nn.Sequential(nn.Flatten(), *layers).to(data.x.device)
