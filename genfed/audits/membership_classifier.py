"""Membership inference from clients' final classifiers, with shadow models.

LiRA: Carlini, Chien, Nasr, Song, Terzis, Tramèr, Membership Inference Attacks From First Principles, IEEE S&P 2022,
arXiv 2112.03570, Algorithm 1 (online), with one variance for all examples, as they have it for few shadows. RMIA:
Zarifzadeh, Liu, Shokri, Low-Cost High-Power Membership Inference Attacks, ICML 2024, arXiv 2312.03262, with the p(x) of
its offline form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case
from genfed.audits.candidates import FEWEST, AttackedExamples, overfit_control, pair_examples
from genfed.audits.findings import Findings, Reading
from genfed.audits.membership_metrics import AUC, membership_numbers
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.training.evaluation import predict

LARGEST_SCORE = 1e4
"""Largest absolute score: a head in closed form has scores of hundreds, and of a million for a class without examples.
"""


@dataclass(frozen=True)
class ShadowAnswers:
    """Answers of the classifiers of one run, float64; clients one after the other."""

    scores: Tensor
    """Score log p/(1 − p) of the true class, for members and for others [2, pairs]."""
    population: Tensor
    """The same for the attacker's own examples, by client [clients, population]."""


Attack = Callable[[ShadowAnswers, Sequence[ShadowAnswers], Tensor], Tensor]
"""(answers of the target, answers of shadows, which candidates are in which shadow) → scores [2, pairs], higher for
members."""


