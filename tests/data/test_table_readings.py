"""What people's tables have: read as it is meant where there is no doubt, else warned of with what mends it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from genfed.core.errors import GenfedError
from genfed.data.dataset import Dataset
from genfed.data.features import TableSchema
from genfed.data.table import Table

N = 120
RNG = np.random.default_rng(0)
NUMBERS: list[int] = RNG.permutation(np.arange(N) * 13 + 1007).tolist()
NOISE = [f"{v:.8f}" for v in RNG.normal(size=N)]


def load(folder: Path, table: Mapping[str, Sequence[object]], mark: str = ",", **set_to: Any) -> Dataset:
    """Loads a table with these columns, a column of noise and the label y, which is chance."""
    columns = {"noise": NOISE, **table, "y": ["no", "yes", "yes", "no"] * (N // 4)}
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    text = "\n".join(mark.join(f'"{c}"' if mark in str(c) else str(c) for c in line) for line in lines)
    (folder / "a.csv").write_text(text + "\n", "utf-8")
    return Table(path=str(folder / "a.csv"), label="y", **set_to).load()


def schema(data: Dataset) -> TableSchema:
    assert isinstance(data.encoder, TableSchema)
    return data.encoder


def plain(folder: Path) -> torch.Tensor:
    return load(folder, {"v": NUMBERS}).train.x


WRITTEN = [
    [f"{v:,}" for v in NUMBERS],
    [f"{v}".replace(".", ",") + ",0" for v in NUMBERS],
    [f"{v:,}.00" for v in NUMBERS],
    [f"{v:,}".replace(",", ".") + ",00" for v in NUMBERS],
    [f"{v:,}".replace(",", " ") for v in NUMBERS],
    [f"{v:,}".replace(",", "\u202f") for v in NUMBERS],
    [f"{v:,}".replace(",", "'") for v in NUMBERS],
    [f"${v}" for v in NUMBERS],
    [f"{v:,}.00 €" for v in NUMBERS],
    [f"CHF {v}" for v in NUMBERS],
    [f"{v}%" for v in NUMBERS],
    [f"{v} kg" for v in NUMBERS],
    [f"{v}°C" for v in NUMBERS],
    [f" {v} " for v in NUMBERS],
    [f"+{v}" for v in NUMBERS],
    [f"{v:.3e}" if v == round(v, -1) else f"{v}" for v in NUMBERS],
]


@pytest.mark.parametrize("texts", WRITTEN, ids=lambda texts: texts[0].strip())
def test_numbers_are_read_however_they_are_written(texts: list[str], tmp_path: Path) -> None:
    assert torch.equal(load(tmp_path, {"v": texts}).train.x, plain(tmp_path))


def test_marks_can_be_set(tmp_path: Path) -> None:
    ambiguous = [f"{v:,}" for v in NUMBERS]
    (line,) = load(
        tmp_path, {"v": ["12,345", *ambiguous[1:]], "noise": (RNG.permutation(N) * 7).tolist()}
    ).summary.warnings
    assert "column 'v': the comma in '" in line
    assert line.endswith("is taken as one of thousands; set data.thousands or data.decimal")
    thousands = load(tmp_path, {"v": ambiguous}, thousands=",")
    decimals = load(tmp_path, {"v": ambiguous}, decimal=",", scale="none", drop=("noise",))
    assert thousands.summary.warnings == decimals.summary.warnings == ()
    assert torch.equal(thousands.train.x, plain(tmp_path))
    assert float(decimals.train.x[:, -1].max()) < 10
    negative = load(tmp_path, {"v": [f"({v})" if i % 2 else f"−{v}" for i, v in enumerate(NUMBERS)]})
    assert torch.allclose(negative.train.x[:, -1], -plain(tmp_path)[:, -1])


def test_a_file_of_decimal_commas_has_points_between_thousands(tmp_path: Path) -> None:
    """A column that looks like 1.007 alone is 1007 where the other column shows what a comma means."""
    points = [f"{v * 1000:,}".replace(",", ".") for v in range(1, N + 1)]
    columns = {"v": points, "w": [f"{v},5" for v in NUMBERS]}
    data = load(tmp_path, columns, ";", scale="none", drop=("noise",))
    assert float(data.train.x[:, 0].max()) > 100000
    assert data.summary.warnings == ()


@pytest.mark.parametrize("word", ["None", "n/a", "NA", "#N/A", "<NA>", "null", "-nan", "", " ", "?"])
def test_words_of_pandas_for_a_missing_value(word: str, tmp_path: Path) -> None:
    data = load(tmp_path, {"v": [word, *NUMBERS[1:]]})
    assert list(schema(data).numbers) == ["noise", "v"]
    assert data.summary.warnings == ()


@pytest.mark.parametrize("word", ["-", "--", "N.A.", "n.a.", "unknown", "Unknown", "missing", "none", ".", "#DIV/0!"])
def test_other_words_among_numbers_are_missing_and_told(word: str, tmp_path: Path) -> None:
    data = load(tmp_path, {"v": [word] * 20 + [*NUMBERS[20:]]})
    assert list(schema(data).numbers) == ["noise", "v"]
    (line,) = data.summary.warnings
    assert line == f"column 'v': {word!r} among numbers is taken as missing"
    assert torch.equal(data.train.x, load(tmp_path, {"v": [""] * 20 + [*NUMBERS[20:]]}).train.x)


def test_a_few_strange_cells_do_not_make_codes(tmp_path: Path) -> None:
    data = load(tmp_path, {"v": [">90", "see note", ">90", *NUMBERS[3:]]})
    assert list(schema(data).numbers) == ["noise", "v"]
    assert any("values are no numbers ('>90', 'see note') and taken as missing" in w for w in data.summary.warnings)
    half = load(tmp_path, {"v": [v if i % 4 else f"w{i % 8}" for i, v in enumerate(NUMBERS)]})
    assert "v" in schema(half).categories
    assert any("texts ('w0', 'w4') among numbers, taken as categories" in line for line in half.summary.warnings)
    wards = load(tmp_path, {"v": ["ICU" if i % 20 == 0 else i % 3 + 1 for i in range(N)]})
    assert schema(wards).categories["v"] == ("1", "2", "3", "ICU")


WARNED: list[tuple[str, Sequence[object], str]] = [
    ("id", range(1, N + 1), "column 'id': it numbers the rows; name it in data.drop"),
    ("PassengerId", (RNG.permutation(N) + 1).tolist(), "column 'PassengerId': it numbers the rows"),
    ("when", range(1950, 1950 + N), "column 'when': it numbers the rows"),
    ("patient_id", (RNG.permutation(N) * 977).tolist(), "another number in every row (an id?); name it in data.drop"),
    ("name", [f"n{v}" for v in range(N)], "another text in every row (an id, a name), so it is not used"),
    ("ticket", [f"n{v % 100}" for v in range(N)], "more than half of the texts are distinct (ids, names?)"),
    ("patient", [f"p{v % 30}" for v in range(N)], "set data.group to keep them in one part"),
    ("subject_id", [v % 30 for v in range(N)], "set data.group to keep them in one part"),
    ("c", ["same"] * N, "column 'c': one value only, which tells nothing; name it in data.drop"),
    ("c", [5] * N, "column 'c': one value only"),
    ("c", [""] * N, "column 'c': no value in the training rows, so it is not used"),
    (
        "seen",
        [f"{v % 28 + 1}.{v % 12 + 1}.2020" for v in range(N)],
        "days taken as categories; write them as 2020-01-31",
    ),
    ("seen", [f"{v % 12 + 1}/{v % 28 + 1}/20" for v in range(N)], "days taken as categories"),
    ("pain", [v % 4 for v in range(N)], "few whole numbers; if they are codes, name it in data.categorical"),
    ("weight", [-999 if v % 9 == 0 else 50 + v % 31 for v in range(N)], "-999 stands far from the other numbers"),
    ("sex", ["Male", "male", "Female"] * (N // 3), "categories differ only in capitals or spaces"),
    ("sex", ["M", "W ", "M  x", "M x"] * (N // 4), "categories differ only in capitals or spaces"),
    ("level_0", range(N), "column 'level_0': it numbers the rows"),
    ("copy", ["A", "B", "B", "A"] * (N // 4), "each value has one class of its own; if it is made from the label"),
    ("copy", [0, 1, 1, 0] * (N // 4), "each value has one class of its own; if it is made from the label"),
]


@pytest.mark.parametrize(("name", "values", "says"), WARNED)
def test_suspicious_columns_are_warned_of(name: str, values: Sequence[object], says: str, tmp_path: Path) -> None:
    said = load(tmp_path, {name: values}).summary.warnings
    assert any(says in line for line in said), said
    assert all(line.isprintable() for line in said)
    assert load(tmp_path, {name: values}, drop=(name,)).summary.warnings == ()


def test_a_plain_table_is_not_warned_of(tmp_path: Path) -> None:
    columns: dict[str, Sequence[object]] = {
        "age": [20 + v % 60 for v in NUMBERS],
        "town": [["north", "south", "west"][v % 3] for v in NUMBERS],
        "smoker": [v % 2 == 0 for v in NUMBERS],
        "score": [f"{v / 7:.2f}" for v in NUMBERS],
    }
    summary = load(tmp_path, columns).summary
    assert summary.warnings == ()
    assert summary.facts[1].endswith(", age 20 to 78, score 143.86 to 364.86")
    assert summary.facts[2] == "categories: town 3 codes, smoker 2 codes"
    assert summary.facts[3] == "examples: train 84, validation 12 (split off), test 24 (split off)"
    assert summary.facts[4] == "classes (train/validation/test): no 42/6/12, yes 42/6/12"


@pytest.mark.parametrize("header", ["", "Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"])
@pytest.mark.parametrize(
    "index", [range(N), range(1, N + 1), RNG.permutation(5 * N)[:N].tolist(), [f"r{i}" for i in range(N)]]
)
def test_an_index_without_a_name_is_no_feature(header: str, index: Sequence[object], tmp_path: Path) -> None:
    data = load(tmp_path, {header: index, "v": NUMBERS})
    assert torch.equal(data.train.x, plain(tmp_path))
    assert any("columns not used: " in line for line in data.summary.facts)


def test_headers_and_rows_of_unequal_length(tmp_path: Path) -> None:
    """A comma at the end of the header, or of every row; a name less than columns, as R writes."""
    rows = [f"{v},{n},{'ab'[i // 2 % 2]}" for i, (v, n) in enumerate(zip(NUMBERS, NOISE, strict=True))]
    files = {
        "plain": ["v,noise,y", *rows],
        "header": ["v,noise,y,", *rows],
        "rows": ["v,noise,y", *(f"{row}," for row in rows)],
        "both": ["v,noise,y,,", *(f"{row},," for row in rows)],
        "r": ["v,noise,y", *(f'"{i}",{row}' for i, row in enumerate(rows))],
        "joined": ["v,noise,y", *rows[:50], "v,noise,y", *rows[50:]],
        "excel": ["sep=,", "v,noise,y", *rows],
        "blank": ["", "v,noise,y", "", *rows, "", ""],
        "spaces": [" v , noise,y ", *(row.replace(",", ", ") for row in rows)],
        "quotes": ['"v","noise", "y"', *(", ".join(f'"{cell}"' for cell in row.split(",")) for row in rows)],
    }
    found = {}
    for name, lines in files.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        found[name] = Table(path=str(tmp_path / f"{name}.csv"), label="y").load()
    for data in found.values():
        assert torch.equal(data.train.x, found["plain"].train.x)
        assert data.summary.warnings == ()


def test_ends_of_lines_marks_and_delimiters(tmp_path: Path) -> None:
    lines = [
        "v;w,noise,y",
        *(f"{v},{n},{'ab'[i // 2 % 2]}" for i, (v, n) in enumerate(zip(NUMBERS, NOISE, strict=True))),
    ]
    text = "\n".join(lines).replace("v;w", "v")
    expected = None
    for name, content in {
        "lf.csv": text.encode(),
        "crlf.csv": text.replace("\n", "\r\n").encode(),
        "cr.csv": text.replace("\n", "\r").encode(),
        "mark.csv": b"\xef\xbb\xbf" + text.encode(),
        "utf16.csv": text.encode("utf-16"),
        "big.csv": b"\xfe\xff" + text.encode("utf-16-be"),
        "semicolon.csv": text.replace(",", ";").encode(),
        "tab.txt": text.replace(",", "\t").encode(),
        "bar.data": text.replace(",", "|").encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        data = Table(path=str(tmp_path / name), label="y").load()
        expected = data.train.x if expected is None else expected
        assert torch.equal(data.train.x, expected), name
    assert any("utf-16" in fact for fact in _load_fact(tmp_path / "utf16.csv"))
    assert any("delimiter ';'" in fact for fact in _load_fact(tmp_path / "semicolon.csv"))


def _load_fact(path: Path) -> tuple[str, ...]:
    return Table(path=str(path), label="y").load().summary.facts


def test_other_encodings_are_named_and_can_be_set(tmp_path: Path) -> None:
    towns = ["Malmö", "Århus", "Łódź", "東京"]
    for encoding in ("latin-1", "cp1252", "iso8859-2", "shift_jis", "utf-16-le", "utf-8"):
        some = [town for town in towns if town.encode(encoding, "ignore").decode(encoding) == town]
        rows = [f"{some[i % len(some)]},{i * i},{'ab'[i // 4 % 2]}" for i in range(N)]
        (tmp_path / "a.csv").write_bytes("\n".join(["town,v,y", *rows]).encode(encoding))
        data = Table(path=str(tmp_path / "a.csv"), label="y", encoding=encoding).load()
        assert schema(data).categories["town"] == tuple(sorted(some))
        if encoding not in ("utf-8", "utf-16-le"):
            with pytest.raises(GenfedError, match=r'not UTF-8 text \(line \d+\); set encoding, such as .*"latin-1"'):
                Table(path=str(tmp_path / "a.csv"), label="y").load()
    for encoding, says in (("rubbish", "encoding 'rubbish' is unknown"), ("ascii", "it is not ascii text")):
        with pytest.raises(GenfedError, match=says):
            Table(path=str(tmp_path / "a.csv"), label="y", encoding=encoding).load()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04rest", "it is a zip or Excel file, not text"),
        (b"\x1f\x8brest", "it is a gzip file, not text"),
        ("a,y\n1,b\n".encode("utf-16-le"), 'holds NUL characters; if it is UTF-16, set encoding = "utf-16"'),
        (b'a,y\n1,b\n"2,b\n3,c\n', r'a quotation mark \("\) is opened and never closed'),
        (b"\n\n", "the file is empty"),
        (b"a,y\n1,b\n1,2,3,4\n", "Expected 2 columns, got 4"),
        (b"a\na\n", "column 'y' is not there; there are: a"),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(GenfedError, match=says) as error:
        Table(path=str(tmp_path / "a.csv"), label="y").load()
    assert "\n" not in str(error.value)


def test_quoted_cells_keep_what_stands_in_them(tmp_path: Path) -> None:
    rows = [f'"a, ""b""\nc",{i * i},{"xy"[i // 2 % 2]}' if i % 2 else f'12" pipe,{i * i},x' for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["v,w,y", *rows]))
    assert schema(Table(path=str(tmp_path / "a.csv"), label="y").load()).categories["v"] == ('12" pipe', 'a, "b"\nc')


def test_many_classes_with_spaces_and_umlauts(tmp_path: Path) -> None:
    names = [f"Größe {i}" for i in range(120)]
    lines = [f"{i},{names[i % 120]}" for i in range(600)]
    (tmp_path / "a.csv").write_text("\n".join(["v,y", *lines]), "utf-8")
    data = Table(path=str(tmp_path / "a.csv"), label="y").load()
    assert data.task.classes == tuple(sorted(names))
    assert "… and 112 more" in data.summary.facts[-1]


@pytest.mark.parametrize(("labels", "classes"), [((0, 1), ("0", "1")), ((1, 7), ("1", "7")), ((-1, 1), ("-1", "1")),
    (("1.0", "2.0"), ("1", "2")), (("True", "False"), ("false", "true")), ((2, 10), ("2", "10")),
    ((2**63 + 5, 2**63 + 9), (str(2**63 + 5), str(2**63 + 9)))])  # fmt: skip
def test_labels_are_read_as_they_are_meant(labels: tuple[Any, Any], classes: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("v,y\n" + "".join(f"{i * i},{labels[i % 2]}\n" for i in range(40)))
    assert Table(path=str(tmp_path / "a.csv"), label="y").load().task.classes == classes
    values = [label if isinstance(label, int) else {"True": True, "False": False}.get(label, label) for label in labels]
    values = [float(value) if isinstance(value, str) else value for value in values]
    table = pyarrow.table({"v": [i * i for i in range(40)], "y": np.array([values[i % 2] for i in range(40)])})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert Table(path=str(tmp_path / "a.parquet"), label="y").load().task.classes == classes


def test_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    who = [f"p{i // 4}" for i in range(N)]
    data = load(tmp_path, {"patient": who, "v": NUMBERS}, group="patient")
    parts = [set(natural["patient"]) for natural in (data.columns, data.validation_columns, data.test_columns)]
    assert sum(map(len, parts)) == len(set(who))
    assert data.task.shape == (2,)


ROWS = st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=3), max_size=30)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([",", ";", "\t"]), st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.binary(max_size=6))
@example([["a", "y"], ["1", "\ud800"]], ",", "utf-8", b"")
def test_no_file_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], mark: str, encoding: str, tail: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    text = "\n".join(["v" + mark + "y", *(mark.join(row) for row in rows)])
    (folder / "a.csv").write_bytes(text.encode(encoding, "replace") + tail)
    source = Table(path=str(folder / "a.csv"), label="y", validation=0.1, test=0.1)
    try:
        data = source.load()
    except GenfedError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert all(line.isprintable() for line in (*data.summary.facts, *data.summary.warnings))
    (found,) = source.read(str(folder / "a.csv"), data.task, data.encoder)
    assert torch.isfinite(found.x).all()


@pytest.mark.parametrize(("delimiter", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ",")])
def test_an_index_without_a_name_is_no_feature_however_a_file_is_written(
    delimiter: str, decimal: str, tmp_path: Path
) -> None:
    rows = [[str(i), f"{i * 7 % 13 + 0.25:.2f}".replace(".", decimal), "ab"[i % 2]] for i in range(60)]
    lines = [["", "size", "label"], *rows]
    (tmp_path / "a.csv").write_text("\n".join(map(delimiter.join, lines)) + "\n")
    dataset = Table(path=str(tmp_path / "a.csv"), label="label", delimiter=delimiter).load()
    assert dataset.task.shape == (1,)
    assert any("Unnamed: 0 (numbers the rows)" in fact for fact in dataset.summary.facts)
