"""Generators of the rows of tables: exact sums, exact probabilities, exact conditions."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genfed import Data, GenfedError, Task
from genfed.core.task import Column, Weights
from genfed.generators.mixture import Mixture
from genfed.generators.row_generator import (
    Condition,
    RowNetwork,
    SummedRowGenerator,
    bin_column,
    read_codes,
    write_features,
)
from genfed.generators.statistics_generator import estimate_alone, merge
from genfed.generators.tan import TAN, find_tree

COLUMNS = (
    Column("age", 0, 1, ((0.0, 0.0), (1.0, 1.5), (2.0, 3.0)), (0.5, 0.25, 0.25), gap=1, fill=1.0),
    Column("sex", 2, 2),
    Column("job", 4, 3),
)
TASK = Task("table", (7,), ("no", "yes"), COLUMNS)
KINDS: list[SummedRowGenerator] = [
    Mixture(components=3, em_steps=4, smoothing=0.5),
    TAN(smoothing=0.5),
    Mixture(components=2, em_steps=2, bins=2),
    TAN(bins=2),
]


def rows(n: int = 400, seed: int = 0) -> Data:
    """Rows in which the job follows from sex and the class."""
    rng = torch.Generator().manual_seed(seed)
    y, sex = torch.randint(2, (n,), generator=rng), torch.randint(2, (n,), generator=rng)
    age = torch.where(y == 1, 2, torch.randint(4, (n,), generator=rng))
    job = (sex + y + (torch.rand(n, generator=rng) < 0.1)) % 3
    return Data(write_features(torch.stack([age, sex, job], 1), COLUMNS, 7, rng), y)


def fit(how: SummedRowGenerator, data: Data) -> RowNetwork:
    network = how.new(TASK, torch.Generator())
    network.load_state_dict(estimate_alone(how, data, TASK, torch.Generator().manual_seed(1)))
    return network


def every_row() -> tuple[Tensor, Tensor]:
    """All rows that there can be, one of each: codes [40, 3] and features."""
    codes = torch.tensor(list(itertools.product(range(4), range(2), range(3))))
    return codes, write_features(codes, COLUMNS, 7, torch.Generator())


def test_codes_are_read_as_they_are_written() -> None:
    codes, x = every_row()
    assert torch.equal(read_codes(x, COLUMNS), codes)
    assert x[codes[:, 0] == 3][:, :2].unique(dim=0).tolist() == [[1.0, 1.0]], "the median, and that it is missing"  # type: ignore[no-untyped-call]
    x[0, 2:4] = 0
    assert read_codes(x[:1], COLUMNS).tolist() == [[0, -1, 0]]


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_the_split_over_clients_changes_no_bit(how: SummedRowGenerator) -> None:
    data, present = rows(), None
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    for _ in range(how.passes):
        whole = how.measure(data, TASK, present)
        parts = [how.measure(data[some], TASK, present) for some in (order[:37], order[37:40], order[40:])]
        split = merge(merge(parts[0], parts[1]), parts[2])
        assert all(torch.equal(whole[name].long(), split[name]) for name in whole)
        how.check(whole, TASK, 400, 0 if present is None else 1)
        present = how.estimate(TASK, whole, present, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", [KINDS[0], KINDS[1]], ids=["mixture", "tan"])
def test_probabilities_add_up_to_one(how: SummedRowGenerator) -> None:
    network = fit(how, rows())
    assert network.log_joint(every_row()[1]).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("how", KINDS[:2], ids=["mixture", "tan"])
def test_a_condition_is_that_of_the_listed_rows(how: SummedRowGenerator) -> None:
    """Against the sum over all rows that fulfil it."""
    network, (codes, x) = fit(how, rows()), every_row()
    condition = Condition({"age": torch.tensor([1.0, 0, 1, 0]), "job": torch.tensor([0.0, 1, 1])})
    wanted = torch.isin(codes[:, 0], torch.tensor([0, 2])) & (codes[:, 2] > 0)
    joint = network.log_joint(x[wanted]).exp()
    torch.testing.assert_close(network.class_shares(condition), joint.sum(0) / joint.sum(), atol=1e-6, rtol=0)
    drawn = read_codes(network.sample_where(torch.ones(6000, dtype=torch.int64), torch.Generator(), condition), COLUMNS)
    shares = joint[:, 1] / joint[:, 1].sum()
    for row, share in zip(codes[wanted], shares, strict=True):
        assert (drawn == row).all(1).double().mean().item() == pytest.approx(share.item(), abs=0.03)


@pytest.mark.parametrize("how", KINDS[:2], ids=["mixture", "tan"])
def test_draws_have_the_counts_of_the_rows(how: SummedRowGenerator) -> None:
    data = rows(3000)
    drawn = fit(how, data).sample(data.y, torch.Generator().manual_seed(2))
    for column in COLUMNS:
        real, made = (torch.bincount(read_codes(x, [column])[:, 0], minlength=column.codes) for x in (data.x, drawn))
        assert (real - made).abs().max() < 160


@pytest.mark.parametrize("how", [Mixture(components=6, em_steps=40, smoothing=0.1), TAN(smoothing=0.1)], ids=str)
def test_what_follows_from_other_columns_is_learned(how: SummedRowGenerator) -> None:
    data = rows(4000)
    drawn = fit(how, data).sample(data.y, torch.Generator().manual_seed(2))
    codes = read_codes(drawn, COLUMNS)
    right = (codes[:, 2] == (codes[:, 1] + data.y) % 3).double().mean().item()
    assert right == pytest.approx(0.9, abs=0.03), "0.5 or less where columns are independent"


def test_the_likelihood_does_not_fall() -> None:
    how, data, present = Mixture(components=4, em_steps=1, smoothing=1e-4), rows(), None
    values = []
    for _ in range(12):
        present = how.estimate(TASK, how.measure(data, TASK, present), present, torch.Generator().manual_seed(1))
        network = how.new(TASK, torch.Generator())
        network.load_state_dict(present)
        values.append(network.log_joint(data.x).gather(1, data.y[:, None]).mean().item())
    assert all(after >= before - 1e-4 for before, after in itertools.pairwise(values))
    assert values[-1] > values[0] + 0.2


def test_one_component_has_independent_columns_by_hand() -> None:
    data = Data(
        write_features(torch.tensor([[0, 0, 0], [0, 1, 1], [2, 1, 2]]), COLUMNS, 7, torch.Generator()),
        torch.tensor([0, 0, 1]),
    )
    network = fit(Mixture(components=1, smoothing=1e-6), data)
    table: Tensor = network.table  # type: ignore[assignment]
    assert network.prior.tolist() == pytest.approx([2 / 3, 1 / 3])
    everywhere = (2 + 1 / 4096) / (3 + 4 / 4096)  # age 0 among all rows
    assert table[0, 0, 0].item() == pytest.approx((2 + everywhere) / 3, abs=1e-4)


def test_the_tree_joins_what_depends_on_each_other() -> None:
    """A chain: b follows a, c follows b; a and c know of each other through b alone."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randint(2, (5000,), generator=rng)
    b = a ^ (torch.rand(5000, generator=rng) < 0.1).long()
    c = b ^ (torch.rand(5000, generator=rng) < 0.1).long()
    columns = tuple(Column(name, 2 * i, 2) for i, name in enumerate("acb"))
    task, how = Task("table", (6,), ("all",), columns), TAN()
    codes = torch.stack([a, c, b], 1)
    data = Data(write_features(codes, columns, 6, rng), torch.zeros(5000, dtype=torch.int64))
    sums = how.measure(data, task)
    assert find_tree(how.binned(task), sums["pairs"].double(), sums["counts"].double()).tolist() == [-1, 2, 0]


