"""Files that cost a regular expression hours if its time grows with the square of a text; else a moment."""

from pathlib import Path

import pytest

from genfed.core.errors import GenfedError, RecordError
from genfed.core.json_text import read_json
from genfed.core.text import csv_cell
from genfed.data.cells import text_cells
from genfed.data.columns import _ID
from genfed.data.numerals import Notation, read_numbers
from genfed.data.text_file import read_text_file

LONG = 2_000_000
HEAD = "a,b,y\n" + "1,2,0\n" * 5


@pytest.mark.parametrize("gap", ["\n", "\r\n", " ", "\t"])
def test_blanks_before_a_quotation_mark(gap: str, tmp_path: Path) -> None:
    (file := tmp_path / "a.csv").write_text(HEAD + gap * LONG + '5" pipe,2,1\n', newline="")
    rows = read_text_file(file).table
    assert rows.num_rows == 6
    assert rows.column("a")[5].as_py().strip() == '5" pipe'


def test_spaces_between_spaces(tmp_path: Path) -> None:
    (file := tmp_path / "a.txt").write_text(HEAD.replace(",", " ") + " " * LONG + '5" pipe 2 1\n')
    with pytest.raises(GenfedError, match="Expected 3 columns"):
        read_text_file(file, delimiter=" ")


@pytest.mark.parametrize(
    ("before", "opened"),
    [
        ("", True),
        ("1,2,0\n", True),
        ("1,2,0\n\n  \n", True),
        ("1,", True),
        ("1,  ", True),
        ("5", False),
        ("1,5 ", False),
    ],
)
def test_a_quotation_mark_opens_a_value_at_its_begin(before: str, opened: bool, tmp_path: Path) -> None:
    (file := tmp_path / "a.csv").write_text(
        "a,b,y\n" + before + '"x' + ("" if opened else ",2,1" if before == "5" else ",1")
    )
    if opened:
        with pytest.raises(GenfedError, match="is opened and never closed"):
            read_text_file(file)
    else:
        assert read_text_file(file).table.num_rows == 1


@pytest.mark.parametrize("end", ["", "\\", '"'])
def test_a_string_of_json_that_never_ends(end: str) -> None:
    with pytest.raises(RecordError, match=r"not JSON|too deeply"):
        read_json('"' + "[" * 100 + '\\"' * LONG + end + ("]" if end == '"' else ""))


def test_long_numbers_and_names() -> None:
    assert csv_cell("+" + "1" * LONG + "x") == "'+" + "1" * LONG + "x"
    assert csv_cell("+1.") == "+1."
    assert csv_cell("-.5e3") == "-.5e3"
    assert _ID.fullmatch("id_" * LONG + "\n")
    texts = ["1" + ".123.23" * LONG + "x", "1 " * LONG + "x1", "1" + " " * LONG + "x1", "a" * LONG + "-"]
    _, strange = read_numbers(text_cells(texts), Notation("number", ",", "."))
    assert len(strange) == len(texts)
