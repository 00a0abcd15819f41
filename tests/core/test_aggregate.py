import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Collect, Fold, Mean, Sum
from genfed.core.errors import GenfedError

few = settings(max_examples=80, deadline=None)


@dataclass(frozen=True)
class Upload:
    x: Any


def clients(count: int, architectures: str = "a") -> list[ClientInfo]:
    return [ClientInfo(i * 3, architectures[i % len(architectures)], 1) for i in range(count)]


def fold(how: Aggregate, values: Sequence[Any], weights: Sequence[float] = (), architectures: str = "a") -> Any:
    """Reduces one value per client; None is a client that did not answer."""
    asked = clients(len(values), architectures)
    folding = Fold({"x": how}, asked)
    for info, value, weight in zip(asked, values, weights or [1.0] * len(values), strict=True):
        if value is None:
            folding.skip(info)
        else:
            folding.add(info, Upload(value), weight)
    return folding.finish()["x"]


# By hand.


def test_a_mean_is_weighted() -> None:
    mean = fold(Mean(), [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0]), torch.tensor([0.0, 3.0])], [1, 2, 5])
    assert mean.tolist() == [9 / 8, 33 / 8]  # (1 + 8 + 0) / 8, (2 + 16 + 15) / 8
    assert mean.dtype == torch.float32


def test_a_mean_by_architecture_leaves_out_those_that_nobody_answered_for() -> None:
    values = [{"w": torch.tensor(v)} if v is not None else None for v in (1.0, None, 3.0, 5.0, None, 7.0)]
    means = fold(Mean(by="architecture"), values, [1, 1, 1, 2, 1, 3], "abc")
    # clients 0, 3 are a: (1·1 + 2·5) / 3; 2, 5 are c: (1·3 + 3·7) / 4; 1, 4 are b, and silent
    assert list(means) == ["a", "c"]
    assert means["a"]["w"].item() == pytest.approx(11 / 3, rel=1e-7)
    assert means["c"]["w"].item() == 6.0


def test_architectures_may_have_different_names_and_shapes() -> None:
    values = [{"w": torch.ones(2)}, {"v": torch.zeros(3, 3), "b": torch.ones(1)}, {"w": torch.zeros(2)}]
    means = fold(Mean(by="architecture"), values, (), "ab")
    assert means["a"]["w"].tolist() == [0.5, 0.5]
    assert means["b"].keys() == {"v", "b"}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_of_a_mean_are_the_lowest_clients(dtype: torch.dtype) -> None:
    values = [None, torch.tensor([1, 0]).to(dtype), torch.tensor([0, 1]).to(dtype), None]
    mean = fold(Mean(), values, [1, 1, 100, 1])
    assert mean.dtype == dtype
    assert mean.tolist() == [1, 0]


def test_numbers_and_nested_dicts_have_means() -> None:
    values: list[Any] = [{"loss": 1.0, "n": {1: 2}}, {"loss": 4.0, "n": {1: 8}}]
    assert fold(Mean(), values, [1, 2]) == {"loss": 3.0, "n": {1: 6.0}}


def test_a_mean_is_taken_in_double_precision() -> None:
    values = [torch.tensor(2.0**24)] + [torch.tensor(1.0)] * 4  # float32 would lose a 1 whenever it comes alone
    assert fold(Sum(), values).item() == 2**24 + 4
    assert fold(Mean(), values, [8, 8, 8, 8, 8]).item() == torch.tensor((2**24 + 4) / 5).item()
    half = [torch.tensor(60000.0, dtype=torch.float16)] * 3
    assert fold(Mean(), half).item() == 60000.0  # their sum is above all of float16
    assert fold(Mean(), half).dtype == torch.float16


def test_a_sum_ignores_weights() -> None:
    assert fold(Sum(), [torch.tensor([1.0]), torch.tensor([2.5])], [10, 20]).tolist() == [3.5]
    assert fold(Sum(), [{"a": 1.5}, {"a": 2.0}, None], [3, 3, 3]) == {"a": 3.5}


def test_a_sum_of_small_integers_does_not_wrap_around() -> None:
    total = fold(Sum(), [torch.tensor([200, 1], dtype=torch.uint8)] * 3)
    assert total.tolist() == [600, 3]
    assert total.dtype == torch.int64
    assert fold(Sum(), [torch.tensor([True, False]), torch.tensor([True, True])]).tolist() == [2, 1]
    assert fold(Sum(), [2**60 + 1, 2**60 + 1]) == 2**61 + 2


def test_collect_gives_each_by_id() -> None:
    assert fold(Collect(), ["a", None, "c"]) == {0: "a", 6: "c"}