@pytest.mark.parametrize("how", KINDS[:2], ids=["mixture", "tan"])
def test_an_unknown_category_does_not_count(how: SummedRowGenerator) -> None:
    network, data = fit(how, rows()), rows(5)
    data.x[:, 4:] = 0
    assert network.log_joint(data.x).isfinite().all()
    sums = how.measure(data, TASK)
    how.check(sums, TASK, 5)


def spoil(sums: Weights, name: str, at: tuple[int, ...], by: int) -> Weights:
    changed = sums[name].clone()
    changed[at] += by
    return sums | {name: changed}


@pytest.mark.parametrize(
    ("how", "name", "at", "by", "error"),
    [
        (KINDS[0], "counts", (0,), 1, "counts do not add up"),
        (KINDS[0], "shares", (0, 0), 1, "shares do not add up to 4096 for each row"),
        (KINDS[0], "values", (0, 0, 0), 10**7, "values are not those of 400 rows"),
        (KINDS[0], "values", (0, 0, 0), -(10**7), "values are not those of 400 rows"),
        (KINDS[1], "pairs", (0, 0, 0), 10**4, "pairs are not those of 400 rows"),
        (KINDS[1], "pairs", (0, 0, 5), 1, "pairs are not those of 400 rows"),
        (KINDS[1], "pairs", (0, 1, 1), -(10**4), "pairs are not those of 400 rows"),
    ],
)
def test_sums_of_no_rows_are_refused(
    how: SummedRowGenerator, name: str, at: tuple[int, ...], by: int, error: str
) -> None:
    sums = how.measure(rows(), TASK)
    how.check(sums, TASK, 400)
    with pytest.raises(GenfedError, match=error):
        how.check(spoil(sums, name, at, by), TASK, 400)


