"""Principal components of parts of a class: k-means and its moments by sums, whoever has the examples."""

from itertools import pairwise

import pytest
import torch

from genfed import Data, GenfedError, Task
from genfed.core.task import Weights
from genfed.generators.local_pca import LocalPCA
from genfed.generators.ppca import PPCA
from genfed.generators.statistics_generator import merge

TASK = Task("features", (2,), ("a", "b"))
HOW = LocalPCA(rank=1, parts=2, steps=3)


def draw(count: int = 400) -> Data:
    """Class a has two lines, one along each axis; class b one point."""
    rng = torch.Generator().manual_seed(0)
    y, side = torch.arange(count) % 2, torch.arange(count) % 4 < 2
    along = torch.randn(count, generator=rng) * 0.3
    zero = torch.zeros(count)
    lines = torch.where(side[:, None], torch.stack([along + 3, zero + 2], 1), torch.stack([zero - 3, along - 2], 1))
    return Data(torch.where((y == 0)[:, None], lines, torch.ones(2)), y)


def estimate(how: LocalPCA, clients: list[Data]) -> Weights:
    present, rng = None, torch.Generator().manual_seed(1)
    for done in range(how.passes):
        parts = [how.measure(data, TASK, present) for data in clients]
        for data, part in zip(clients, parts, strict=True):
            how.check(part, TASK, len(data), done)
            assert {name: tuple(value.shape) for name, value in part.items()} == how.shapes(TASK, done)
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part)
        present = how.estimate(TASK, total, present, rng)
    assert present is not None
    return present


def test_it_finds_the_lines_and_their_directions() -> None:
    found = estimate(HOW, [draw()])
    assert found["weight"].tolist()[0] == [0.5, 0.5]
    means = sorted(found["mean"][0].round(decimals=0).tolist())
    assert means == [[-3.0, -2.0], [3.0, 2.0]]
    left = int(found["mean"][0, :, 0].argmin())
    assert found["factor"][0, left, :, 0].abs().tolist() == pytest.approx([0, 0.3], abs=0.05)
    assert found["factor"][0, 1 - left, :, 0].abs().tolist() == pytest.approx([0.3, 0], abs=0.05)
    made = HOW.new(TASK, torch.Generator())
    made.load_state_dict(found)
    drawn = made.sample(torch.zeros(1000, dtype=torch.long), torch.Generator().manual_seed(2))
    assert float((drawn[:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert bool(((drawn[:, 0] > 0) == (drawn[:, 1] > 0)).all())
    assert made.log_joint(draw().x).argmax(1).tolist() == draw().y.tolist()


def test_a_step_by_hand() -> None:
    """Rows in steps of 1/64; the means are at −1 and 1."""
    data = Data(torch.tensor([[-1.0], [-0.5], [2.0]]), torch.zeros(3, dtype=torch.int64))
    task = Task("features", (1,), ("a",))
    present = {"mean": torch.tensor([[[-1.0], [1.0]]]), "weight": torch.ones(1, 2), "done": torch.tensor(1)}
    statistics = LocalPCA(rank=1, parts=2, steps=1).measure(data, task, present)
    assert statistics["sizes"].tolist() == [[2, 1]]
    assert statistics["sums"].tolist() == [[[-96], [128]]]
    assert "products" not in statistics
    last = LocalPCA(rank=1, parts=2, steps=1).measure(data, task, present | {"done": torch.tensor(2)})
    assert last["products"].tolist() == [[[64**2 + 32**2], [128**2]]]


def test_the_generator_holds_no_mean_of_a_few_examples() -> None:
    """Three examples far from 40 others are a part of their own, and its mean would show them."""
    noise = 0.1 * torch.randn(43, 2, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.zeros(40, 2), torch.full((3, 2), 5.0)]) + noise
    data = Data(x, torch.zeros(43, dtype=torch.int64))
    for least, parts in ((1, 2), (10, 1)):
        found = estimate(LocalPCA(rank=1, parts=2, steps=5, least=least), [data[:20], data[20:]])
        assert int((found["weight"][0] > 0).sum()) == parts
        far = found["mean"][0][found["weight"][0] > 0].amax(1) > 4
        assert int(far.sum()) == parts - 1


def test_a_class_with_few_examples_keeps_one_part() -> None:
    data = draw()
    few = data[torch.cat([torch.arange(1, 101, 2), torch.tensor([0, 2, 4])])]
    found = estimate(HOW, [few])
    assert sorted(found["weight"][0].tolist()) == [0.0, 1.0]


def test_any_split_gives_the_same_bits() -> None:
    data = draw(60)
    whole = estimate(HOW, [data])
    split = estimate(HOW, [data[a:b] for a, b in pairwise([0, 1, 20, 33, 60])])
    by_class = estimate(HOW, [data[data.y == 0], data[data.y == 1]])
    assert all(torch.equal(whole[name], split[name]) and torch.equal(whole[name], by_class[name]) for name in whole)


def test_the_first_pass_is_that_of_ppca() -> None:
    ours, theirs = HOW.measure(draw(), TASK), PPCA(rank=1).measure(draw(), TASK)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_class_without_examples_keeps_finite_parts() -> None:
    data = draw()
    found = estimate(HOW, [data[data.y == 0]])
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert found["prior"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("sizes", 1, "the sizes of its parts do not add up"),
        ("sums", 10**7, "its statistics are not those of 400 examples"),
        ("products", -(10**9), "its statistics are not those of 400 examples"),
    ],
)
def test_impossible_statistics_are_refused(name: str, change: int, says: str) -> None:
    present = estimate(HOW, [draw()]) | {"done": torch.tensor(HOW.passes - 1)}
    statistics = HOW.measure(draw(), TASK, present)
    HOW.check(statistics, TASK, 400, HOW.passes - 1)
    with pytest.raises(GenfedError, match=says):
        HOW.check(statistics | {name: statistics[name] + change}, TASK, 400, HOW.passes - 1)