@pytest.mark.parametrize(
    ("how", "nothing"), [(Mean(), None), (Mean("architecture"), {}), (Sum(), None), (Collect(), {})]
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_nobody_answered(how: Aggregate, nothing: Any, count: int) -> None:
    assert fold(how, [None] * count) == nothing


@pytest.mark.parametrize("how", [Mean(), Mean(by="architecture"), Sum()])
def test_one_client_is_its_own_mean_and_is_not_changed_by_what_is_done_with_it(how: Aggregate) -> None:
    value = {"w": torch.tensor([1.5, 2.0]), "n": torch.tensor(3)}
    got = fold(how, [value])
    got = got.get("a", got)
    assert {k: v.tolist() for k, v in got.items()} == {"w": [1.5, 2.0], "n": 3}
    for tensor in got.values():
        tensor.zero_()
    assert value["w"].tolist() == [1.5, 2.0]
    assert value["n"].item() == 3


# Any order, any subset.


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Tensor | None], list[float], list[int]]:
    count = draw(st.integers(1, 13))
    answered = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = [torch.randn(3, generator=rng) * 10.0 ** int(i % 5) if yes else None for i, yes in enumerate(answered)]
    weights = draw(st.lists(st.floats(0.1, 1000), min_size=count, max_size=count))
    return values, weights, draw(st.permutations(range(count)))


