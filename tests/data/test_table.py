import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import csv, parquet
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from genfed.core.errors import GenfedError
from genfed.data.cells import number_cells
from genfed.data.encoder import read_encoder, write_encoder
from genfed.data.features import NumberScaling, TableSchema, fit_schema
from genfed.data.numerals import PLAIN
from genfed.data.table import Table

ROWS = [
    f"{i}, {'?' if i % 10 == 3 else i * i}, {'red' if i % 3 else 'blue'}, {'AB'[i % 2]}, {'no' if i % 4 < 2 else 'yes'}"
    for i in range(40)
]
HEADER = "age, income,colour,hospital,ill"


def write(folder: Path, rows: list[str] = ROWS, header: str = HEADER, name: str = "data.csv") -> str:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_numbers_are_scaled_and_categories_coded(tmp_path: Path) -> None:
    data = Table(path=write(tmp_path), label="ill", columns=("hospital",)).load()
    assert (data.task.kind, data.task.shape, data.task.classes) == ("table", (5,), ("no", "yes"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [28, 4, 8]
    x = data.train.x
    assert x.dtype == torch.float32
    assert torch.allclose(x[:, :2].mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(x[:, :2].var(0, correction=0), torch.ones(2), atol=1e-5)
    assert len(x[x[:, 2] == 1][:, 1].unique()) == 1, "a missing income is the median"  # type: ignore[no-untyped-call]
    assert x[:, 3:].sum(1).unique().tolist() == [1.0]  # type: ignore[no-untyped-call]
    assert set(data.columns) == {"hospital"}
    assert set(data.columns["hospital"]) == {"A", "B"}
    assert len(data.columns["hospital"]) == 28


def test_held_out_rows_have_natural_columns_too(tmp_path: Path) -> None:
    rows = [f"{i},{'AB'[i % 2]},{i % 4 < 2}" for i in range(40)]
    train = write(tmp_path, rows, "age,hospital,ill")
    cut = Table(path=train, label="ill", columns=("hospital",)).load()
    assert isinstance(cut.encoder, TableSchema)
    age = cut.encoder.numbers["age"]
    for part, columns in ((cut.validation, cut.validation_columns), (cut.test, cut.test_columns)):
        ages = (part.x[:, 0] * age.scale + age.shift).round().int().tolist()
        assert columns["hospital"] == tuple("AB"[i % 2] for i in ages)
    there = write(tmp_path, ["1,C,True", "2,A,False"], "age,hospital,ill", "there.csv")
    data = Table(path=train, test_path=there, label="ill", columns=("hospital",)).load()
    assert data.test_columns == {"hospital": ("C", "A")}
    gaps = write(tmp_path, ["1,,True", "2,A,False"], "age,hospital,ill", "gaps.csv")
    with pytest.raises(GenfedError, match=r"gaps\.csv: column 'hospital' lacks 1 values"):
        Table(path=train, test_path=gaps, label="ill", columns=("hospital",)).load()


def test_by_hand(tmp_path: Path) -> None:
    train = write(tmp_path, ["1,u,0", "2,u,0", ",v,1", "6,,1"], "a,b,y")
    test = write(tmp_path, ["2,w,0", "9,,1"], "a,b,y", "test.csv")
    data = Table(path=train, test_path=test, label="y", validation=0.0, scale="range").load()
    # the median of 1, 2, 6 stands for what is missing, and the second feature says so; [1, 6] becomes [−1, 1]; the
    # categories are (missing), u, v
    expected = [[-1.0, 0, 0, 1, 0], [-0.6, 0, 0, 1, 0], [-0.6, 1, 0, 0, 1], [1.0, 0, 1, 0, 0]]
    assert torch.allclose(data.train.x, torch.tensor(expected))
    assert torch.allclose(data.test.x, torch.tensor([[-0.6, 0, 0, 0, 0], [2.2, 0, 1, 0, 0]]))


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    header = f"id,{HEADER}"
    tame = write(tmp_path, [f"{i},{row}" for i, row in enumerate(ROWS)], header)
    first = Table(path=tame, label="ill", columns=("id",)).load()
    train = set(first.columns["id"])
    assert len(train) == 28
    # whatever stands in the other rows, training does not change
    rows = [f"{i},{row if str(i) in train else f'{10**6}, 5, purple, C,' + row[-3:]}" for i, row in enumerate(ROWS)]
    other = Table(path=write(tmp_path, rows, header, "wild.csv"), label="ill", columns=("id",)).load()
    assert torch.equal(other.train.x, first.train.x)
    assert float(other.test.x[:, 0].min()) > 1000
    assert other.columns == first.columns


def test_a_separate_test_file_changes_nothing_in_training(tmp_path: Path) -> None:
    train = write(tmp_path)
    tame = Table(path=train, test_path=write(tmp_path, ROWS[:8], name="tame.csv"), label="ill").load()
    wild = [f"{10**6 * i}, ?, purple, C, {'no' if i % 2 else 'yes'}" for i in range(8)]
    other = Table(path=train, test_path=write(tmp_path, wild, name="wild.csv"), label="ill").load()
    assert torch.equal(tame.train.x, other.train.x)
    assert torch.equal(tame.validation.x, other.validation.x)
    assert len(other.test) == 8
    assert len(tame.train) == 36


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    rows = [row.replace("?", "").replace(" ", "") for row in ROWS]
    path = write(tmp_path, rows)
    table = csv.read_csv(path)
    colour = table.column_names.index("colour")
    table = table.set_column(colour, "colour", table.column("colour").dictionary_encode())
    parquet.write_table(table, tmp_path / "data.parquet")
    one, two = (Table(path=str(tmp_path / name), label="ill").load() for name in ("data.csv", "data.parquet"))
    assert torch.equal(one.train.x, two.train.x)
    assert one.task == two.task


def test_text_files_without_header_and_with_other_delimiters(tmp_path: Path) -> None:
    names = tuple(HEADER.replace(" ", "").split(","))
    data = Table(path=write(tmp_path, ROWS[1:], ROWS[0], "a.data"), label="ill", names=names).load()
    expected = Table(path=write(tmp_path), label="ill").load()
    assert torch.equal(data.train.x, expected.train.x)
    for suffix, mark, delimiter in ((".tsv", "\t", None), (".txt", ";", ";")):
        rows = [row.replace(",", mark) for row in ROWS]
        path = write(tmp_path, rows, HEADER.replace(",", mark), f"a{suffix}")
        assert torch.equal(Table(path=path, label="ill", delimiter=delimiter).load().train.x, expected.train.x)


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert Table(path=path, label="ill", features=("age",)).load().task.shape == (1,)
    assert Table(path=path, label="ill", features=("hospital",)).load().task.shape == (2,)
    assert Table(path=path, label="ill", drop=("income", "hospital")).load().task.shape == (3,)
    as_text = Table(path=path, label="ill", categorical=("colour", "hospital", "age")).load()
    assert as_text.task.shape == (2 + 28 + 2 + 2,)
    named = Table(path=path, label="ill", classes=("well", "ill")).load()
    assert named.task.classes == ("well", "ill")
    assert "class names: no → well, yes → ill" in named.summary.facts


def test_a_column_without_any_value_is_not_used(tmp_path: Path) -> None:
    """Unless it is named. Nothing shows whether it has numbers or words, which other rows may have."""
    rows = [f"{i},,{i % 2}" for i in range(20)]
    path = write(tmp_path, rows, "a,b,y")
    data = Table(path=path, label="y").load()
    assert data.task.shape == (1,)
    assert data.task.classes == ("0", "1")
    named = Table(path=path, label="y", numeric=("b",)).load()
    assert named.task.shape == (2,)
    assert (named.train.x == 0).all(0).any()


def test_markers_of_missing_values_can_be_set(tmp_path: Path) -> None:
    rows = [f"{'-' if i % 5 == 0 else i},{i % 2}" for i in range(20)]
    assert Table(path=write(tmp_path, rows, "a,y"), label="y", missing=("-",)).load().task.shape == (2,)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"label": "il"}, "data.csv: column 'il' is not there; did you mean 'ill'"),
    ({"label": "zzz"}, "column 'zzz' is not there; there are: age, income, colour, hospital, ill"),
    ({"label": "ill", "columns": ("hospitals",)}, "column 'hospitals' is not there; did you mean 'hospital'"),
    ({"label": "ill", "drop": ("ages",)}, "column 'ages' is not there; did you mean 'age'"),
    ({"label": "ill", "numeric": ("ages",)}, "column 'ages' is not there; did you mean 'age'"),
    ({"label": "ill", "numeric": ("colour",)}, "column 'colour' is not of numbers"),
    ({"label": "ill", "numeric": ("ill",)}, "column 'ill' is named twice"),
    ({"label": "ill", "features": ()}, "there are no feature columns"),
    ({"label": "income"}, "column 'income' lacks 4 values"),
    ({"label": "ill", "columns": ("income",)}, "column 'income' lacks 4 values"),
    ({"label": "age"}, "class '0' has 1 examples: too few"),
    ({"label": "ill", "classes": ("a",)}, "classes names 1 classes and the labels have 2"),
    ({"label": "ill", "names": ("a",)}, "not a readable table"),
]


