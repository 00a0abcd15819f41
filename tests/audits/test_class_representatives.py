"""Representatives show what few examples a classifier learnt by heart, and nothing of those it never met."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from genfed.audits.audit import Case, NotPossible
from genfed.audits.class_representatives import NEARER, ClassRepresentatives, likeness
from genfed.audits.membership_metrics import AUC
from genfed.core.client import Server
from genfed.core.rng import seeded, stream
from genfed.core.task import Data
from genfed.methods.bases.averaging import Classifiers
from genfed.methods.fedavg import FedAvg
from genfed.methods.local import Local
from genfed.training.classifier import Training
from genfed.training.weights import weights_of
from tests.audits.cases import case, drawn, server

SMALL: dict[str, Any] = {"clients": 2, "each": 1, "steps": 60, "planted_epochs": 60}


def network(architecture: str, rng: torch.Generator) -> nn.Sequential:
    with seeded(rng):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        )


def toy(epochs: int, **changes: Any) -> Case:
    """Clients train for so long in the round that is attacked."""

    def there(*path: str | int) -> Server:
        return dataclasses.replace(server(*path), new_network=network)

    training = Training(epochs=epochs, batch_size=8, optimizer="adam", learning_rate=2e-3)
    state = Classifiers({"linear": weights_of(network("", stream(0)))})
    fields: dict[str, Any] = {"method": FedAvg(training=training), "server": there, "state": state}
    return dataclasses.replace(case(train=24), **fields | changes)


def test_what_few_examples_were_learnt_by_heart_is_seen() -> None:
    found = ClassRepresentatives(**SMALL).examine(toy(60).as_seen(("uploads",)))
    (reading,) = found.readings
    assert reading.verdict == "leak", reading
    assert reading.run[AUC].value > 0.75
    assert reading.run[NEARER].value > 0
    assert found.sizes == {"clients": 2, "members": 24, "non-members": 24}
    assert found.pictures[0].images.shape == (3, 3, 1, 8, 8)


def test_a_classifier_that_learnt_nothing_shows_nothing_and_the_planted_leak_is_found() -> None:
    found = ClassRepresentatives(**SMALL).examine(toy(0))
    assert [r.verdict for r in found.readings] == ["no leak found"], found


def test_likeness_by_hand() -> None:
    centres = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.0]]]])
    made = torch.tensor([[[[[2.0, 0.0]]], [[[1.0, 1.0]]]], [[[[0.0, 1.0]]], [[[0.0, 0.0]]]]])  # two of two classes
    x = torch.tensor([[[[3.0, 4.0]]], [[[-2.0, 0.0]]], [[[1.0, -1.0]]]])
    cosines = likeness(made, centres, Data(x, torch.tensor([0, 1, 1])))
    assert cosines.tolist() == pytest.approx([0.8, 1.0, 0.0])  # nearest of (1, 0) and (0, 1); of (0, 1) and (−1, 0)


def test_what_it_cannot_do() -> None:
    audit = ClassRepresentatives(**SMALL)
    with pytest.raises(NotPossible, match="no client of toy uploads a classifier"):
        audit.examine(toy(1, method=Local()))
    with pytest.raises(NotPossible, match="client 0 has no held-out examples of its classes"):
        audit.examine(toy(1, train=Data(drawn(24).x, torch.full((24,), 3))))
    table = dataclasses.replace(toy(1).task, kind="table")
    with pytest.raises(NotPossible, match="the examples are no images"):
        audit.examine(toy(1, task=table))
