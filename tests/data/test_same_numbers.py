"""The same row gives the same numbers, whichever file it stands in and whenever it is read."""

import csv
import datetime
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.data.dataset import Dataset
from genfed.data.encoder import read_encoder, write_encoder
from genfed.data.features import TableSchema
from genfed.data.huggingface import HuggingFace
from genfed.data.npz import Npz
from genfed.data.table import Table

TEXTS = st.text("abcéÅ ß-'\"\n,;", min_size=1, max_size=6).filter(lambda text: text.strip(" \n\"'-").isalnum())
WORDS = st.sampled_from(["None", "unknown", "True", "NA", "08:00", "x"])
KINDS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "integer": (st.integers(-(10**6), 10**6), pyarrow.int32()),
    "code": (st.integers(0, 3), pyarrow.int64()),
    "float": (st.floats(-1e6, 1e6).map(lambda value: round(value, 5)), pyarrow.float64()),
    "short": (st.integers(-9999, 9999).map(lambda value: float(np.float32(value / 100))), pyarrow.float32()),
    "truth": (st.booleans(), pyarrow.bool_()),
    "text": (st.one_of(TEXTS, WORDS), pyarrow.string()),
    "time": (st.times().map(lambda t: t.replace(microsecond=0)), pyarrow.time32("s")),
    "day": (st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)), pyarrow.date32()),
    "moment": (
        st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)).map(
            lambda t: t.replace(microsecond=0)
        ),
        pyarrow.timestamp("us"),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[Any]]]:
    """The kind of each column, and the values of each; None: missing."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
    n = draw(st.integers(12, 24))
    values = [draw(st.lists(st.one_of(st.none(), KINDS[kind][0]), min_size=n, max_size=n)) for kind in kinds]
    return kinds, values


def spell(value: Any, kind: str) -> str:
    if kind == "short" and value is not None:
        return str(np.float32(value))
    return "" if value is None else str(value)


def write(folder: Path, kinds: Sequence[str], values: Sequence[Sequence[Any]]) -> tuple[str, str]:
    names = [f"c{i}" for i in range(len(kinds))]
    labels = ["yes" if i % 2 else "no" for i in range(len(values[0]))]
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "y"])
        for row, label in zip(zip(*values, strict=True), labels, strict=True):
            writer.writerow([*(spell(value, kind) for value, kind in zip(row, kinds, strict=True)), label])
    columns = [pyarrow.array(column, KINDS[kind][1]) for kind, column in zip(kinds, values, strict=True)]
    parquet.write_table(pyarrow.table([*columns, pyarrow.array(labels)], [*names, "y"]), folder / "a.parquet")
    return str(folder / "a.csv"), str(folder / "a.parquet")


def rows_of(data: Dataset) -> Tensor:
    return torch.cat([data.train.x, data.validation.x, data.test.x])


def read(source: Table, path: str, data: Dataset) -> Tensor:
    (found,) = source.read(path, data.task, data.encoder)
    return found.x


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(tables())
def test_a_table_reads_alike_as_csv_and_as_parquet(table: tuple[list[str], list[list[Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), *table)
        for path in paths:
            source = Table(path=path, label="y", validation=0.2)
            try:
                data = source.load()
            except GenfedError as error:  # every column may be missing, or another text in every row
                assert "there are no feature columns" in str(error)  # noqa: PT017
                continue
            write_encoder(data.encoder, Path(folder) / "encoder.json")  # type: ignore[arg-type]
            assert read_encoder(Path(folder) / "encoder.json") == data.encoder
            one, other = (read(source, there, data) for there in paths)
            assert torch.equal(one, other)
            order = {tuple(row.tolist()) for row in rows_of(data)}
            assert {tuple(row.tolist()) for row in one} == order
            assert len(one) == len(rows_of(data))


def test_a_word_in_a_column_that_training_has_not() -> None:
    """One row has a value, and it is a test row."""
    truth: list[Any] = [None] * 11 + [False]
    test_a_table_reads_alike_as_csv_and_as_parquet.hypothesis.inner_test((["truth"], [truth]))  # type: ignore[attr-defined]
    test_a_table_reads_alike_as_csv_and_as_parquet.hypothesis.inner_test(  # type: ignore[attr-defined]
        (["truth", "integer"], [truth, list(range(12))])
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "huggingface"])
def test_predict_on_the_training_file_gives_the_training_features(kind: str, tmp_path: Path) -> None:
    """Every kind of column at once; the order of the rows is that of an id that is no feature."""
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    n = 60
    values: dict[str, list[Any]] = {
        "shift": [datetime.time(8 + 30 * (i % 2) // 30, 30 * (i % 2)) for i in range(n)],
        "smoker": [bool(v) for v in rng.integers(0, 2, n)],
        "seen": [datetime.date(2020, 1, 1) + datetime.timedelta(int(d)) for d in rng.integers(0, 300, n)],
        "ward": [f"{v:02}" for v in rng.integers(1, 12, n)],
        "town": [["Malmö", "Malmo\u0308", "Oslo"][v] for v in rng.integers(0, 3, n)],
        "dose": [None if v > 0.9 else float(v) for v in rng.random(n)],
        "y": ["a" if v else "b" for v in rng.integers(0, 2, n)],
        "row": list(range(n)),
    }
    table = pyarrow.table(values)
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [list(values), *zip(*([spell(v, "") for v in c] for c in values.values()), strict=True)]
        )
    parquet.write_table(table, tmp_path / "a.parquet")
    source: Table | HuggingFace
    if kind == "huggingface":
        datasets.Dataset(table).save_to_disk(tmp_path / "hf")
        source = HuggingFace(path=str(tmp_path / "hf"), label="y", columns=("row",))
    else:
        source = Table(path=str(tmp_path / f"a.{kind}"), label="y", columns=("row",))
    data = source.load()
    assert isinstance(data.encoder, TableSchema)
    assert list(data.encoder.numbers) == ["shift", "seen", "dose"]
    assert data.encoder.categories["town"] == ("Malmö", "Oslo")
    assert data.encoder.categories["ward"][0] == "01"
    order = [int(row) for part in (data.columns, data.validation_columns, data.test_columns) for row in part["row"]]
    for name in ("a.csv", "a.parquet"):
        (found,) = source.read(str(tmp_path / name), data.task, data.encoder)
        assert torch.equal(found.x[order], rows_of(data))
        assert found.warnings == ()


def csv_file(folder: Path, column: Sequence[object], name: str = "a.csv", header: str = "v") -> str:
    lines = [f"{header},y", *(f"{value},{'ab'[i % 2]}" for i, value in enumerate(column))]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


NUMBERS: list[tuple[list[Any], list[Any]]] = [
    ([8, 9, 10] * 10, ["8", "9.0", "10.00"] * 10),
    (["08:00", "9:30"] * 15, ["08:00:00", "09:30:00.000"] * 15),
    (["2020-01-31", "2021-12-01"] * 15, ["2020-01-31 00:00:00", "2021/12/01"] * 15),
    (["2020-01-31T22:00:00Z", "2021-12-01"] * 15, ["2020-02-01 00:00:00+02:00", "2021-12-01"] * 15),
    (["$1", "$2.5", "$30"] * 10, ["1", "2.5", "30"] * 10),
    (["5 %", "10 %"] * 15, ["5%", "10"] * 15),
]
CATEGORIES: list[tuple[list[Any], list[Any]]] = [
    *NUMBERS[:2],
    (["2020-01-31", "2021-12-01"] * 15, ["2020-01-31 00:00:00", "2021-12-01T00:00"] * 15),
    (["True", "False"] * 15, ["true", "FALSE"] * 15),
    (["Åre", "b c"] * 15, [" A\u030are", '"b c"'] * 15),
]


@pytest.mark.parametrize(
    ("train", "other", "categorical"),
    [(*pair, None) for pair in NUMBERS] + [(*pair, ("v",)) for pair in CATEGORIES],
)
def test_spellings_of_one_value_are_one(
    train: list[Any], other: list[Any], categorical: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path, there = csv_file(tmp_path, train), csv_file(tmp_path, other, "b.csv")
    source = Table(path=path, label="y", categorical=categorical)
    data = source.load()
    assert isinstance(data.encoder, TableSchema)
    assert set(data.encoder.categories) == set(categorical or ())
    assert torch.equal(read(source, there, data), read(source, path, data))


def test_codes_with_leading_zeros_stay_codes(tmp_path: Path) -> None:
    path = csv_file(tmp_path, ["01", "07", "10"] * 10)
    source = Table(path=path, label="y")
    data = source.load()
    assert isinstance(data.encoder, TableSchema)
    assert data.encoder.categories == {"v": ("01", "07", "10")}
    assert "column 'v': digits that begin with a zero are taken as codes" in data.summary.warnings[0]
    assert read(source, csv_file(tmp_path, ["07", "7"], "b.csv"), data).tolist() == [[0, 1, 0], [0, 0, 0]]
    numbers = Table(path=path, label="y", numeric=("v",)).load()
    assert isinstance(numbers.encoder, TableSchema)
    assert list(numbers.encoder.numbers) == ["v"]
    labels = str(tmp_path / "d.csv")
    Path(labels).write_text("v,y\n" + "".join(f"{i * i},0{i % 2 + 1}\n" for i in range(30)))
    assert Table(path=labels, label="y").load().task.classes == ("01", "02")


def test_other_words_cost_their_own_cell_alone(tmp_path: Path) -> None:
    """One word more in another file leaves the other cells of the column what they were."""
    source = Table(path=csv_file(tmp_path, ["True", "False"] * 20), label="y")
    data = source.load()
    (found,) = source.read(csv_file(tmp_path, ["unknown", "False", "True"], "b.csv"), data.task, data.encoder)
    assert found.x.tolist() == [[0, 0], [1, 0], [0, 1]]
    (line,) = found.warnings
    assert line.endswith("b.csv: column 'v': of 3, 1 value was not in the training rows; the code is all zeros")
    source = Table(path=csv_file(tmp_path, range(0, 200, 5)), label="y", scale="none")
    data = source.load()
    (found,) = source.read(csv_file(tmp_path, ["old", "35", "-"], "b.csv"), data.task, data.encoder)
    assert found.x[1].item() == 35
    assert found.x[0] == found.x[2]  # the median
    assert "of 3, 1 value is no number ('old') and taken as missing" in found.warnings[0]
    with pytest.raises(GenfedError, match=r"c\.csv: column 'v' is not of numbers \('old'\)"):
        read(source, csv_file(tmp_path, ["old"], "c.csv"), data)


def test_what_stands_in_held_out_rows_does_not_type_a_column(tmp_path: Path) -> None:
    tame = Table(path=csv_file(tmp_path, [i * i for i in range(40)]), label="y", validation=0.1).load()
    test = {int(v) for v in _raw(tame, tame.test.x)}
    wild = ["many" if i * i in test else i * i for i in range(40)]
    other = Table(path=csv_file(tmp_path, wild, "b.csv"), label="y", validation=0.1).load()
    assert torch.equal(other.train.x, tame.train.x)
    assert other.encoder == tame.encoder
    assert any("8 values are no numbers ('many')" in line for line in other.summary.warnings)


def _raw(data: Dataset, x: Tensor) -> list[float]:
    assert isinstance(data.encoder, TableSchema)
    about = data.encoder.numbers["v"]
    return (x[:, 0].double() * about.scale + about.shift).round().tolist()


def test_a_stored_encoder_is_used_as_it_is(tmp_path: Path) -> None:
    first = Table(path=csv_file(tmp_path, range(0, 120, 3)), label="y").load()
    assert first.encoder is not None
    write_encoder(first.encoder, tmp_path / "encoder.json")
    there = csv_file(tmp_path, range(500, 540), "b.csv")
    second = Table(path=there, label="y", encoder=str(tmp_path / "encoder.json")).load()
    assert second.encoder == first.encoder
    assert float(second.train.x.min()) > 10
    for content, says in ((b"{}", "not the encoder.json of a run on a table"), (b"\xff", "not the encoder.json")):
        (tmp_path / "wrong.json").write_bytes(content)
        with pytest.raises(GenfedError, match=says):
            Table(path=there, label="y", encoder=str(tmp_path / "wrong.json")).load()


def test_a_file_in_another_unit_or_without_values_is_told(tmp_path: Path) -> None:
    source = Table(path=csv_file(tmp_path, [50 + i % 40 for i in range(80)]), label="y")
    data = source.load()
    for values, says in (
        ([1000 * (50 + i % 40) for i in range(20)], r"far from those of training \(median 59500, in training 6"),
        ([""] * 20, "every value is missing"),
        ([50 + i % 40 for i in range(20)], None),
        ([300], None),
    ):
        (found,) = source.read(csv_file(tmp_path, values, "b.csv"), data.task, data.encoder)
        assert bool(found.warnings) == (says is not None)
        assert says is None or re.search(says, found.warnings[0])
    towns = Table(path=csv_file(tmp_path, ["oslo", "bergen"] * 40), label="y")
    data = towns.load()
    (found,) = towns.read(csv_file(tmp_path, [""] * 20, "b.csv"), data.task, data.encoder)
    assert "every value is missing; in training none was" in found.warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": {"weight": {"": 0.45359237}}}, "units = {'weight': {'': 0.45359237}}: .* decides how columns"),
        ({"features": ("weight",)}, "features = .*: .* decides how columns are read; remove one of them"),
        ({"categorical": ("age",)}, "categorical = "),
        ({"numeric": ("age",)}, "numeric = "),
        ({"decimal": ","}, "decimal = "),
        ({"thousands": "."}, "thousands = "),
        ({"scale": "range"}, "scale = 'range': .* has the scales"),
        ({"drop": ("age",)}, "column 'age' is dropped, and a feature in "),
        ({"label": "age"}, "column 'age' is the label, and a feature in "),
        ({"group": "age"}, "column 'age' is no feature, and a feature in "),
        ({"columns": ("age",)}, "column 'age' is no feature, and a feature in "),
    ],
)
def test_a_setting_that_a_given_schema_decides_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rows = [f"{60 + i},{20 + i % 7},{i % 2},{i}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["weight,age,ill,note", *rows]) + "\n")
    there: dict[str, Any] = {"path": str(tmp_path / "a.csv"), "label": "ill", "validation": 0.0}
    fitted = Table(**there, drop=("note",)).load().encoder
    assert fitted is not None
    write_encoder(fitted, tmp_path / "encoder.json")
    there |= {"encoder": str(tmp_path / "encoder.json")}
    assert Table(**there, drop=("note",)).load().encoder == fitted
    with pytest.raises(GenfedError, match=message):
        Table(**there | changes).load()


def test_a_schema_beside_an_array_that_it_does_not_decide_is_refused(tmp_path: Path) -> None:
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    np.savez(tmp_path / "images.npz", x=np.zeros((40, 4, 4), np.uint8), y=y)
    rows = Npz(path=str(tmp_path / "rows.npz"))
    fitted = rows.load().encoder
    assert fitted is not None
    write_encoder(fitted, file := tmp_path / "encoder.json")
    with pytest.raises(GenfedError, match=r"scale = 'none': .* has the scales"):
        replace(rows, encoder=str(file), scale="none").load()
    with pytest.raises(GenfedError, match=r"encoder = .* holds images, whose scale is set by pixels and background"):
        Npz(path=str(tmp_path / "images.npz"), encoder=str(file)).load()