@pytest.mark.parametrize(("set_to", "says"), WRONG)
def test_refused(tmp_path: Path, set_to: dict[str, Any], says: str) -> None:
    with pytest.raises(GenfedError, match=says) as error:
        Table(path=write(tmp_path), **set_to).load()
    assert "\n" not in str(error.value)


def test_files_that_are_not_tables_are_refused(tmp_path: Path) -> None:
    for name, content, says in [
        ("a.xls", b"", "unknown file type '.xls'; .csv, "),
        ("a.csv", b"", "not a readable table"),
        ("a.csv", b"a,b\n", "there are no rows"),
        ("a.csv", b"a,b\n1,2\n1\n", "not a readable table"),
        ("a.csv", b"a,a,y\n1,2,3\n", "column 'a' appears twice"),
        ("a.parquet", b"text", "not a readable table"),
        ("a.csv", b"a,y\n" + b"inf,0\n1,1\n" * 9, "column 'a' holds infinite values"),
        ("a.csv", b"a,y\n" + b"1,0.5\n2,1\n" * 9, "labels of train are of type float64 or not whole"),
        (
            "a.csv",
            b"a,y\n" + b"".join(b"v%d,%d\n" % (i % 1900, i % 2) for i in range(2000)),
            "has 1... categories; 1000",
        ),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GenfedError, match=says):
            Table(path=str(tmp_path / name), label="y").load()
    with pytest.raises(GenfedError, match="no such file"):
        Table(path=str(tmp_path / "none.csv"), label="y").load()


