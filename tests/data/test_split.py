import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genfed.core.errors import GenfedError
from genfed.core.task import Data
from genfed.data.dataset import Dataset
from genfed.data.digits import Digits
from genfed.data.folder import Folder
from genfed.data.group_split import split_by_group
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


GROUPED = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=40, max_size=120)


@settings(max_examples=60, deadline=None)
@given(GROUPED, st.integers(0, 5))
def test_no_group_lies_in_two_parts(rows: list[tuple[int, int]], seed: int) -> None:
    y, names = torch.tensor([label for _, label in rows]), [f"p{group}" for group, _ in rows]
    classes = [{names[row] for row in (y == label).nonzero()[:, 0].tolist()} for label in range(3)]
    assume(len(set(names)) >= 8 and all(classes))
    parts = split_by_group(y, names, [0.1, 0.2], seed, "abc")
    assert sorted(torch.cat(parts).tolist()) == list(range(len(y)))
    homes = [{names[row] for row in part.tolist()} for part in parts]
    assert sum(map(len, homes)) == len(set.union(*homes))
    assert set(y[parts[0]].tolist()) == {0, 1, 2}
    assert all(homes)
    again = split_by_group(y, names, [0.1, 0.2], seed, "abc")
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_groups_are_cut_as_the_fractions_and_the_classes_say() -> None:
    y = torch.arange(60) % 2
    rows, names = y.repeat_interleave(4), [f"p{i // 4}" for i in range(240)]
    parts = split_by_group(rows, names, [0.1, 0.2], 0, "ab")
    assert [len(part) for part in parts] == [168, 24, 48]
    assert [int(rows[part].sum()) for part in parts] == [84, 12, 24]
    other = split_by_group(rows, names, [0.1, 0.2], 1, "ab")
    assert not torch.equal(parts[2], other[2])


def test_a_class_of_one_group_stays_in_training_or_is_refused() -> None:
    y, names = torch.tensor([0] * 30 + [1] * 4), [f"p{i // 3}" for i in range(30)] + ["q"] * 4
    assert set(y[split_by_group(y, names, [0.1, 0.2], 0, "ab")[0]].tolist()) == {0, 1}
    with pytest.raises(GenfedError, match="2 groups are too few: each of 3 parts needs one"):
        split_by_group(y, ["p"] * 30 + ["q"] * 4, [0.1, 0.2], 0, "ab")


def pairs(n: int) -> Data:
    return Data(torch.arange(n * 2.0).view(n, 2), torch.arange(n) % 2)


def test_a_source_cuts_by_the_group_that_it_names() -> None:
    given, who = {"train": pairs(40)}, {"site": [f"s{i // 4}" for i in range(40)]}
    data = Digits(group="site").build_dataset("table", given, ("a", "b"), who)
    columns = (data.columns, data.validation_columns, data.test_columns)
    homes = [set(natural["site"]) for natural in columns]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 10
    assert f"groups by site: train {len(homes[0])}, validation {len(homes[1])}, test" in data.summary.facts[-1]
    with pytest.raises(GenfedError, match=r"natural column of the train part 'sit' is not there; did you mean 'site'"):
        Digits(group="sit").build_dataset("table", given, ("a", "b"), who)
    both = {"train": pairs(40), "test": pairs(4)}
    with pytest.raises(GenfedError, match="group 'site': 's1' is in the given train and test parts"):
        Digits(group="site").build_dataset("table", both, ("a", "b"), who, None, {"test": {"site": ["s1"] * 4}})


def test_copies_are_counted_and_can_be_removed() -> None:
    one = pairs(20)
    three = Data(torch.cat([one.x] * 3), torch.cat([one.y] * 3))
    loud = Digits().build_dataset("table", {"train": three}, ("a", "b"), {})
    (line,) = loud.summary.warnings
    assert "40 examples are exact copies of another, among 60; " in line
    assert "of 12 test examples are in train too" in line
    assert line.endswith("set data.deduplicate = true to remove them")
    quiet = Digits(deduplicate=True).build_dataset("table", {"train": three}, ("a", "b"), {})
    assert quiet.summary.warnings == ()
    assert "40 examples are exact copies of another: removed (deduplicate)" in quiet.summary.facts
    x = torch.cat([quiet.train.x, quiet.validation.x, quiet.test.x])
    assert sorted(x[:, 0].tolist()) == one.x[:, 0].tolist()
    opposite = Data(torch.cat([one.x, one.x]), torch.cat([one.y, 1 - one.y]))
    assert not Digits().build_dataset("table", {"train": opposite}, ("a", "b"), {}).summary.warnings


def test_of_copies_the_one_in_the_test_part_stays() -> None:
    given = {"train": pairs(40), "test": pairs(4)}
    data = Digits(deduplicate=True).build_dataset("table", given, ("a", "b"), {})
    assert torch.equal(data.test.x, pairs(4).x)
    assert len(data.train) + len(data.validation) == 36
    (line,) = Digits().build_dataset("table", given, ("a", "b"), {}).summary.warnings
    assert "of 4 test examples are in train too" in line


def test_classes_that_differ_in_capitals_are_warned_of() -> None:
    given = {"train": pairs(40)}
    assert Digits().build_dataset("table", given, ("Yes ", "yes"), {}).summary.warnings == (
        "classes differ only in capitals or spaces; write them alike",
    )


def test_parts_and_classes_are_described() -> None:
    given = {
        "train": Data(torch.rand(25, 2), torch.tensor([0] * 21 + [1] * 4)),
        "test": Data(torch.rand(2, 2), torch.tensor([0, 0])),
    }
    summary = Digits().build_dataset("table", given, ("well", "ill\n"), {}).summary
    assert summary.facts == (
        "examples: train 22, validation 3 (split off), test 2",
        "classes (train/validation/test): well 19/2/2, ill\\n 3/1/0",
    )
    assert summary.warnings == (
        "few training examples of a class: ill\\n 3",
        "the test part has no example of class ill\\n",
    )
