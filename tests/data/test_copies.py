"""Copies are examples of the same features and label, whatever else stands in their rows and however it is stored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genfed.data.dataset import Dataset
from genfed.data.npz import Npz
from genfed.data.table import Table

N = 60
RNG = np.random.default_rng(0)
AGE = [f"{v:.6f}" for v in RNG.normal(50, 9, N)]
TOWN = [["oslo", "bergen", "rome"][i % 3] for i in range(N)]
Y = [["no", "yes"][i // 2 % 2] for i in range(N)]
BASE = {"age": AGE, "town": TOWN, "y": Y}
COPIES = f"{N} examples are exact copies of another"


def write(folder: Path, name: str, columns: Mapping[str, Sequence[object]]) -> str:
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    (folder / name).write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    return str(folder / name)


def twice(**more: Sequence[object]) -> dict[str, list[object]]:
    return {**{name: [*values, *values] for name, values in BASE.items()}, **{n: list(v) for n, v in more.items()}}


def told(data: Dataset) -> list[str]:
    return [line for line in (*data.summary.facts, *data.summary.warnings) if "exact cop" in line]


def rows(data: Dataset) -> list[set[tuple[float, ...]]]:
    return [{(*x, y) for x, y in zip(d.x.tolist(), d.y.tolist(), strict=True)} for d in (data.train, data.test)]


TOKENS = [f"t{i * 7919 % 1000}" for i in range(2 * N)]
UNUSED: list[tuple[dict[str, Sequence[object]], dict[str, Any]]] = [
    ({"token": TOKENS}, {}),  # another text in every row
    ({"token": TOKENS}, {"categorical": ("town",)}),
    ({"token": TOKENS}, {"drop": ("token",)}),
    ({"weight": RNG.normal(size=2 * N).tolist()}, {"features": ("age", "town")}),
    ({"weight": RNG.normal(size=2 * N).tolist()}, {"features": ("town", "age"), "numeric": ("age",)}),
    ({"id": [f"p{i % N}" for i in range(2 * N)]}, {}),  # another text in every row that is left
    ({"id": [f"p{i % N}" for i in range(2 * N)], "token": TOKENS}, {}),
]


@pytest.mark.parametrize(("more", "set_to"), UNUSED)
def test_columns_that_are_not_used_hide_no_copies(
    more: dict[str, Sequence[object]], set_to: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, "a.csv", twice(**more))
    (line,) = told(Table(path=path, label="y", **set_to).load())
    assert line.startswith(f"{COPIES}, among {2 * N}; ")
    data = Table(path=path, label="y", deduplicate=True, **set_to).load()
    assert told(data) == [f"{COPIES}: removed (deduplicate)"]
    train, test = rows(data)
    assert not train & test
    assert len(train) + len(test) + len(data.validation) == N
    assert data.task.shape == (1 + 3,)


def test_columns_that_are_used_tell_rows_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", twice(weight=RNG.normal(size=2 * N).tolist()))
    assert told(Table(path=path, label="y").load()) == []


def test_a_schema_of_another_run_says_what_copies_are(tmp_path: Path) -> None:
    from genfed.data.encoder import write_encoder

    encoder = Table(path=write(tmp_path, "a.csv", BASE), label="y").load().encoder
    assert encoder is not None
    write_encoder(encoder, tmp_path / "encoder.json")
    path = write(tmp_path, "b.csv", twice(weight=RNG.normal(size=2 * N).tolist()))
    (line,) = told(Table(path=path, label="y", encoder=str(tmp_path / "encoder.json")).load())
    assert line.startswith(COPIES)


@pytest.mark.parametrize("stray", ["unknown", "12 or so", "NA"])
@pytest.mark.parametrize("form", ["{}", "{} kg", "{:.8f}"])
def test_a_stray_text_hides_no_other_copies(stray: str, form: str, tmp_path: Path) -> None:
    weights = RNG.integers(40, 90, N).tolist()
    write(tmp_path, "a.csv", BASE | {"weight": [form.format(w) for w in weights]})
    path = write(tmp_path, "b.csv", BASE | {"weight": [stray, *(form.format(w) for w in weights[1:])]})
    source = Table(path=str(tmp_path / "a.csv"), test_path=path, label="y", validation=0.0)
    (line,) = told(source.load())
    assert f"; {N - 1} of {N} test examples are in train too: " in line


def test_rows_that_differ_only_in_unused_columns_show_that_labels_are_torn(tmp_path: Path) -> None:
    table = twice(token=TOKENS) | {"y": [*Y, *(["yes", "no"][["no", "yes"].index(y)] for y in Y)]}
    warnings = Table(path=write(tmp_path, "a.csv", table), label="y").load().summary.warnings
    assert f"{N} rows of several classes: the same values stand under different labels" in warnings


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    x = RNG.normal(size=(N, 2))
    x[:, 1] = 0
    np.savez(tmp_path / "a.npz", x=np.concatenate([x, x * [1, -1]]), y=np.arange(2 * N) % 2)
    (line,) = told(Npz(path=str(tmp_path / "a.npz")).load())
    assert line.startswith(COPIES)


def test_one_picture_between_bytes_hides_no_copies_among_the_others(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (N, 5, 4), dtype=np.uint8)
    x[:, 0, :2] = [0, 255]
    test = x.astype(np.float64)
    test[0, 1, 1] = 100.5
    y = np.arange(N) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=test, y_test=y)
    source = Npz(path=str(tmp_path / "a.npz"), validation=0.0)
    (line,) = told(source.load())
    assert f"; {N - 1} of {N} test examples are in train too: " in line
