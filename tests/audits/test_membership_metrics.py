"""AUC and rates by hand, and intervals that hold the truth."""

import pytest
import torch

from genfed.audits.audit import NotPossible
from genfed.audits.findings import Estimate, Reading
from genfed.audits.membership_metrics import AUC, mean_with_interval, membership_numbers
from genfed.core.rng import stream

LOW, HIGH = "TPR at 0.1 % FPR", "TPR at 1 % FPR"


def test_auc_by_hand() -> None:
    found = membership_numbers(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]), stream(0))
    assert found[AUC].value == pytest.approx((3 + 1.5) / 6)  # 3 beats all; 1 beats 0 and draws with 1
    assert found[HIGH].value == 0.5  # no non-member may score as high: 3 alone does
    assert found[HIGH].unreadable == "3 non-members are too few: it takes 100"
    assert found[LOW].unreadable == "3 non-members are too few: it takes 1000"
    assert not found[AUC].unreadable


def test_rates_let_through_what_they_may() -> None:
    others = torch.arange(1000.0)
    members = torch.tensor([998.5, 989.5, 988.5, 0.5])
    found = membership_numbers(members, others, stream(0))
    assert found[LOW].value == 0.25  # one of 1,000 may score higher: 999
    assert found[HIGH].value == 0.5  # ten may: 990 to 999, and 988.5 is below an eleventh
    assert not found[LOW].unreadable


def test_nothing_is_told_by_equal_scores() -> None:
    found = membership_numbers(torch.zeros(50), torch.zeros(200), stream(0))
    assert found[AUC] == Estimate(0.5, 0.5, 0.5)
    assert found[HIGH].value == 0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for i in range(100):
        rng = stream(i, "scores")
        found = membership_numbers(torch.randn(60, generator=rng), torch.randn(60, generator=rng), rng, draws=200)[AUC]
        held += found.low <= 0.5 <= found.high
    assert 88 <= held <= 100
    told = mean_with_interval(torch.randn(400, generator=stream(1)) + 2, stream(2))
    assert told.low < 2 < told.high
    assert told.high - told.low == pytest.approx(4 * 0.05, rel=0.3)  # ± 2 standard errors of 1/20


def test_a_mean_less_another_takes_the_spread_of_both() -> None:
    one, other = torch.randn(400, generator=stream(1)) + 3, 2 * torch.randn(400, generator=stream(2)) + 1
    told = mean_with_interval(one, stream(3), less=other)
    assert told.value == pytest.approx(float(one.mean() - other.mean()), abs=1e-6)
    assert told.high - told.low == pytest.approx(4 * (5 / 400) ** 0.5, rel=0.2)  # of variances 1/400 and 4/400


def test_what_is_not_finite_is_not_read() -> None:
    broken = torch.tensor([1.0, float("nan")])
    for told in (
        lambda: membership_numbers(broken, torch.ones(2), stream(0)),
        lambda: mean_with_interval(broken, stream(0)),
    ):
        with pytest.raises(NotPossible, match="not finite"):
            told()


def test_verdicts() -> None:
    above, about = {"AUC": Estimate(0.7, 0.6, 0.8)}, {"AUC": Estimate(0.55, 0.45, 0.65)}
    verdicts = {
        Reading("a", "AUC", 0.5, run, control, null).verdict: (run, control, null)
        for run in (above, about)
        for control in (above, about)
        for null in (above, about)
    }
    assert verdicts["leak"] == (above, above, about)
    assert verdicts["no leak found"] == (about, above, about)
    assert verdicts["false positive"][1:] == (above, above)
    assert verdicts["underpowered"][1] == about
