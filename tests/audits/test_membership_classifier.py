"""Classifiers that learnt labels by heart betray their members; untrained ones do not; LiRA and RMIA by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from genfed.audits.audit import Case, ClientExamples, NotPossible
from genfed.audits.candidates import AttackedExamples, pair_examples
from genfed.audits.membership_classifier import (
    MembershipClassifier,
    ShadowAnswers,
    answer_all,
    draw_shadow_members,
    lira,
    rmia,
    shadow_data,
)
from genfed.core.aggregate import ClientInfo
from genfed.core.rng import seeded, stream
from genfed.core.task import Data
from genfed.training.fit import Objective, cross_entropy, fit
from tests.audits.cases import case, drawn

SMALL: dict[str, Any] = {"shadows": 8, "references": 2, "planted_epochs": 150}


def noisy(data: Data, *path: str) -> Data:
    """A third of the labels are wrong: what is known of these was learnt by heart."""
    other = torch.randint(3, data.y.shape, generator=stream(5, *path))
    return Data(data.x, torch.where(torch.arange(len(data)) % 3 == 1, other, data.y))


def local(number: int, parts: Sequence[Data], epochs: int) -> Case:
    """Every client trains alone, from the same initial weights."""

    def classifier(info: ClientInfo) -> nn.Module:
        with seeded(stream(number, "weights")):
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))
        adam = torch.optim.Adam(network.parameters(), lr=5e-3)
        fit([Objective(cross_entropy(network), adam)], parts[info.id], epochs=epochs, batch_size=60, rng=stream(number))
        return network

    train = Data(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
    stops = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0).tolist()
    infos = [ClientInfo(i, "mlp", len(p)) for i, p in enumerate(parts)]
    holdings = tuple(ClientExamples(info, torch.arange(stops[info.id], stops[info.id + 1]), None) for info in infos)
    held_out = noisy(drawn(200, "held out"), "held out")
    return replace(
        case(), train=train, held_out=held_out, holdings=holdings, classifier=classifier,
        retrained=lambda n, data: local(n + 1, data, epochs),
    )  # fmt: skip


def toy(epochs: int) -> Case:
    data = noisy(drawn(120, "train"), "train")
    return local(0, [data[:60], data[60:]], epochs)


def test_what_was_learnt_by_heart_is_found() -> None:
    found = MembershipClassifier(**SMALL).examine(toy(60).as_seen(("classifiers",)))
    assert [r.verdict for r in found.readings] == ["leak"] * 3, found
    assert found.sizes["members"] == found.sizes["non-members"] > 90


def test_classifiers_that_learnt_nothing_are_silent_and_the_planted_leak_is_found() -> None:
    found = MembershipClassifier(**SMALL | {"shadows": 4}).examine(toy(0))
    assert [r.verdict for r in found.readings] == ["no leak found"] * 3, found


def test_every_candidate_stands_in_half_of_the_shadows_which_have_the_same_classes() -> None:
    trial = toy(0)
    asked, population = pair_examples(trial, 40)
    assert [len(a.members) for a in asked] == [20, 20]
    rows = torch.cat([population, *(a.others for a in asked)])
    assert len(torch.unique(rows)) == len(rows)  # nobody is asked about twice, and the population is nobody
    inside = draw_shadow_members(trial, asked, 4)
    assert inside.sum(0).tolist() == [[2] * 40] * 2
    for part, each, holding in zip(shadow_data(trial, asked, inside[0]), asked, trial.holdings, strict=True):
        assert torch.equal(trial.train.y[each.members], trial.held_out.y[each.others])
        assert torch.equal(part.y.bincount(), trial.train.y[holding.rows].bincount())
        assert sorted([*each.members.tolist(), *each.rest.tolist()]) == holding.rows.tolist()


def test_clients_meet_held_out_examples_like_theirs() -> None:
    trial = toy(0)
    like = torch.arange(100, 200)
    trial = replace(trial, holdings=tuple(replace(h, like=like) for h in trial.holdings))
    asked, _ = pair_examples(trial, 1000)
    assert all(int(a.others.min()) >= 100 for a in asked)
    lost = replace(trial, holdings=(replace(trial.holdings[0], like=torch.tensor([], dtype=torch.int64)),))
    with pytest.raises(NotPossible, match="client 0 has no held-out examples"):
        pair_examples(lost, 100)


def test_scores_of_hundreds_are_told_apart() -> None:
    """A head in closed form is sure of all examples, and surer of members."""
    logits = torch.tensor([[900.0, 0.0], [300.0, 0.0], [-300.0, 0.0], [-1e6, 0.0]])
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    next(network.parameters()).data.copy_(torch.tensor([[1.0], [0.0]]))
    data = Data(logits[:, :1].reshape(-1, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    trial = replace(case(), train=data, held_out=data)
    rows = torch.arange(4)
    found = answer_all(trial, [network], [AttackedExamples(rows, rows, rows[:0])], rows)
    assert found.scores[0].tolist() == [900, 300, -300, -1e4]


def test_lira_and_rmia_by_hand() -> None:
    def answers(member: float, other: float, population: float = 0.0) -> ShadowAnswers:
        return ShadowAnswers(torch.tensor([[member], [other]]).double(), torch.tensor([[population]]).double())

    shadows = [answers(3, 0), answers(5, 2), answers(1, 4), answers(-1, 4)]
    inside = torch.tensor([[[True], [False]], [[True], [False]], [[False], [True]], [[False], [True]]])
    # member: in (3, 5), mean 4; out (1, −1), mean 0. other: out (0, 2), mean 1; in (4, 4), mean 4.
    variance_in, variance_out = (1 + 1 + 0 + 0) / 2, (1 + 1 + 1 + 1) / 2
    expected = -((2 - 4) ** 2) / (2 * variance_in) - math.log(variance_in) / 2
    expected -= -((2 - 0) ** 2) / (2 * variance_out) - math.log(variance_out) / 2
    scores = lira(answers(2, 1), shadows, inside)
    assert float(scores[0, 0]) == pytest.approx(expected)
    assert float(scores[1, 0]) < 0 < float(lira(answers(4, 4), shadows, inside)[0, 0])

    def p(score: float) -> float:
        return 1 / (1 + math.exp(-score))

    one = torch.tensor([0])
    ratio = p(2) / ((1.5 * (p(1) + p(-1)) / 2 + 0.5) / 2)
    of_population = 0.5 / ((1.5 * 0.5 + 0.5) / 2)
    for gamma, score in ((0.99 * ratio / of_population, 1.0), (1.01 * ratio / of_population, 0.0)):
        assert float(rmia(answers(2, 1), shadows, inside, one, 2, gamma, 0.5)[0, 0]) == score