@pytest.mark.parametrize("how", KINDS[:2], ids=["mixture", "tan"])
def test_tables_alone_are_allowed(how: SummedRowGenerator) -> None:
    with pytest.raises(GenfedError, match="examples of kind image; generators of rows allow tables alone"):
        how.new(Task("image", (1, 8, 8), ("a", "b")), torch.Generator())
    with pytest.raises(GenfedError, match=r"columns of the table are not known.*encoder\.json"):
        how.shapes(replace(TASK, columns=()))


def test_no_row_fulfils_a_condition_that_excludes_all() -> None:
    network = fit(TAN(), rows())
    with pytest.raises(GenfedError, match="no row fulfils the condition"):
        network.class_shares(Condition({"sex": torch.zeros(2)}))


def test_too_many_pairs_are_refused_before_they_are_counted() -> None:
    task = Task("table", (20_000,), ("a", "b"), (Column("city", 0, 20_000),))
    with pytest.raises(GenfedError, match=r"20,000 values together.*8,192 are allowed"):
        TAN().shapes(task)


def test_bins_have_about_equally_many_rows() -> None:
    cells = tuple((float(i), float(i)) for i in range(40))
    shares = (0.5, *[0.5 / 39] * 39)
    found = bin_column(Column("x", 0, 1, cells, shares), 5)
    assert found.size in (5, 6)
    assert found.bins[0] == 0
    assert found.bins[1] == 1, "a frequent value is a bin of its own"
    totals = torch.zeros(found.size, dtype=torch.float64).index_add_(0, found.bins, torch.tensor(shares).double())
    assert totals[1:].max() < 0.2
    assert found.shares[found.bins == 1].sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "how", [Mixture(components=3, em_steps=3, together=(("sex", "job"),)), TAN(together=(("sex", "job"),))], ids=str
)
def test_combinations_that_no_row_has_are_not_drawn(how: SummedRowGenerator) -> None:
    codes = torch.tensor([[0, 0, 0], [1, 0, 1], [2, 1, 2], [0, 1, 2]]).repeat(40, 1)
    data = Data(write_features(codes, COLUMNS, 7, torch.Generator()), torch.arange(160) // 2 % 2)
    network = fit(how, data)
    y = torch.arange(2000) % 2
    drawn = read_codes(network.sample(y, torch.Generator()), COLUMNS)
    assert set(map(tuple, drawn[:, 1:].tolist())) == {(0, 0), (0, 1), (1, 2)}
    condition = Condition({"job": torch.tensor([0.0, 1, 1]), "sex": torch.tensor([1.0, 0])})
    drawn = read_codes(network.sample_where(y, torch.Generator(), condition), COLUMNS)
    assert set(map(tuple, drawn[:, 1:].tolist())) == {(0, 1)}
    assert network.log_joint(every_row()[1]).exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("together", "error"),
    [
        ((("sex", "town"),), "together: there is no column 'town'; age, sex, job are allowed"),
        ((("sex", "job"), ("job", "age")), "together: column 'job' is named twice"),
    ],
)
def test_columns_that_cannot_belong_together(together: tuple[tuple[str, ...], ...], error: str) -> None:
    with pytest.raises(GenfedError, match=error):
        TAN(together=together).shapes(TASK)
    wide = replace(TASK, columns=tuple(Column(name, i * 200, 200) for i, name in enumerate("ab")))
    with pytest.raises(GenfedError, match="together: a, b have 40,000 combinations; 10,000 are allowed"):
        TAN(together=(("a", "b"),)).shapes(wide)
