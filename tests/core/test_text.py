"""Text of other parties on one line, in logs, in cells and in the names of files."""

import csv
import io
import logging
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genfed.core.text import LINE, LogFormatter, csv_cell, escape_controls, file_name, indent_lines, one_line

HOSTILE = "a\x1b[2K\x1b[1A\nWARNING forged\r\x9b2K\u202e\u2028\x00\x7f\udcff\ufeff"


@given(st.text())
@example(HOSTILE)
def test_a_line_holds_nothing_that_a_terminal_or_a_log_acts_on(text: str) -> None:
    line = one_line(text, 50)
    assert len(line) <= 50
    assert len(line.splitlines()) <= 1
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\ufeff"]
    line.encode()


@pytest.mark.parametrize("text", ["café", "naïve – “x”", "日本語", "می\u200cخواهم", "a\u00a0b", "x" * 400])
def test_a_text_that_can_be_shown_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text
    assert escape_controls(text) == text


def test_what_is_cut_off_is_shown() -> None:
    assert one_line("x" * (LINE + 1)) == "x" * (LINE - 1) + "…"
    assert one_line("\n" * 10**7, 10) == "\\n\\n\\n\\n\\…"


def test_no_text_in_an_entry_of_a_log_passes_for_an_entry() -> None:
    record = logging.LogRecord("genfed", logging.WARNING, "", 0, "client %d failed\n%s", (3, HOSTILE), None)
    first, *rest = LogFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert first == "WARNING client 3 failed"
    assert len(rest) > 1
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in "".join(rest)


def test_the_end_of_a_long_block_is_kept() -> None:
    block = indent_lines("line\n" * 10**6 + "ValueError: the end")
    assert len(block) < 60_000
    assert block.endswith("    ValueError: the end")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd|'/C calc'!A0", "'=cmd|'/C calc'!A0"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("@x", "'@x"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        (' "=1', "' \"=1"),
        ("a;=WEBSERVICE(A1)", "a;'=WEBSERVICE(A1)"),
        ("a;b; @x|-y", "a;b;' @x|'-y"),
        ("a;-1", "a;'-1"),
        ("a\t=1+1\n=2", "a\\t=1+1\\n=2"),
        ("p_\x1b[2J", "p_\\x1b[2J"),
        ("a-b = c", "a-b = c"),
        ("caf\udce9.png", "caf\udce9.png"),
        ("\ud800", "\\ud800"),
        ("＝1+1", "'＝1+1"),
        ("-", "'-"),
        ("-1", "-1"),
        ("+1.5e-3", "+1.5e-3"),
        ("-.5", "-.5"),
        ("cat", "cat"),
        ("", ""),
        (-3, -3),
        (0.5, 0.5),
    ],
)
def test_no_cell_is_a_formula_and_numbers_stay_numbers(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


@given(st.lists(st.text(alphabet="=+-@;,|\t\n\r \"'a1＝\x1b"), min_size=1, max_size=4), st.sampled_from(",;\t|"))
def test_no_separator_makes_a_formula(cells: list[str], separator: str) -> None:
    """Each cell of a file with commas, as a spreadsheet reads it that takes another character for the separator."""
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerow(["0", *(csv_cell(cell) for cell in cells)])
    for row in csv.reader(io.StringIO(written.getvalue(), newline=""), delimiter=separator):
        for cell in row:
            start = cell.lstrip(' "')[:1]
            assert start not in tuple("=+-@＝\t\r\x1b") or re.fullmatch(r"[+-]?\d+", cell), row


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat", "cat"),
        ("a/b", "a_b"),
        ("../x", "d"),
        ("..", "d"),
        (".", "d"),
        ("", "d"),
        ("CON", "d"),
        ("nul.txt", "d"),
        ("console", "console"),
        ("a\\b:c*?", "a_b_c__"),
        ("a\n\x1bb", "a__b"),
        ("end. .", "end"),
        ("x" * 300, "x" * 80),
        ("日" * 100, "日" * 66),
    ],
)
def test_a_name_of_a_file_stays_in_its_folder(text: str, name: str) -> None:
    assert file_name(text, "d") == name


@given(st.text())
@example("." * 300)
@example("x/" * 200)
def test_every_text_becomes_a_name_that_can_be_made(text: str) -> None:
    name = file_name(text, "d")
    assert 0 < len(name.encode()) <= 200
    assert not set(name) & set("/\\\0")
    assert not name.startswith(".")
    assert file_name(name, "d") == name