def tree(values: list[Tensor | None]) -> Tensor | None:
    """The fixed tree, written down again: neighbors are added, level by level; who is missing is not there."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        there = [[v for v in pair if v is not None] for pair in pairs]
        values = [None if not some else some[0] if len(some) == 1 else some[0] + some[1] for some in there]
    return values[0]


@few
@given(rounds())
def test_the_bits_are_those_of_the_fixed_tree_whoever_answers_first(
    case: tuple[list[Tensor | None], list[float], list[int]],
) -> None:
    values, weights, order = case
    asked = clients(len(values))
    folding = Fold({"x": Mean(), "same": Sum()}, asked[::-1])

    @dataclass(frozen=True)
    class Both:
        x: Tensor
        same: Tensor

    for place in order:
        value = values[place]
        if value is None:
            folding.skip(asked[place])
        else:
            folding.add(asked[place], Both(value, value), weights[place])
    got = folding.finish()
    sums = tree([None if v is None else v.double() for v in values])
    products = tree([None if v is None else v.double() * w for v, w in zip(values, weights, strict=True)])
    totals = tree(
        [None if v is None else torch.tensor(w, dtype=torch.float64) for v, w in zip(values, weights, strict=True)]
    )
    if sums is None or products is None or totals is None:
        assert got == {"x": None, "same": None}
        return
    assert torch.equal(got["same"], sums.float())
    assert torch.equal(got["x"], (products / totals).float())
    some = [(v.double(), w) for v, w in zip(values, weights, strict=True) if v is not None]
    mean = sum((v * w for v, w in some), torch.zeros(3).double()) / math.fsum(w for _, w in some)
    assert torch.allclose(got["x"].double(), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("skipping", [False, True])
def test_few_partial_sums_wait_when_replies_come_in_order(count: int, skipping: bool) -> None:
    asked = clients(count)
    folding = Fold({"x": Mean()}, asked)
    most = 0
    for place, info in enumerate(asked):
        if skipping and place % 3 == 0:
            folding.skip(info)
        else:
            folding.add(info, Upload(torch.zeros(1)), 1.0, sent=Upload(torch.zeros(1)))
        most = max(most, len(folding._sums) + len(folding._waiting))
    assert most <= math.floor(math.log2(count)) + 1
    folding.finish()


@pytest.mark.parametrize("how", [Mean(), Sum(), Mean(by="architecture")])
def test_uploads_are_not_changed(how: Aggregate) -> None:
    values = [{"w": torch.full((2,), float(i)), "n": torch.tensor(i)} for i in range(5)]
    before = [{k: v.clone() for k, v in value.items()} for value in values]
    fold(how, values, [2.0] * 5)
    for value, old in zip(values, before, strict=True):
        assert all(torch.equal(value[k], old[k]) for k in old)


def test_a_client_that_was_not_given_stops_the_fold() -> None:
    asked = clients(3)
    folding = Fold({"x": Sum()}, asked)
    folding.add(asked[0], Upload(1.0), 1.0)
    with pytest.raises(AssertionError, match="was neither added nor skipped"):
        folding.finish()
    with pytest.raises(AssertionError, match=r"client 0 .* was given already"):
        folding.skip(asked[0])
    with pytest.raises(AssertionError, match="client 1 is not part of the round"):
        folding.skip(ClientInfo(1, "a", 1))


# Uploads that do not fit.

GOOD = {"w": torch.ones(2), "n": {"k": torch.tensor(1)}}
BAD = [
    {"w": torch.ones(3), "n": {"k": torch.tensor(1)}},
    {"w": torch.ones(2, 1), "n": {"k": torch.tensor(1)}},
    {"w": torch.ones(1), "n": {"k": torch.tensor(1)}},  # would broadcast
    {"w": torch.ones(2).double(), "n": {"k": torch.tensor(1)}},
    {"w": torch.ones(2), "n": {"k": torch.tensor(1, dtype=torch.int32)}},
    {"w": torch.ones(2), "n": {"k": torch.tensor(1.0)}},
    {"w": torch.ones(2), "n": {"k": torch.tensor([1])}},
    {"w": torch.ones(2)},
    {"w": torch.ones(2), "n": {"k": torch.tensor(1), "l": torch.tensor(1)}},
    {"w": torch.ones(2), "n": {}},
    {"w": torch.ones(2), "n": torch.tensor(1)},
    {"w": torch.ones(2), "n": 1.0},
    {"w": {"v": torch.ones(2)}, "n": {"k": torch.tensor(1)}},
    torch.ones(2),
    1.0,
]


@pytest.mark.parametrize("how", [Mean(), Mean(by="architecture"), Sum()])
@pytest.mark.parametrize("bad", BAD)
def test_an_upload_that_does_not_fit_excludes_its_client_alone_whoever_replies_first(how: Aggregate, bad: Any) -> None:
    for place in range(5):
        asked = [ClientInfo(i, "a", 1) for i in range(5)]
        folding = Fold({"x": how}, asked)
        for info in [asked[place], *(info for info in asked if info.id != place)]:
            folding.add(info, Upload(bad if info.id == place else GOOD), 1.0)
        misfits = folding.settle()
        assert list(misfits) == [place]
        assert misfits[place].startswith("uploads of one group have different")
        got = folding.finish()["x"]
        got = got.get("a", got)
        assert got["w"].tolist() == ([4.0, 4.0] if isinstance(how, Sum) else [1.0, 1.0])


@pytest.mark.parametrize("how", [Mean(), Mean(by="architecture"), Sum()])
def test_an_upload_that_differs_from_what_was_sent_is_refused_at_once(how: Aggregate) -> None:
    asked = [ClientInfo(i, "a", 1) for i in range(2)]
    folding = Fold({"x": how}, asked)
    folding.add(asked[0], Upload(GOOD), 1.0, Upload(GOOD))
    for bad in BAD:
        with pytest.raises(GenfedError, match="uploads of one group have different"):
            folding.add(asked[1], Upload(bad), 1.0, Upload(GOOD))
    folding.add(asked[1], Upload(GOOD), 1.0, Upload(GOOD))
    assert folding.settle() == {}


def test_what_most_uploads_look_like_counts_and_in_a_tie_the_lowest_client() -> None:
    for shapes, excluded in (((3, 2, 2, 2), [0]), ((3, 3, 2, 2, 2), [0, 1]), ((2, 3), [1]), ((2, 3, 3, 2), [1, 2])):
        asked = clients(len(shapes))
        for order in itertools.permutations(range(len(shapes))):
            folding, refused = Fold({"x": Mean()}, asked), []
            for i in order:
                try:
                    folding.add(asked[i], Upload(torch.ones(shapes[i])), 1.0)
                except GenfedError:  # most of the group are known already
                    folding.skip(asked[i])
                    refused.append(asked[i].id)
            assert sorted([*refused, *folding.settle()]) == [asked[i].id for i in excluded]
            assert folding.finish()["x"].tolist() == [1.0, 1.0]


def test_where_all_clients_count_the_same_no_weight_does() -> None:
    assert fold(Mean(equal=True), [torch.tensor([1.0]), torch.tensor([3.0])], [1.0, 1e6]).tolist() == [2.0]
    assert fold(Mean(), [torch.tensor([1.0]), torch.tensor([3.0])], [1.0, 3.0]).tolist() == [2.5]


def test_a_client_that_misses_stalls_no_upload() -> None:
    """Fewer than half of a group look alike until the last one was given."""
    asked = clients(5)
    folding = Fold({"x": Sum()}, asked)
    folding.add(asked[0], Upload(torch.ones(1)), 1.0)
    for info in asked[2:]:
        folding.skip(info)
    folding.add(asked[1], Upload(torch.ones(1)), 1.0)
    assert folding.finish()["x"].tolist() == [2.0]
