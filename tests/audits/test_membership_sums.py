"""Second moments of few examples tell who they are of; those of very many, and of others, do not."""

import dataclasses
from typing import Any

import pytest
import torch

from genfed.audits.audit import Case, NotPossible
from genfed.audits.membership_metrics import AUC
from genfed.audits.membership_sums import MembershipSums, find_leverage
from genfed.core.task import Data, Task
from genfed.encoders.identity import Identity
from genfed.generators.gaussian import Gaussian
from genfed.methods.bases.feature_statistics import StatisticsState
from genfed.methods.fedavg import FedAvg
from genfed.methods.fedcgs import FedCGS
from genfed.methods.gh_ofl import GHOFL
from genfed.training.pixels import normalize_pixels
from tests.audits.cases import case, drawn

TASK = Task("features", (64,), ("a", "b", "c"))


def pixels(data: Data) -> Data:
    return Data(normalize_pixels(data.x).flatten(1), data.y)


def toy(method: Any, examples: int, summed: Data | None = None) -> Case:
    """A run of this many examples; `summed`: those that its server has the sums of, if they are others."""
    there = case(method=method, train=examples, held_out=600, features=pixels)
    statistics = method.generator.measure(pixels(there.train if summed is None else summed), TASK)
    state = StatisticsState("", statistics, {}, {})
    return case(method=method, train=examples, held_out=600, features=pixels, state=state).as_seen(MembershipSums.sees)


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_members_are_found_where_examples_are_few(covariance: Any) -> None:
    generator = Gaussian(covariance=covariance)
    method = FedCGS(encoder=Identity()) if covariance == "tied" else GHOFL(encoder=Identity(), generator=generator)
    (reading,) = MembershipSums().examine(toy(method, 60)).readings
    assert reading.verdict == "leak"
    assert reading.run[AUC].value > 0.99
    assert reading.control[AUC].value > 0.99


def test_sums_of_other_examples_tell_nothing_of_the_training_examples() -> None:
    method = FedCGS(encoder=Identity())
    (reading,) = MembershipSums().examine(toy(method, 240, summed=drawn(60, "others"))).readings
    assert reading.verdict == "no leak found"


def test_the_more_examples_the_less_is_found() -> None:
    method = FedCGS(encoder=Identity())
    few, many = (MembershipSums().examine(toy(method, n)).readings[0].run[AUC].value for n in (120, 3000))
    assert few > 0.9
    assert many < 0.6


def test_only_examples_in_the_sums_are_attacked() -> None:
    """Of four clients one took part in the last pass, and it left out a class; the others' examples are no members."""
    generator = Gaussian(minimum_class_count=30)
    there = toy(FedCGS(encoder=Identity(), generator=generator), 400)
    asked = there.holdings[1].rows
    kept = asked[there.train.y[asked] < 2][:-30]
    few = asked[there.train.y[asked] == 2][:20]
    holdings = (
        dataclasses.replace(there.holdings[0], rounds={"statistics": 0}),
        dataclasses.replace(there.holdings[1], rows=torch.cat([kept, few]), rounds={"statistics": 1}),
    )
    sums = generator.measure(pixels(there.train[kept]), TASK)
    there = dataclasses.replace(there, holdings=holdings, state=StatisticsState("", sums, {}, {}))
    found = MembershipSums().examine(there)
    assert f"The run adds up {len(kept)} examples" in found.notes[0]
    assert found.sizes["members"] <= len(kept) / 2
    assert found.readings[0].run[AUC].value > 0.99


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (FedAvg(), "no client of toy uploads sums over its examples"),
        (GHOFL(encoder=Identity(), generator=Gaussian(covariance="diagonal")), "those of single features"),
    ],
)
def test_not_possible(method: Any, reason: str) -> None:
    there = case(method=method) if isinstance(method, FedAvg) else toy(method, 60)
    with pytest.raises(NotPossible, match=reason):
        MembershipSums().examine(there)


def test_leverage_by_hand() -> None:
    """Two examples (1, 0) and (1, 2): S = [[2, 2], [2, 4]], S⁻¹ = [[1, −½], [−½, ½]]."""
    data = Data(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, dtype=torch.int64))
    sums = Gaussian().measure(data, Task("features", (2,), ("a",)))
    vectors = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0], [3.0, 1.0]]).double()
    assert find_leverage(sums, vectors, torch.zeros(4, dtype=torch.int64)).tolist() == pytest.approx([1, 1, 0.5, 6.5])
