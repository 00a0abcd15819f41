"""Pooled generators: rows come from each silo's as often as it has rows, and conditions choose among silos."""

import pytest
import torch

from genfed import GenfedError
from genfed.generators.cart import CART
from genfed.generators.pooled_rows import PooledRowNetwork, build_pooled, pool
from genfed.generators.row_generator import Condition, read_codes
from genfed.generators.statistics_generator import estimate_alone
from genfed.generators.tan import TAN
from tests.generators.rows import TASK, draw_table, encode

RNG = torch.Generator().manual_seed(3)


def fit_trees() -> PooledRowNetwork:
    """Trees of a silo of 300 women who are mostly not ill, and of one of 100 men."""
    parts = []
    for sex, count, ill in ((0, 300, 0.1), (1, 100, 0.5)):
        data, codes = draw_table(count, seed=sex)
        codes[:, 1] = sex
        data.y[:] = (torch.arange(count) < count * ill).long()
        parts.append(CART().fit(type(data)(encode(codes), data.y), TASK, RNG))
    return build_pooled(CART(), TASK, pool(parts, [300, 100]))


def test_silos_are_drawn_as_often_as_they_have_rows_of_a_class() -> None:
    network = fit_trees()
    assert network.prior.tolist() == pytest.approx([320 / 400, 80 / 400])
    for label, share in ((0, 50 / 320), (1, 50 / 80)):
        drawn = read_codes(network.sample(torch.full((4000,), label), RNG), TASK.columns)
        assert float(drawn[:, 1].double().mean()) == pytest.approx(share, abs=0.03)


def test_a_condition_chooses_the_silos_that_have_such_rows() -> None:
    network, where = fit_trees(), Condition({"sex": torch.tensor([0.0, 1.0])})
    assert network.class_shares(where).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    drawn = read_codes(network.sample_where(torch.tensor([0, 1] * 200), RNG, where), TASK.columns)
    assert drawn[:, 1].unique().tolist() == [1]  # type: ignore[no-untyped-call]


def test_the_probability_of_a_row_is_the_mean_over_silos() -> None:
    parts = [estimate_alone(TAN(), draw_table(count, seed=count)[0], TASK, RNG) for count in (300, 100)]
    network = build_pooled(TAN(), TASK, pool(parts, [300, 100]))
    x = draw_table(50)[0].x
    one, other = (TAN().build(TASK, part).log_joint(x).exp() for part in parts)
    torch.testing.assert_close(network.log_joint(x).exp(), 0.75 * one + 0.25 * other, rtol=1e-5, atol=0)


def test_weights_that_are_not_pooled_are_refused() -> None:
    weights = pool([estimate_alone(TAN(), draw_table(60)[0], TASK, RNG)] * 2, [30, 30])
    build_pooled(TAN(), TASK, weights)
    for change in ({"shares": torch.ones(3) / 3}, {"shares": torch.tensor(1.0)}, {"0.table": torch.zeros(2)}):
        with pytest.raises(GenfedError, match="the weights are not those of"):
            build_pooled(TAN(), TASK, weights | change)
