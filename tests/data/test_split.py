import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genfed.core.errors import GenfedError
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.digits import Digits
from genfed.data.folder import Folder
from genfed.data.huggingface import HuggingFace
from genfed.data.npz import Npz
from genfed.data.split import split_stratified
from genfed.data.table import Table


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=1, max_size=4), st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.integers())
def test_parts_are_disjoint_complete_and_have_every_class(sizes: list[int], a: float, b: float, seed: int) -> None:
    y = torch.cat([torch.full((n,), label) for label, n in enumerate(sizes)])
    parts = split_stratified(y, [a, b], seed, [str(label) for label in range(len(sizes))])
    assert sorted(torch.cat(parts).tolist()) == list(range(len(y)))
    for part in parts:
        assert set(y[part].tolist()) == set(y.tolist())
    for label, n in enumerate(sizes):
        assert int((y[parts[1]] == label).sum()) == max(1, round(a * n))


def test_a_fraction_of_0_gives_an_empty_part() -> None:
    train, validation, test = split_stratified(torch.zeros(10, dtype=torch.int64), [0, 0.2], 0, ["a"])
    assert (len(train), len(validation), len(test)) == (8, 0, 2)


def test_another_seed_cuts_otherwise() -> None:
    y = torch.zeros(50, dtype=torch.int64)
    first, again, other = (split_stratified(y, [0.2], seed, ["a"])[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_a_class_with_too_few_examples_is_refused() -> None:
    with pytest.raises(GenfedError, match="class 'cat' has 2 examples: too few for a training part and 2 set aside"):
        split_stratified(torch.tensor([0, 0, 0, 1, 1]), [0.1, 0.1], 0, ["dog", "cat"])


def test_fractions_must_leave_something() -> None:
    with pytest.raises(GenfedError, match=r"validation \+ test is 1; below 1"):
        Digits(validation=0.5, test=0.5)


def test_parts_of_different_shapes_are_refused() -> None:
    one, two = (Data(torch.zeros(4, 1, n, n), torch.tensor([0, 0, 1, 1])) for n in (8, 9))
    with pytest.raises(GenfedError, match=r"one example of train has shape \(1, 8, 8\), one of test \(1, 9, 9\)"):
        Digits().build_dataset("image", {"train": one, "test": two}, ("a", "b"), {})


@pytest.mark.parametrize("source", [Digits, Folder, HuggingFace, Npz, Table])
def test_every_setting_is_described(source: type[Any]) -> None:
    fields = source.__pydantic_fields__
    assert fields.keys() == {field.name for field in dataclasses.fields(source)}
    assert [name for name, field in fields.items() if not field.description] == []


def test_digits_are_scaled_resized_and_cut() -> None:
    data = Digits().load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("image", (1, 32, 32), tuple("0123456789"))
    assert data.train.x.dtype == torch.uint8
    assert int(data.train.x.max()) > 250
    parts = (data.train, data.validation, data.test)
    assert sum(map(len, parts)) == 1797
    assert all(set(part.y.tolist()) == set(range(10)) for part in parts)
    assert data.columns == {}
    small = Digits(size=8, channels=3, validation=0.0).load()
    assert small.task.shape == (3, 8, 8)
    assert len(small.validation) == 0
    assert set(small.train.x.unique(sorted=True).tolist()) == {round(v * 255 / 16) for v in range(17)}  # type: ignore[no-untyped-call]


def test_the_run_does_not_move_the_cut() -> None:
    torch.manual_seed(1)
    first: Dataset = Digits(size=8).load()
    torch.manual_seed(2)
    assert torch.equal(first.test.x, Digits(size=8).load().test.x)
    assert not torch.equal(first.test.x, Digits(size=8, split_seed=1).load().test.x)