@settings
class MembershipClassifier(Audit):
    """Recognizes training examples by a client's final classifier: LiRA, RMIA, and its confidence alone."""

    sees = ("classifiers",)
    attacker = (
        "Someone who may query a client's final classifier for probabilities as often as they like. They know the "
        "method and its settings, the attacked example with its class, and (the worst case) the other examples of the "
        "clients, on which they train shadows of the run."
    )
    retrains = True

    shadows: Annotated[int, Field(ge=4, multiple_of=2)] = 16
    """Runs of the method that the attacker trains, each with another seed. Each attacked example is in half of them."""
    references: Annotated[int, Field(ge=1)] = 4
    """Shadows without the example with which RMIA compares its probability; at most half of `shadows`."""
    gamma: Annotated[float, Field(gt=0)] = 2.0
    """Factor by which RMIA requires an example to exceed one of the population (γ)."""
    offline: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The a of RMIA's p(x) = ((1 + a)·p_OUT(x) + 1 − a)/2."""
    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Maximum number of attacked training examples over all clients, and of others."""
    planted_epochs: Annotated[int, Field(ge=1)] = 100
    """Epochs of the planted leak: further training of each client's classifier, by Adam on its attacked members alone;
    classifiers of shadows likewise."""

    def examine(self, case: Case) -> Findings:
        attacked, population = pair_examples(case, self.members)
        inside = draw_shadow_members(case, attacked, self.shadows)
        final = [case.classifier(holding.client) for holding in case.holdings]
        run = answer_all(case, final, attacked, population)
        planted = self._planted(case, final, [case.train[each.members] for each in attacked])
        leak = answer_all(case, planted, attacked, population)
        shadows, leaking = self._train_shadows(case, attacked, population, inside)
        readings = []
        for name, attack in self._attacks(attacked).items():
            scores = [
                attack(run, shadows, inside),
                attack(leak, leaking, inside),
                attack(shadows[0], shadows[1:], inside[1:]),
            ]
            numbers = [
                membership_numbers(members, others, case.rng("membership_classifier", "bootstrap", name))
                for members, others in scores
            ]
            readings.append(Reading(name, AUC, 0.5, *numbers))
        notes = (
            f"Each shadow is a run of the method on as many examples ({len(case.train):,}), as many of each class at "
            "each client; half of the members and non-members that are attacked are in it, at random.",
            f"Planted leak: classifiers, those of shadows too, trained for {self.planted_epochs} epochs more on the "
            "attacked members alone; new networks in place of those in closed form, which have nothing to train.",
            "Nothing to find: the classifiers of a shadow, whose members were drawn anew.",
        )
        count = sum(len(each.members) for each in attacked)
        sizes = {"members": count, "non-members": count, "population": len(population), "shadows": self.shadows}
        return Findings(tuple(readings), sizes, notes)

    def _train_shadows(
        self, case: Case, attacked: Sequence[AttackedExamples], population: Tensor, inside: Tensor
    ) -> tuple[list[ShadowAnswers], list[ShadowAnswers]]:
        """Returns what shadows of the run answer, and what they answer with the planted leak."""
        shadows, leaking = [], []
        for number in range(self.shadows):
            shadow = case.retrained(number, shadow_data(case, attacked, inside[number]))
            networks = [shadow.classifier(holding.client) for holding in shadow.holdings]
            shadows.append(answer_all(case, networks, attacked, population))
            alone = [replace(each, rest=each.rest[:0]) for each in attacked]
            planted = self._planted(case, networks, shadow_data(case, alone, inside[number]))
            leaking.append(answer_all(case, planted, attacked, population))
        return shadows, leaking

    def _attacks(self, attacked: Sequence[AttackedExamples]) -> dict[str, Attack]:
        """Returns the attacks by name."""
        without = min(self.references, self.shadows // 2)
        client = torch.arange(len(attacked)).repeat_interleave(torch.tensor([len(a.members) for a in attacked]))
        return {
            f"LiRA, {self.shadows} shadows": lira,
            f"RMIA, {without} shadows without the example": lambda target, others, where: rmia(
                target, others, where, client, without, self.gamma, self.offline
            ),
            "confidence alone": lambda target, others, where: target.scores,
        }

    def _planted(self, case: Case, networks: Sequence[nn.Module], members: Sequence[Data]) -> Sequence[nn.Module]:
        """Returns the networks, each trained further on these members. See `overfit_control`."""
        return [
            overfit_control(network, data, self.planted_epochs, case.rng("membership_classifier", "planted", place))
            for place, (network, data) in enumerate(zip(networks, members, strict=True))
        ]


def answer_all(
    case: Case, networks: Sequence[nn.Module], attacked: Sequence[AttackedExamples], population: Tensor
) -> ShadowAnswers:
    """Returns what classifiers, by client, answer for the attacked examples and for the population (held-out rows)."""
    members = [_scores(network, case.train[each.members]) for network, each in zip(networks, attacked, strict=True)]
    others = [_scores(network, case.held_out[each.others]) for network, each in zip(networks, attacked, strict=True)]
    of_population = torch.stack([_scores(network, case.held_out[population]) for network in networks])
    return ShadowAnswers(torch.stack([torch.cat(members), torch.cat(others)]), of_population)


def draw_shadow_members(case: Case, attacked: Sequence[AttackedExamples], shadows: int) -> Tensor:
    """Returns which candidates are in which shadow: bool [shadows, 2 (member, other), pairs]. A random half of a
    client's candidates of a class is in one shadow and the other half in the next, so each is in half of all shadows.
    """
    counts = torch.tensor([len(each.members) for each in attacked])
    y = case.train.y[torch.cat([each.members for each in attacked])]
    cell = torch.arange(len(attacked)).repeat_interleave(counts) * len(case.task.classes) + y
    inside = torch.zeros(shadows, 2, len(y), dtype=torch.bool)
    for number in range(0, shadows, 2):
        draws = case.rng("membership_classifier", "inside", number)
        for c in torch.unique(cell).tolist():
            pairs_of = torch.nonzero(cell == c).flatten()
            half = torch.randperm(2 * len(pairs_of), generator=draws) < len(pairs_of)
            inside[number, :, pairs_of] = half.reshape(2, -1)
        inside[number + 1] = ~inside[number]
    return inside


def shadow_data(case: Case, attacked: Sequence[AttackedExamples], inside: Tensor) -> list[Data]:
    """Returns the examples of each client of a shadow; inside [2, pairs]."""
    parts, start = [], 0
    for each in attacked:
        members, others = inside[:, start : start + len(each.members)]
        start += len(each.members)
        drawn = (case.train[each.members[members]], case.held_out[each.others[others]], case.train[each.rest])
        parts.append(Data(torch.cat([d.x for d in drawn]), torch.cat([d.y for d in drawn])))
    return parts


def lira(target: ShadowAnswers, shadows: Sequence[ShadowAnswers], inside: Tensor) -> Tensor:
    """Returns log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²) [2, pairs], φ = log p/(1 − p); examples share σ²."""
    scores = torch.stack([shadow.scores for shadow in shadows])  # [shadows, 2, pairs]
    found = []
    for where in (inside, ~inside):
        count = where.sum(0)
        mean = (scores * where).sum(0) / count
        free = (count - 1).clamp(min=0).sum()
        variance = (((scores - mean).square() * where).sum() / free).clamp(min=1e-12)
        found.append(-(target.scores - mean).square() / (2 * variance) - variance.log() / 2)
    return found[0] - found[1]


def rmia(
    target: ShadowAnswers,
    shadows: Sequence[ShadowAnswers],
    inside: Tensor,
    client: Tensor,
    references: int,
    gamma: float,
    a: float,
) -> Tensor:
    """Returns the share of the population that an example exceeds by the factor γ [2, pairs].

    Args:
        target: answers of the attacked classifiers.
        shadows: answers of the shadows.
        inside: which candidates are in which shadow.
        client: index of the client of each pair [pairs].
        references: number of shadows without the example that are used.
        gamma: γ.
        a: as in `MembershipClassifier.offline`.
    """
    chances = torch.stack([shadow.scores for shadow in shadows]).sigmoid()
    out = ~inside & ((~inside).cumsum(0) <= references)
    reference = (chances * out).sum(0) / out.sum(0)
    of_population = torch.stack([shadow.population for shadow in shadows[:references]]).sigmoid().mean(0)
    ratio = target.scores.sigmoid() / (((1 + a) * reference + 1 - a) / 2)
    others = target.population.sigmoid() / (((1 + a) * of_population + 1 - a) / 2)
    found = [(ratio[:, client == c, None] / others[c] >= gamma).double().mean(2) for c in range(len(others))]
    return torch.cat(found, 1)


def _scores(network: nn.Module, data: Data) -> Tensor:
    """Returns log p/(1 − p) of the true class [n]: its score less the log-sum-exp of the others."""
    scores = predict(network, data.x).double()
    own = scores.gather(1, data.y[:, None])
    others = scores.scatter(1, data.y[:, None], -torch.inf)
    return (own[:, 0] - torch.logsumexp(others, 1)).clamp(-LARGEST_SCORE, LARGEST_SCORE)
