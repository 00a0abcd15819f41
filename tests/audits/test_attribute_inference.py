"""A column is told of records that a classifier learnt by heart, and not of others, nor by what nobody trained."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.audits.attribute_inference import (
    ADVANTAGE,
    FREQUENT,
    MEMBERS,
    AttributeInference,
    guess_values,
    replace_value,
)
from genfed.audits.audit import Case, NotPossible
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.rng import seeded, stream
from genfed.core.task import Data, Task
from genfed.training.fit import Objective, cross_entropy, fit
from tests.audits.cases import case, server

TASK = Task("table", (9,), ("no", "yes"))
COLUMNS = {"blood": (4, 5, 6, 7), "always": (8,)}


def drawn(n: int, *path: str) -> Data:
    """Four numbers, which the class hangs on as well as on chance, a category of four and one of one."""
    rng = stream(7, *path)
    numbers, blood = torch.randn(n, 4, generator=rng), torch.randint(4, (n,), generator=rng)
    y = (numbers[:, 0] + torch.randn(n, generator=rng) > 0).long()
    return Data(torch.cat([numbers, torch.eye(4)[blood], torch.ones(n, 1)], 1), y)


def mlp(architecture: str, rng: torch.Generator) -> nn.Sequential:
    with seeded(rng):
        return nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 2))


def toy(epochs: int = 0, **changes: Any) -> Case:
    """Each client trains alone, on records of which each stands there with its value and with others."""

    def there(*path: str | int) -> Server:
        return dataclasses.replace(server(*path), new_network=mlp)

    made = case(train=120, held_out=480)
    train = drawn(120, "train")

    def classifier(info: ClientInfo) -> nn.Module:
        network, own = mlp("", stream(info.id)), train[made.holdings[info.id].rows]
        other = replace_value(own.x, COLUMNS["blood"], (own.x[:, 4:8].argmax(1) + 1) % 4)  # with the other class
        data = Data(torch.cat([own.x, other]), torch.cat([own.y, 1 - own.y]))
        adam = torch.optim.Adam(network.parameters(), lr=5e-3)
        fit([Objective(cross_entropy(network), adam)], data, epochs=epochs, batch_size=20, rng=stream(0))
        return network.eval()

    fields: dict[str, Any] = {
        "task": TASK, "train": train, "held_out": drawn(480, "held out"), "classifier": classifier, "server": there,
        "categories": COLUMNS,
    }  # fmt: skip
    return dataclasses.replace(made, **fields | changes)


def test_what_was_learnt_by_heart_is_told() -> None:
    found = AttributeInference(planted_epochs=60).examine(toy(60).as_seen(("classifiers",)))
    (reading,) = found.readings  # a column of one value has no secret
    assert reading.attack == "value of blood"
    assert reading.verdict == "leak", reading
    assert reading.run[ADVANTAGE].value > 0.1
    assert found.sizes["members"] == found.sizes["non-members"] > 100


def test_classifiers_that_learnt_nothing_tell_nothing_and_the_planted_leak_is_found() -> None:
    (reading,) = AttributeInference(planted_epochs=60).examine(toy()).readings
    assert reading.verdict == "no leak found", reading


def test_guesses_by_hand() -> None:
    class Knows(nn.Module):
        """Says class 1 with probability 0.9 where value and number agree, else with 0.5."""

        def forward(self, x: Tensor) -> Tensor:
            agree = x[:, 1:].argmax(1) == x[:, 0]
            return torch.stack([torch.zeros(len(x)), torch.where(agree, math.log(9), 0.0)], 1)

    x = torch.tensor([[0.0, 1, 0], [1.0, 0, 1], [1.0, 1, 0], [0.0, 0, 0]])  # the last has no value that is known
    own = Data(torch.tensor([[0.0, 1, 0]] * 5 + [[0.0, 0, 1]] * 3), torch.zeros(8))  # 6/10 and 4/10
    told = guess_values(Knows(), Data(x, torch.ones(4).long()), (1, 2), own)
    # 0.9 · 0.6 > 0.5 · 0.4: 0; 0.5 · 0.6 < 0.9 · 0.4: 1; as the second: 1
    assert told.right.tolist() == [1, 1, 0]
    assert told.frequent.tolist() == [1, 0, 1]
    assert guess_values(Knows(), Data(x[1:2], torch.zeros(1).long()), (1, 2), own).right.tolist() == [0]  # 0.3 > 0.04


def test_what_it_cannot_do() -> None:
    with pytest.raises(NotPossible, match="no rows of a table with a column of categories"):
        AttributeInference().examine(case())
    with pytest.raises(NotPossible, match="'always' is no column of categories; there are: blood"):
        AttributeInference(columns=("always",)).examine(toy())


def test_columns_are_what_is_asked_for() -> None:
    two = {"blood": (4, 5, 6, 7), "half": (4, 5)}
    audit = AttributeInference(columns=("half",), planted_epochs=1)
    (reading,) = audit.examine(toy(categories=two)).readings
    assert reading.attack == "value of half"
    assert {*reading.run} == {ADVANTAGE, MEMBERS, "right for others", FREQUENT}
