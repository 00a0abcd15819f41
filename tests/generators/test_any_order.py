"""The network that fills in columns in any order: its loss by hand, and what it learns."""

import copy

import pytest
import torch

from genfed import fit
from genfed.generators.any_order import AnyOrder, AnyOrderNetwork
from genfed.generators.row_generator import Condition, read_codes
from tests.generators.rows import TASK, draw_table, encode


@pytest.fixture(scope="module")
def trained() -> AnyOrderNetwork:
    network = AnyOrder(width=32, learning_rate=0.01).new(TASK, torch.Generator().manual_seed(0))
    (objective,), rng = network.objectives(), torch.Generator().manual_seed(1)
    for step in range(8):
        objective.optimizer.param_groups[0]["lr"] = 0.01 * network.learning_rate_factor(step / 8)
        fit([objective], draw_table(4000)[0], epochs=2, batch_size=100, rng=rng)
    return network


def new() -> AnyOrderNetwork:
    return AnyOrder(width=8).new(TASK, torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_of_the_hidden_columns_by_hand() -> None:
    network, (data, codes) = new(), draw_table(40)
    found = network.loss(data.x, data.y, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    count = torch.randint(1, 4, (40, 1), generator=rng)
    rank = torch.rand(40, 3, generator=rng).argsort(1).argsort(1)
    for row in range(40):
        bins = torch.where(rank[row] < count[row], -1, codes[row])[None]
        terms = [
            -network.predict(column, data.y[row : row + 1], bins)[0, codes[row, column]].log().item()
            for column in range(3)
            if bins[0, column] < 0
        ]
        assert len(terms) == int(count[row])
        assert found[row].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_a_value_that_is_not_known_has_no_loss() -> None:
    network, (data, codes) = new(), draw_table(40)
    codes[:, 1:] = -1
    x = encode(codes)
    for row, loss in enumerate(network.loss(x, data.y, torch.Generator().manual_seed(5)).tolist()):
        hidden = network.predict(0, data.y[row : row + 1], torch.full((1, 3), -1))[0]
        assert loss == 0 or loss == pytest.approx(-hidden[codes[row, 0]].log().item(), rel=1e-4)


def test_the_loss_of_a_row_does_not_depend_on_others() -> None:
    network, (data, _) = new(), draw_table(40)
    loss = network.loss(data.x, data.y, torch.Generator().manual_seed(5))
    x = data.x.clone()
    x[20:] = x[:20]
    changed = network.loss(x, data.y, torch.Generator().manual_seed(5))
    torch.testing.assert_close(loss[:20], changed[:20])


def test_the_label_is_always_seen() -> None:
    network, bins = new(), torch.full((1, 3), -1)
    one, other = (network.predict(0, torch.tensor([label]), bins) for label in (0, 1))
    assert not torch.equal(one, other)


def test_rows_are_drawn_as_they_are_frequent(trained: AnyOrderNetwork) -> None:
    data, codes = draw_table(4000)
    drawn = read_codes(trained.sample(data.y, torch.Generator().manual_seed(2)), TASK.columns)
    real, made = (
        torch.bincount(((data.y * 5 + rows[:, 0]) * 2 + rows[:, 1]) * 3 + rows[:, 2], minlength=60) / len(rows)
        for rows in (codes, drawn)
    )
    assert float((real - made).abs().sum()) / 2 < 0.06
    weights = copy.deepcopy(trained.state_dict())
    trained.sample(data.y[:5], torch.Generator())
    assert all(torch.equal(weights[name], value) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("allowed", [[0.0, 1.0], [1.0, 0.0]])
def test_columns_with_conditions_are_drawn_first(trained: AnyOrderNetwork, allowed: list[float]) -> None:
    data, codes = draw_table(4000)
    where = Condition({"sex": torch.tensor(allowed)})
    wanted = int(allowed[1])
    drawn = read_codes(
        trained.sample_where(torch.ones(3000, dtype=torch.int64), torch.Generator().manual_seed(2), where), TASK.columns
    )
    assert drawn[:, 1].unique().tolist() == [wanted]  # type: ignore[no-untyped-call]
    rows = codes[(codes[:, 1] == wanted) & (data.y == 1)]
    for column, size in ((0, 5), (2, 3)):
        real, made = (torch.bincount(some[:, column], minlength=size) / len(some) for some in (rows, drawn))
        assert float((real - made).abs().sum()) / 2 < 0.1
    expected = torch.bincount(data.y[codes[:, 1] == wanted]).double()
    torch.testing.assert_close(trained.class_shares(where), expected / expected.sum(), atol=0.05, rtol=0)


def test_the_same_draws_give_the_same_rows(trained: AnyOrderNetwork) -> None:
    y = torch.tensor([0, 1] * 600)
    one, other = (trained.sample(y, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)


def test_the_learning_rate_falls() -> None:
    assert [round(new().learning_rate_factor(share), 3) for share in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_rows_of_the_model_are_more_likely_than_others(trained: AnyOrderNetwork) -> None:
    data, codes = draw_table(500, seed=9)
    strange = codes.clone()
    strange[:, 1] = 1 - strange[:, 1]
    one, other = (trained.log_joint(encode(rows)).gather(1, data.y[:, None]).mean() for rows in (codes, strange))
    assert float(one) > float(other) + 0.5
