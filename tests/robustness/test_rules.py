"""Every robust rule against numbers worked out by hand, and what must hold whoever is bad."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Collect, Fold, Mean
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply, Wire
from genfed.robustness.robust_mean import AggregationRule, RobustMean, make_robust
from genfed.robustness.rules import CenteredClipping, Krum, Median, MultiKrum, NormBounding, TrimmedMean, krum_scores
from genfed.training.low_rank import RebuiltMean, factorize

few = settings(max_examples=40, deadline=None)
RULES: list[AggregationRule] = [
    Median(),
    TrimmedMean(share=0.3),
    Krum(share=0.3),
    MultiKrum(share=0.3),
    NormBounding(),
    CenteredClipping(),
]


@dataclass(frozen=True)
class Upload:
    x: Any


def reduce(
    rule: AggregationRule,
    values: Sequence[Any],
    weights: Sequence[float] = (),
    sent: Any = None,
    order: Sequence[int] = (),
    how: Mean | None = None,
    architectures: str = "a",
) -> Any:
    asked = [ClientInfo(2 * i, architectures[i % len(architectures)], 1) for i in range(len(values))]
    folding = Fold({"x": RobustMean(how or Mean(), rule)}, asked)
    for i in order or range(len(values)):
        if values[i] is None:
            folding.skip(asked[i])
        else:
            before = None if sent is None else Upload(sent)
            folding.add(asked[i], Upload(values[i]), weights[i] if weights else 1.0, before)
    return folding.finish()["x"]


def mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    asked = [ClientInfo(i, "a", 1) for i in range(len(values))]
    folding = Fold({"x": Mean()}, asked)
    for info, value, weight in zip(asked, values, weights, strict=True):
        folding.add(info, Upload(value), weight)
    return folding.finish()["x"]


def column(*values: float) -> list[Tensor]:
    return [torch.tensor([float(value)]) for value in values]


# By hand.


def test_a_median_is_of_each_coordinate_and_ignores_weights() -> None:
    values = [torch.tensor(v) for v in ([1.0, 9.0], [2.0, -5.0], [100.0, 4.0])]
    assert reduce(Median(), values, [1, 1, 1000]).tolist() == [2.0, 4.0]
    assert reduce(Median(), column(1, 2, 4, 100)).tolist() == [3.0]  # (2 + 4) / 2


def test_a_trimmed_mean_leaves_out_both_ends() -> None:
    # ⌈0.2 · 5⌉ = 1 at each end: (2 + 3 + 7) / 3
    assert reduce(TrimmedMean(share=0.2), column(-50, 7, 3, 2, 100), [9, 1, 1, 1, 9]).tolist() == [4.0]
    # ⌈0.3 · 10⌉ = 3, not 4, though 0.3 · 10 is above 3 in binary: the mean of 3, 4, 5, 6
    assert reduce(TrimmedMean(share=0.3), column(*range(10))).tolist() == [4.5]


def test_krum_takes_the_upload_with_the_nearest_neighbors() -> None:
    # n = 5, f = 1: scores sum the n − f − 2 = 2 smallest squared distances.
    # 0: 1 + 9; 1: 1 + 4; 3: 4 + 9; 10: 49 + 81; 100: 8100 + 9409
    values = [0.0, 1.0, 3.0, 10.0, 100.0]
    points = torch.tensor(values, dtype=torch.float64)[:, None]
    assert krum_scores(points @ points.T, 1).tolist() == [10.0, 5.0, 13.0, 130.0, 8100.0 + 97.0**2]
    assert reduce(Krum(share=0.2), column(*values), [1, 1, 1, 1, 1000]).tolist() == [1.0]
    assert reduce(MultiKrum(share=0.2, chosen=2), column(*values)).tolist() == [0.5]  # 1 and 0
    assert reduce(MultiKrum(share=0.2), column(*values)).tolist() == [3.5]  # m = n − f = 4: (0 + 1 + 3 + 10) / 4


def test_krum_takes_the_first_of_equals() -> None:
    assert reduce(Krum(share=0.2), column(5, 1, 1, 5, 5), order=[4, 2, 0, 1, 3]).tolist() == [5.0]
    assert reduce(Krum(share=0), column(1, 0, 2), order=[2, 1, 0]).tolist() == [1.0]  # both 1 − 2 and 0 − 1 are 1 apart


def test_norm_bounding_shortens_updates_and_keeps_weights() -> None:
    sent, values = torch.tensor([1.0, 1.0]), [torch.tensor([4.0, 5.0]), torch.tensor([1.0, 2.0])]
    # updates (3, 4) of length 5 and (0, 1): with M = 2.5, (1.5, 2) and (0, 1); weights 1 and 3
    bounded = reduce(NormBounding(bound=2.5), values, [1, 3], sent)
    assert bounded.tolist() == pytest.approx([1 + 1.5 / 4, 1 + (2 + 3) / 4])
    # without a bound it is the (lower) median length, 1: (0.6, 0.8) and (0, 1)
    assert reduce(NormBounding(), values, [1, 1], sent).tolist() == pytest.approx([1.3, 1.9])


def test_an_upload_that_nothing_was_sent_for_is_an_update() -> None:
    values = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])]
    assert reduce(NormBounding(bound=2.5), values, [1, 3]).tolist() == pytest.approx([1.5 / 4, 5 / 4])


def test_centred_clipping_moves_the_centre() -> None:
    sent, values = torch.tensor([10.0]), column(11, 12, 110)
    # τ = 2 from 10: (1 + 2 + 2) / 3 → 11.667; then left −0.667, 0.333, 98.333: (−0.667 + 0.333 + 2) / 3 → 12.222
    once = reduce(CenteredClipping(radius=2.0, iterations=1), values, [1, 1, 500], sent)
    twice = reduce(CenteredClipping(radius=2.0, iterations=2), values, [1, 1, 500], sent)
    assert once.tolist() == pytest.approx([10 + 5 / 3])
    assert twice.tolist() == pytest.approx([10 + 5 / 3 + 5 / 9])
    # without a radius, the median of what is left: 2 at first
    assert reduce(CenteredClipping(iterations=1), values, sent=sent).tolist() == pytest.approx(once.tolist())


def test_lengths_are_of_the_whole_field() -> None:
    sent = {"w": torch.zeros(2, 1), "b": torch.zeros(1)}
    values = [{"w": torch.tensor([[2.0], [3.0]]), "b": torch.tensor([6.0])}, dict(sent)]  # of length 7
    got = reduce(NormBounding(bound=3.5), values, sent=sent)
    assert got["w"].flatten().tolist() == pytest.approx([0.5, 0.75])
    assert got["b"].tolist() == pytest.approx([1.5])


def test_integers_are_lower_medians_of_those_that_count() -> None:
    values = [{"w": torch.tensor(v), "n": torch.tensor(n), "flag": torch.tensor([v > 2])}
              for v, n in ((0.0, 4), (1.0, 7), (3.0, 1), (10.0, 9), (100.0, 2**40))]  # fmt: skip
    for rule in (Median(), TrimmedMean(share=0.2), NormBounding(), CenteredClipping()):
        got = reduce(rule, values)
        assert (got["n"].item(), got["n"].dtype, got["flag"].tolist()) == (7, torch.int64, [True])
    assert reduce(Krum(share=0.2), values)["n"].item() == 7  # its own
    chosen = reduce(MultiKrum(share=0.2, chosen=3), values)  # 1, 0 and 3: counters 7, 4 and 1
    assert (chosen["n"].item(), chosen["flag"].tolist()) == (4, [False])


def test_numbers_half_precision_and_empty_tensors() -> None:
    values = [
        {"loss": v, "h": torch.tensor([v], dtype=torch.float16), "none": torch.empty(0, 3)} for v in (1.0, 2.0, 60000.0)
    ]
    for rule in (Median(), CenteredClipping(radius=1e9, iterations=1)):
        got = reduce(rule, values)
        assert got["h"].dtype == torch.float16
        assert got["none"].shape == (0, 3)
        expected = 2.0 if isinstance(rule, Median) else 60003 / 3
        assert got["loss"] == pytest.approx(expected)


def test_many_coordinates_are_looked_at_in_pieces() -> None:
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(70_001, generator=rng) for _ in range(5)]
    assert torch.equal(reduce(Median(), values), torch.stack(values).median(dim=0).values)
    apart = torch.cdist(torch.stack(values).double(), torch.stack(values).double()) ** 2
    best = apart.sort(dim=1).values[:, 1:3].sum(1).argmin()
    assert torch.equal(reduce(Krum(share=0.2), values), values[best])


def test_architectures_are_reduced_apart_and_those_that_nobody_answered_for_left_out() -> None:
    values: list[Any] = [{"w": torch.tensor(1.0)}, {"v": torch.zeros(2)}, None, {"w": torch.tensor(5.0)}, None, None,
                         {"w": torch.tensor(30.0)}]  # fmt: skip
    got = reduce(Median(), values, how=Mean(by="architecture"), architectures="abc")
    assert got["a"]["w"].item() == 5.0
    assert list(got) == ["a", "b"]


@pytest.mark.parametrize("rule", RULES)
def test_nobody_answered(rule: AggregationRule) -> None:
    assert reduce(rule, [None] * 3) is None
    assert reduce(rule, [None] * 3, how=Mean(by="architecture")) == {}


def test_a_mean_of_products_is_reduced_as_what_they_stand_for() -> None:
    weights = [{"w": torch.outer(torch.ones(8), torch.full((8,), v))} for v in (1.0, 2.0, 90.0)]
    got = reduce(Median(), [factorize(w, 0.9) for w in weights], how=RebuiltMean())
    assert torch.allclose(got["w"], weights[1]["w"])


# Reductions.

drawn = torch.Generator().manual_seed(1)
VALUES = [{"w": torch.randn(4, 3, generator=drawn), "b": torch.randn(2, generator=drawn)} for _ in range(7)]
SENT = {"w": torch.randn(4, 3, generator=drawn), "b": torch.randn(2, generator=drawn)}
WEIGHTS = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0]


@pytest.mark.parametrize(
    ("rule", "weighted"),
    [
        (TrimmedMean(share=0), False),
        (MultiKrum(share=0), False),
        (MultiKrum(share=0.2, chosen=7), False),
        (NormBounding(bound=1e9), True),
        (CenteredClipping(radius=1e9, iterations=4), False),
    ],
)
def test_a_rule_that_suspects_nobody_is_the_mean(rule: AggregationRule, weighted: bool) -> None:
    expected = mean(VALUES, WEIGHTS if weighted else [1.0] * 7)
    got = reduce(rule, VALUES, WEIGHTS, SENT)
    for name, value in expected.items():
        assert torch.equal(got[name], value)


def test_a_trimmed_mean_of_nearly_half_is_the_median() -> None:
    got, median = reduce(TrimmedMean(share=0.4), VALUES), reduce(Median(), VALUES)  # ⌈2.8⌉ = 3 of 7
    assert all(torch.equal(got[name], median[name]) for name in median)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(share=0), NormBounding(), CenteredClipping()])
def test_one_upload_of_what_was_sent_stays_as_it_is(rule: AggregationRule) -> None:
    got = reduce(rule, [SENT], sent=SENT)
    assert all(torch.equal(got[name], SENT[name]) for name in SENT)
    got["b"].zero_()
    assert SENT["b"].any()


# Whoever is bad, and in whatever order.


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Tensor], int, list[int]]:
    """Uploads of which the first `bad` may be anything, and an order in which they come."""
    count = draw(st.integers(3, 11))
    bad = draw(st.integers(0, (count - 1) // 2))
    numbers = st.floats(-(2.0**100), 2.0**100, width=32)
    near = st.floats(-3, 3, width=32)
    rows = [draw(st.lists(numbers if i < bad else near, min_size=3, max_size=3)) for i in range(count)]
    return [torch.tensor(row) for row in rows], bad, draw(st.permutations(range(count)))


def _fits(rule: AggregationRule, count: int) -> bool:
    try:
        rule.check(count)
    except GenfedError:
        return False
    return True


@few
@given(rounds())
def test_a_coordinate_lies_between_honest_extremes(case: tuple[list[Tensor], int, list[int]]) -> None:
    values, bad, _ = case
    honest = torch.stack(values[bad:])
    for rule in (Median(), TrimmedMean(share=bad / len(values))):
        got = reduce(rule, values)
        assert (got >= honest.amin(0)).all()
        assert (got <= honest.amax(0)).all()


@few
@given(rounds())
def test_bad_clients_move_the_centre_no_further_than_the_radius(case: tuple[list[Tensor], int, list[int]]) -> None:
    values, _, _ = case
    sent = torch.zeros(3)
    got = reduce(CenteredClipping(radius=1.0, iterations=1), values, sent=sent)
    assert got.norm() <= 1 + 1e-6
    assert reduce(NormBounding(bound=1.0), values, sent=sent).norm() <= 1 + 1e-6


@few
@given(rounds(), st.sampled_from(RULES))
def test_the_order_of_arrival_does_not_change_a_bit(
    case: tuple[list[Tensor], int, list[int]], rule: AggregationRule
) -> None:
    values, _, order = case
    assume(_fits(rule, len(values)))
    assert torch.equal(reduce(rule, values, sent=torch.ones(3)), reduce(rule, values, sent=torch.ones(3), order=order))


@few
@given(rounds())
def test_who_is_who_does_not_change_a_coordinate(case: tuple[list[Tensor], int, list[int]]) -> None:
    values, _, order = case
    shuffled = [values[i] for i in order]
    for rule in (Median(), TrimmedMean(share=0.2)):
        if _fits(rule, len(values)):
            assert torch.equal(reduce(rule, values), reduce(rule, shuffled))


@few
@given(st.permutations(range(9)), st.integers(0, 2**32))
def test_who_is_who_does_not_change_a_combination(order: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = [torch.randn(4, generator=rng) for _ in range(9)]
    for rule in RULES[2:]:
        one, other = reduce(rule, values), reduce(rule, [values[i] for i in order])
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_krum_ignores_bad_clients_that_it_was_told_to_expect() -> None:
    rng = torch.Generator().manual_seed(3)
    honest = [torch.randn(20, generator=rng) for _ in range(7)]
    bad = [torch.full((20,), 1e6), torch.full((20,), -1e3), torch.full((20,), 50.0)]
    got = reduce(Krum(share=0.3), [*bad, *honest])
    assert any(torch.equal(got, each) for each in honest)
    assert torch.allclose(reduce(MultiKrum(share=0.3), [*bad, *honest]), torch.stack(honest).mean(0), atol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("rule", "count", "says"),
    [
        (TrimmedMean(share=0.4), 2, "1 of 2 uploads are assumed malicious, and a trimmed mean then needs 3"),
        (Krum(share=0.3), 8, "3 of 8 uploads are assumed malicious, and Krum then needs 9"),
        (MultiKrum(share=0.3), 8, "aggregation.share = 0.3: 3 of 8"),
        (Krum(share=0), 2, "0 of 2 uploads are assumed malicious, and Krum then needs 3"),
        (MultiKrum(share=0, chosen=5), 4, "aggregation.chosen = 5: a group has 4 uploads"),
    ],
)
def test_too_many_bad_clients_for_a_group(rule: AggregationRule, count: int, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        reduce(rule, column(*range(count)))
    with pytest.raises(GenfedError, match="architecture a"):
        reduce(rule, column(*range(count)), how=Mean(by="architecture"))


@pytest.mark.parametrize("rule", RULES)
def test_an_upload_that_does_not_fit_is_refused_at_once(rule: AggregationRule) -> None:
    asked = [ClientInfo(i, "a", 1) for i in range(2)]
    folding = Fold({"x": RobustMean(Mean(), rule)}, asked)
    sent = Upload({"w": torch.zeros(2)})
    folding.add(asked[0], Upload({"w": torch.ones(2)}), 1.0, sent)
    for bad in ({"w": torch.ones(3)}, {"v": torch.ones(2)}, {"w": torch.ones(2).double()}):
        with pytest.raises(GenfedError, match="uploads of one group have different"):
            folding.add(asked[1], Upload(bad), 1.0, sent)


def test_clients_of_a_group_that_were_sent_different_states() -> None:
    asked = [ClientInfo(i, "a", 1) for i in range(2)]
    folding = Fold({"x": RobustMean(Mean(), NormBounding())}, asked)
    for info in asked:
        folding.add(info, Upload(torch.ones(1)), 1.0, Upload(torch.full((1,), float(info.id))))
    with pytest.raises(GenfedError, match="sent different states"):
        folding.finish()


def test_only_means_are_replaced() -> None:
    @dataclass(frozen=True)
    class Two:
        x: Tensor
        y: Tensor

    def work(client: Client, sent: Upload) -> Reply[Any]:
        raise AssertionError

    def keep(server: Server, state: Any, reduced: Reduced) -> Any:
        raise AssertionError

    how: dict[str, Aggregate] = {"x": Mean(by="architecture"), "y": Collect()}
    phase: Phase[Any] = Phase("p", keep, lambda *_: None, work, aggregate=how, wire=Wire(Upload, Two))
    assert make_robust(phase, None) is phase
    assert make_robust(phase, Median()).aggregate == {
        "x": RobustMean(Mean(by="architecture"), Median()),
        "y": Collect(),
    }


def test_infinity_of_a_score_is_no_neighbour() -> None:
    assert not math.isinf(krum_scores(torch.eye(3, dtype=torch.float64), 0).max().item())