def test_a_test_file_must_fit(tmp_path: Path) -> None:
    path = write(tmp_path)
    short = write(tmp_path, ["1,no"], "age,ill", "short.csv")
    with pytest.raises(GenfedError, match=r"short.csv: column 'income' is not there"):
        Table(path=path, label="ill", test_path=short).load()
    other = write(tmp_path, [row.replace("no", "no.") for row in ROWS], name="other.csv")
    with pytest.raises(GenfedError, match=r"class 'no\.' is in the test part and not in train"):
        Table(path=path, label="ill", test_path=other).load()


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(GenfedError, match=r"needs the extra \"tables\": pip install 'genfed\[tables\]'"):
        Table(path=path, label="ill").load()


@pytest.mark.parametrize("texts", [("01", "02", "07"), ("1", "2", "7"), ("+1", "2", "7"), ("1.5", "2", "7")])
def test_new_rows_of_text_have_the_categories_of_a_file_of_types(texts: tuple[str, ...], tmp_path: Path) -> None:
    """Texts of digits, in Parquet, are no numbers; in a text file they look like some."""
    values = [texts[i % 3] for i in range(90)]
    parquet.write_table(pyarrow.table({"ward": values, "ill": [i % 2 for i in range(90)]}), tmp_path / "d.parquet")
    source = Table(path=str(tmp_path / "d.parquet"), label="ill")
    data = source.load()
    (tmp_path / "new.csv").write_text("\n".join(["ward", *texts]))
    (found,) = source.read(str(tmp_path / "new.csv"), data.task, data.encoder)
    assert isinstance(data.encoder, TableSchema)
    assert data.encoder.categories["ward"] == tuple(sorted(texts))
    assert found.x.argmax(1).tolist() == [sorted(texts).index(text) for text in texts]
    assert found.x.sum(1).tolist() == [1, 1, 1]


