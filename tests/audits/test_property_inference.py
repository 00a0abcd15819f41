"""Uploads of clients with skewed classes reveal their mix; those of clients like everybody, or untrained, do not."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from genfed.audits.audit import Case, ClientExamples, NotPossible
from genfed.audits.client_uploads import draw_by_shares as sample
from genfed.audits.property_inference import (
    DISTANCE,
    LARGEST,
    NEARER,
    PropertyInference,
    fit_regression,
    log_probabilities,
    measure_mixes,
    skewed_shares,
)
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.rng import seeded, stream
from genfed.core.task import Data
from genfed.methods.bases.averaging import Classifiers
from genfed.methods.fedavg import FedAvg
from genfed.methods.local import Local
from genfed.training.classifier import Training
from genfed.training.weights import weights_of
from tests.audits.cases import case, drawn, server

EVEN = (1 / 3, 1 / 3, 1 / 3)


def linear(architecture: str, rng: torch.Generator) -> nn.Sequential:
    with seeded(rng):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def toy(mixes: Sequence[Sequence[float]], epochs: int = 3, **changes: Any) -> Case:
    """A client of 60 examples for each mix."""

    def there(*path: str | int) -> Server:
        return dataclasses.replace(server(*path), new_network=linear)

    every = drawn(600, "train")
    counts = [[round(60 * share) for share in mix] for mix in mixes]
    parts = [torch.cat([torch.nonzero(every.y == c).flatten()[:n] for c, n in enumerate(count)]) for count in counts]
    train, ends = every[torch.cat(parts)], torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    fields: dict[str, Any] = {
        "method": FedAvg(training=Training(epochs=epochs, batch_size=10, learning_rate=0.05)),
        "server": there,
        "state": Classifiers({"linear": weights_of(linear("", stream(0)))}),
        "train": train,
        "holdings": tuple(
            ClientExamples(ClientInfo(i, "linear", len(part)), torch.arange(ends[i], ends[i + 1]), None)
            for i, part in enumerate(parts)
        ),
    }
    return dataclasses.replace(case(held_out=160), **fields | changes)


LOPSIDED = [(0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.0, 0.8), (0.5, 0.5, 0.0)]


def test_lopsided_clients_are_told() -> None:
    found = PropertyInference().examine(toy(LOPSIDED).as_seen(("uploads",)))
    (reading,) = found.readings
    assert reading.verdict == "leak", reading
    assert reading.run[DISTANCE].value < 0.15
    assert reading.run[LARGEST].value == 1 or reading.run[LARGEST].value == 0.75  # one has two largest
    assert found.sizes == {"clients": 4, "shadow uploads": 12, "examples queried": 40}


def test_clients_like_everybody_tell_nothing_and_the_planted_leak_is_found() -> None:
    (reading,) = PropertyInference().examine(toy([EVEN] * 4)).readings
    assert reading.verdict == "no leak found", reading


def test_uploads_that_nobody_trained_are_blind() -> None:
    (reading,) = PropertyInference().examine(toy(LOPSIDED, epochs=0)).readings
    assert reading.verdict == "underpowered", reading


def test_the_regression_gives_back_what_answers_were_made_of() -> None:
    mixes = torch.stack([skewed_shares(4, stream(i)) for i in range(20)])
    bias = torch.tensor([0.3, -0.5, 0.2, 0.0])
    z = torch.stack([0.5 * mixes.log() + bias, torch.randn(20, 4, generator=stream(99)).double()], 1)  # and noise
    told = fit_regression(z, mixes, ridge=1e-9)
    assert told.slope.tolist() == pytest.approx([2, 0], abs=1e-2)
    assert torch.allclose(told(z), mixes, atol=1e-2)


def test_answers_by_hand() -> None:
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log()

    probe = Data(torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.2, 0.3], [0.25, 0.5, 0.25]]), torch.tensor([0, 0, 1]))
    z = log_probabilities(Says(), probe, torch.device("cpu")).exp()
    assert z[0].tolist() == pytest.approx([0.5, 0.5, 1])  # of class 2 there is none: log 1
    assert z[1].tolist() == pytest.approx([0.25, (0.4 * 0.2) ** 0.5, (0.1 * 0.3 * 0.25) ** (1 / 3)])


def test_measures_by_hand() -> None:
    truth, guess = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).double(), torch.tensor([0.5, 0.5]).double()
    found = {n: float(v.mean()) for n, v in measure_mixes(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), truth, guess).items()}
    assert found[DISTANCE] == pytest.approx(0.1)
    assert found[NEARER] == pytest.approx((0.3 - 0.1 + 0 - 0.1) / 2)
    assert found[LARGEST] == 0.5


def test_examples_are_drawn_in_the_mix_that_is_asked_for() -> None:
    data = Data(torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1]))
    part = sample(data, torch.tensor([0.2, 0.3, 0.5]), 5000, stream(0))  # of class 2 there are none
    assert float(part.y.float().mean()) == pytest.approx(0.6, abs=0.03)
    assert torch.equal(part.y, (part.x[:, 0] > 2).long())
    assert len(torch.unique(part.x)) == 6


def test_what_it_cannot_do() -> None:
    with pytest.raises(NotPossible, match="no client of toy uploads a classifier"):
        PropertyInference().examine(toy(LOPSIDED, method=Local()))
    with pytest.raises(NotPossible, match="there are 30 held-out examples, where an audit takes 40"):
        PropertyInference().examine(toy(LOPSIDED, held_out=drawn(30, "held out")))
    one = Data(drawn(60).x, torch.zeros(60, dtype=torch.int64))
    with pytest.raises(NotPossible, match="of one class"):
        PropertyInference().examine(toy(LOPSIDED, held_out=one))
    weights = {n: v / 0 for n, v in weights_of(linear("", stream(0))).items()}
    with pytest.raises(NotPossible, match="diverged"):
        PropertyInference().examine(toy(LOPSIDED, state=Classifiers({"linear": weights})))
