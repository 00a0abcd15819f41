"""The rule for sums: one group is the plain sum, and what few groups say does not count for much."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genfed import Data, GenfedError, Task
from genfed.core.aggregate import ClientInfo, Fold, Sum
from genfed.generators.gaussian import Gaussian, geometric_median
from genfed.generators.statistics_generator import merge
from genfed.methods.bases.feature_statistics import Statistics
from genfed.methods.fedcgs import FedCGS
from genfed.robustness.robust_mean import GroupedSum
from genfed.robustness.rules import MedianOfMeans
from tests.conftest import start, tiny
from tests.methods.test_fedcgs import same, state_of

TASK = Task("features", (3,), ("a", "b"))
KINDS: tuple[Any, ...] = ("tied", "full", "diagonal")


def drawn(n: int, seed: int) -> Data:
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return Data(torch.randn(n, 3, generator=rng) + y[:, None], y)


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_is_the_plain_sum(kind: Any, tmp_path: Path) -> None:
    generator = Gaussian(covariance=kind)
    parts = [generator.measure(drawn(20, seed), TASK) for seed in range(4)]
    infos = [ClientInfo(i, "linear", 20) for i in range(4)]
    plain = Fold({"statistics": Sum()}, infos)
    grouped = Fold({"statistics": GroupedSum(MedianOfMeans(groups=1), generator.join_groups)}, infos)
    for info, part in zip(infos, parts, strict=True):
        for each in (plain, grouped):
            each.add(info, Statistics(part), 20.0)
    assert same(plain.finish()["statistics"], grouped.finish()["statistics"])


def test_a_run_with_one_group_has_the_bits_of_one_without_the_rule(tmp_path: Path) -> None:
    own = {"fedcgs": {"encoder": {"kind": "identity"}}}
    plain = state_of(tmp_path / "plain", tiny("fedcgs", method=own))
    rule = {"kind": "median_of_means", "groups": 1}
    ruled = state_of(tmp_path / "ruled", tiny("fedcgs", method=own, aggregation=rule))
    assert same(plain.statistics, ruled.statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_groups_give_what_each_of_them_says(kind: Any) -> None:
    generator = Gaussian(covariance=kind)
    one = generator.measure(drawn(30, 0), TASK)
    joined = generator.join_groups([one, one, one])
    whole = merge(merge(one, one), one)
    for name, value in joined.items():
        assert torch.allclose(value.double(), whole[name].double(), rtol=1e-9, atol=2), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoiled", [1, 2])
def test_a_minority_of_groups_moves_the_estimate_less_than_a_sum(kind: Any, spoiled: int) -> None:
    generator = Gaussian(covariance=kind)
    parts = [generator.measure(drawn(200, seed), TASK) for seed in range(5)]
    far = Data(torch.full((200, 3), 8.0), torch.zeros(200, dtype=torch.int64))
    for place in range(spoiled):
        parts[place] = generator.measure(far, TASK)
    joined = generator.estimate(TASK, generator.join_groups(parts))
    whole = parts[0]
    for part in parts[1:]:
        whole = merge(whole, part)
    plain = generator.estimate(TASK, whole)
    assert float(joined["mean"][0].abs().max()) < 0.5 < float(plain["mean"][0].min())
    assert float((joined["prior"] - 0.5).abs().max()) < 0.01


def test_the_groups_of_a_class_that_most_lack_are_left_out_of_it() -> None:
    generator = Gaussian()
    both, first = drawn(40, 0), drawn(40, 1)
    first = Data(first.x, torch.zeros_like(first.y))
    parts = [generator.measure(data, TASK) for data in (both, first, first)]
    assert generator.join_groups(parts)["counts"].tolist() == [120, 0]


def test_sums_of_halves_are_not_joined() -> None:
    phase = FedCGS(generator=Gaussian(shrinkage="held_out")).phases()[0]
    assert not phase.join_sums
    assert FedCGS().phases()[0].join_sums


def test_a_geometric_median_by_hand() -> None:
    """Of three points on a line it is the middle one; of a far one and two equal ones, these."""
    line = torch.tensor([[0.0], [1.0], [10.0]]).double()
    assert float(geometric_median(line) @ line) == pytest.approx(1, abs=1e-3)
    twice = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]]).double()
    assert torch.allclose(geometric_median(twice) @ twice, torch.zeros(2).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "rule", "reason"),
    [
        ("fedcgs", {"groups": 5}, "aggregation.groups = 5: there are 4 uploads; 1 to 4 are allowed"),
        ("fedavg", {"groups": 3}, "the server of fedavg adds up no uploads of clients that can be joined from groups"),
        ("gh_ofl", {"groups": 3}, "the server of gh_ofl adds up no uploads of clients that can be joined"),
    ],
)
def test_refuses(method: str, rule: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """tiny gh_ofl has a mixture."""
    with pytest.raises(GenfedError, match=reason):
        start(tiny(method, aggregation={"kind": "median_of_means"} | rule), tmp_path / "run")


def test_clients_that_leave_a_group_empty_are_refused(tmp_path: Path) -> None:
    """Five uploads of one group are one sum, which one malicious client spoils."""
    rule, ones = MedianOfMeans(groups=5), {"a": torch.ones(1, dtype=torch.int64)}
    infos = [ClientInfo(client, "linear", 10) for client in (0, 5, 10, 15, 20)]
    fold = Fold({"statistics": GroupedSum(rule, lambda parts: parts[0])}, infos)
    for info in infos:
        fold.add(info, Statistics(ones), 10)
    with pytest.raises(
        GenfedError, match=r"aggregation\.groups = 5: .* and the uploads lie in 1 of them; fewer groups"
    ):
        fold.finish()
    few = {"clients": 8, "client_fraction": 0.5}
    with pytest.raises(GenfedError, match=r"fedcgs, phase statistics, .*: aggregation\.groups = 4: client i is in"):
        start(tiny("fedcgs", federation=few, aggregation={"kind": "median_of_means", "groups": 4}), tmp_path / "run")
