"""Trees: leaves hold the counts of the rows, draws are like the rows, and weights of others are checked."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from genfed import Data, GenfedError
from genfed.core.task import Column, Weights
from genfed.generators.cart import CART
from genfed.generators.row_generator import Condition, read_codes
from tests.generators.rows import TASK, draw_table, encode

RNG = torch.Generator().manual_seed(3)


def fit(data: Data, least_leaf: int = 5) -> Weights:
    return CART(least_leaf=least_leaf).fit(data, TASK, torch.Generator().manual_seed(0))


def test_a_leaf_holds_the_shares_of_its_rows() -> None:
    data, codes = draw_table()
    network = CART().build(TASK, fit(data, least_leaf=1))
    table = network.predict(2, data.y, codes)
    for row in range(20):
        alike = (codes[:, :2] == codes[row, :2]).all(1) & (data.y == data.y[row])
        by_hand = torch.bincount(codes[alike, 2], minlength=3).double() / alike.sum()
        torch.testing.assert_close(table[row], by_hand)


def test_rows_are_drawn_as_they_are_frequent() -> None:
    data, codes = draw_table()
    network = CART().build(TASK, fit(data))
    y = torch.multinomial(network.prior, 20_000, replacement=True, generator=RNG)
    drawn = read_codes(network.sample(y, RNG), TASK.columns)
    real, made = (
        torch.bincount(((labels * 5 + rows[:, 0]) * 2 + rows[:, 1]) * 3 + rows[:, 2], minlength=60) / len(rows)
        for rows, labels in ((codes, data.y), (drawn, y))
    )
    assert float((real - made).abs().sum()) / 2 < 0.03


def test_the_probability_of_a_row_is_that_of_its_leaves() -> None:
    data, codes = draw_table()
    network = CART().build(TASK, fit(data, least_leaf=1))
    every = torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(3))
    joint = network.log_joint(encode(every)).exp()
    counts = torch.bincount(((data.y * 5 + codes[:, 0]) * 2 + codes[:, 1]) * 3 + codes[:, 2], minlength=60)
    expected = counts.double().reshape(2, -1).T / len(codes)
    torch.testing.assert_close(joint, expected, atol=1e-6, rtol=0)


def test_a_leaf_has_at_least_as_many_rows_as_is_set() -> None:
    data, _ = draw_table(300)
    weights = fit(data, least_leaf=20)
    for column in range(3):
        leaf, _, rows = weights[f"leaves_{column}"].long().T
        assert int(torch.bincount(leaf, rows)[leaf.unique()].min()) >= 20


def test_a_value_that_is_not_known_has_no_loss_and_is_not_drawn() -> None:
    data, codes = draw_table(400)
    codes[:200, 1] = -1
    network = CART().build(TASK, fit(Data(encode(codes), data.y)))
    drawn = read_codes(network.sample(data.y, RNG), TASK.columns)
    assert int(drawn.min()) == 0
    assert bool(network.log_joint(encode(codes)).isfinite().all())


def test_a_column_that_is_never_known_is_drawn_evenly() -> None:
    data, codes = draw_table(400)
    codes[:, 2] = -1
    network = CART().build(TASK, fit(Data(encode(codes), data.y)))
    drawn = read_codes(network.sample(torch.zeros(3000, dtype=torch.int64), RNG), TASK.columns)
    assert int(torch.bincount(drawn[:, 2], minlength=3).min()) > 900


def test_few_rows_of_many_values_are_fitted_without_a_warning() -> None:
    numbers = torch.arange(60.0)
    task = replace(
        TASK, shape=(1,), columns=(Column("id", 0, 1, tuple((n, n) for n in numbers.tolist()), (1 / 60,) * 60),)
    )
    data = Data(numbers[:, None], torch.arange(60) % 2)
    CART().build(task, CART().fit(data, task, torch.Generator()))


def test_a_condition_on_a_late_column_changes_the_early_ones() -> None:
    data, codes = draw_table()
    network = CART().build(TASK, fit(data))
    where = Condition({"sex": torch.tensor([0.0, 1.0])})
    y = torch.ones(4000, dtype=torch.int64)
    drawn = read_codes(network.sample_where(y, RNG, where), TASK.columns)
    assert drawn[:, 1].unique().tolist() == [1]  # type: ignore[no-untyped-call]
    rows = codes[(codes[:, 1] == 1) & (data.y == 1)]
    real, made = (torch.bincount(some[:, 0], minlength=5) / len(some) for some in (rows, drawn))
    assert float((real - made).abs().sum()) / 2 < 0.04
    shares = network.class_shares(where)
    expected = torch.bincount(data.y[codes[:, 1] == 1]).double()
    torch.testing.assert_close(shares, expected / expected.sum(), atol=0.02, rtol=0)


def test_no_row_fulfils_what_never_was() -> None:
    data, _ = draw_table()
    network = CART().build(TASK, fit(data))
    with pytest.raises(GenfedError, match="no row fulfils the condition"):
        network.class_shares(Condition({"age": torch.tensor([0.0, 0, 0, 0, 1])}))


def change(name: str, row: int, place: int, value: int) -> Callable[[Weights], None]:
    def act(weights: Weights) -> None:
        weights[name][row, place] = value

    return act


BROKEN: dict[str, Callable[[Weights], object]] = {
    "a loop": change("nodes_1", 0, 2, 0),
    "a node that is not there": change("nodes_1", 0, 2, 10_000),
    "a split by a later column": change("nodes_1", 0, 0, 3),
    "a bin that is not there": change("leaves_1", 0, 1, 2),
    "no rows": change("leaves_1", 0, 2, 0),
    "values of no leaf": change("leaves_1", 0, 0, 0),
    "another type": lambda weights: weights.update(nodes_1=weights["nodes_1"].long()),
    "a missing tree": lambda weights: weights.pop("nodes_2"),
    "no node": lambda weights: weights.update(nodes_1=weights["nodes_1"][:0]),
    "other classes": lambda weights: weights.update(prior=torch.ones(3) / 3),
}


@pytest.mark.parametrize("what", BROKEN)
def test_weights_that_are_no_trees_are_refused(what: str) -> None:
    weights = fit(draw_table()[0])
    BROKEN[what](weights)
    with pytest.raises(GenfedError, match="the weights are not those of this generator and these columns"):
        CART().build(TASK, weights)