def test_an_encoder_is_the_same_after_a_file(tmp_path: Path) -> None:
    data = Table(path=write(tmp_path), label="ill").load()
    assert isinstance(data.encoder, TableSchema)
    write_encoder(data.encoder, tmp_path / "encoder.json")
    assert read_encoder(tmp_path / "encoder.json") == data.encoder
    assert list(data.encoder.numbers) == ["age", "income"]
    assert data.encoder.categories == {"colour": ("blue", "red"), "hospital": ("A", "B")}


def test_scaling_is_that_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 2, (99, 4))
    columns = {f"c{i}": number_cells(values[:, i]) for i in range(4)}
    numbers = {name: (cells, PLAIN) for name, cells in columns.items()}
    standard = StandardScaler().fit_transform(values).astype(np.float32)
    assert (fit_schema(numbers, {}, "standard", "here").encode(columns, "here").x.numpy() == standard).all()
    in_range = MinMaxScaler((-1, 1)).fit_transform(values)
    assert np.allclose(fit_schema(numbers, {}, "range", "here").encode(columns, "here").x.numpy(), in_range, atol=1e-7)


def test_where_a_column_of_categories_is() -> None:
    encoder = TableSchema(
        {"age": NumberScaling(0, 0, 1), "size": NumberScaling(0, 0, 1)}, {"blood": ("a", "b", "o"), "side": ("x",)}
    )
    assert encoder.places == {"blood": (2, 3, 4), "side": (5,)}


def test_a_named_column_decides_for_itself_alone(tmp_path: Path) -> None:
    rows = [f"{i},{i % 4},{'<0.5' if i % 6 == 0 else i / 7},{'yn'[i % 3 == 0]},{i % 2}" for i in range(60)]
    path, every = write(tmp_path, rows, "age,grade,crp,smoker,y"), {"age", "grade", "crp", "smoker"}

    def found(**named: Any) -> tuple[set[str], set[str]]:
        schema = Table(path=path, label="y", **named).load().encoder
        assert isinstance(schema, TableSchema)
        return set(schema.numbers), set(schema.categories)

    assert found() == ({"age", "grade"}, {"crp", "smoker"})
    assert found(categorical=("grade",)) == ({"age"}, every - {"age"})
    assert found(numeric=("crp",)) == ({"age", "grade", "crp"}, {"smoker"})
    assert found(numeric=("crp",), categorical=("grade",)) == ({"age", "crp"}, {"grade", "smoker"})
    assert found(features=("smoker", "grade"), categorical=("grade",)) == (set(), {"smoker", "grade"})
    with pytest.raises(GenfedError, match=r"column 'crp' is named, but data\.features does not have it"):
        found(features=("age",), numeric=("crp",))
    with pytest.raises(GenfedError, match="column 'y' is named twice"):
        found(features=("age", "y"))


def test_words_for_missing_are_added_to_the_usual_ones(tmp_path: Path) -> None:
    rows = [f"{-999 if i % 9 == 0 else 100 + i / 7},{['NA', 'a', 'b'][i % 3]},{i % 2}" for i in range(60)]
    path = write(tmp_path, rows, "bp,land,y")

    def codes(**words: Any) -> tuple[str, ...]:
        data = Table(path=path, label="y", **words).load()
        assert isinstance(data.encoder, TableSchema)
        assert not any("stands far" in line for line in data.summary.warnings)
        return data.encoder.categories["land"]

    assert codes(missing=("-999",)) == ("(missing)", "a", "b")
    assert codes(missing=("-999",), not_missing=("NA",)) == ("NA", "a", "b")
