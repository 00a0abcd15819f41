"""Text files of rows and columns (CSV), read as texts whatever stands in them."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genfed.core.errors import GenfedError, first_line
from genfed.preprocessing.checks import require_distinct
from genfed.preprocessing.source_summary import count_of, list_some, show

_DELIMITERS = (";", "\t", "|")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_OTHERS = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
}
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")
_HEAD = 2**20
"""Characters in which the names of the columns and the first row are looked for."""


@dataclass(frozen=True)
class TextRows:
    """A text file as it was read."""

    table: Any
    """A pyarrow table of texts, untrimmed."""
    delimiter: str
    notes: tuple[str, ...]
    """What is not as usual: the encoding or the delimiter."""
    doubts: tuple[str, ...] = ()
    """What looks wrong in the rows."""


def read_text_file(
    file: Path, encoding: str | None = None, delimiter: str | None = None, names: Sequence[str] | None = None
) -> TextRows:
    """Reads a text file of rows and columns.

    Args:
        file: The file.
        encoding: Its encoding; None: UTF-8, or what a byte-order mark says.
        delimiter: The character between columns; None: a tab in .tsv, else a comma, or what stands in the first line
            where no comma does.
        names: The columns of a file without a header; None: its first line names them.

    Raises:
        GenfedError: the file is of another kind or encoding, or its rows differ in length.
    """
    text, notes = _decode(file, encoding)
    if said := re.match(r"sep=(.)\r?\n", text, re.I):  # Excel's
        delimiter, text = delimiter or said[1], text[said.end() :]
    if delimiter is None:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else _find_delimiter(text)
        if delimiter != "," and file.suffix.lower() != ".tsv":
            notes.append(f"delimiter {delimiter!r}")
    columns, rest = (names, text) if names is not None else _take_header(text, delimiter)
    if rest.count('"') % 2 and _opens_a_value(rest, rest.rindex('"'), delimiter):
        raise GenfedError('a quotation mark (") is opened and never closed')
    if names is None and len(set(columns)) < len(columns) and any(_doubt_header(columns)):
        raise GenfedError("the first line is no header: a number stands twice in it; name the columns in data.names")
    table = _parse(rest, columns, delimiter)
    if names is None and table.num_rows and table.num_columns > 1:
        table = _drop_headers(table, notes)
    doubts = [*_find_swallowed_rows(table, rest, delimiter), *(_doubt_header(columns) if names is None else ())]
    return TextRows(table, delimiter, tuple(notes), tuple(doubts))


def _doubt_header(names: Sequence[str]) -> Iterator[str]:
    """Yields a line if the names of the columns are numbers, but not those that count them: they may be a row."""
    counted = [[str(i) for i in range(start, start + len(names))] for start in (0, 1)]
    if all(_NUMBER.fullmatch(name) for name in names) and list(names) not in counted:
        yield (
            f"the first line ({list_some(map(show, names), 3)}) is taken as the names of the columns; if it is a row, "
            "name them in data.names"
        )


def _find_swallowed_rows(table: Any, text: str, delimiter: str) -> Iterator[str]:
    """Yields a line if values seem to hold rows: two quotation marks that open a value and belong to none, such as
    those of inches, make one value of all that is between them.
    """
    from pyarrow import compute

    width = table.num_columns
    if width < 2 or '"' not in text or text.count("\n") + text.count("\r") <= table.num_rows:
        return
    examples, swallowed = list[str](), 0
    for place, column in enumerate(table.columns):
        for value in column.filter(compute.match_substring_regex(column, r"[\r\n]")).to_pylist():
            if _holds_rows(value, place, width, delimiter):
                examples.append(value)
                swallowed += len(value.splitlines()) - 1
    if examples:
        some = count_of(len(examples), "value holds", "values hold")
        yield (
            f"{some} what looks like the ends of {count_of(swallowed, 'row')}, as {show(examples[0], 40)!r}: a "
            'quotation mark (") that is none? Double it within quotation marks ("5"" pipe"), or leave it out'
        )


def _holds_rows(value: str, place: int, width: int, delimiter: str) -> bool:
    """Returns whether the lines of a value have the delimiters that rows have, if it begins in the column `place`."""
    first, *between, last = value.splitlines() + [""] * value.endswith(("\n", "\r"))
    if delimiter == "," and value.count(", ") == value.count(","):
        return False  # prose
    return (
        first.count(delimiter) == width - 1 - place
        and last.count(delimiter) == place
        and all(line.count(delimiter) == width - 1 for line in between if line.strip())
    )


def _opens_a_value(text: str, place: int, delimiter: str) -> bool:
    """Returns whether the quotation mark at a place is the first character of a value."""
    before = text[:place]
    bare = before.rstrip()
    return not bare or bare.endswith(delimiter) or any(mark in before[len(bare) :] for mark in (delimiter, "\n", "\r"))


def _decode(file: Path, encoding: str | None) -> tuple[str, list[str]]:
    content = file.read_bytes()
    for start, kind in _OTHERS.items():
        if content.startswith(start):
            raise GenfedError(f"it is {kind}, not text")
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or marked or "utf-8")
    except LookupError:
        raise GenfedError(f"encoding {encoding!r} is unknown; utf-8, latin-1, cp1252 and utf-16 are some") from None
    except UnicodeError as error:
        at = f" (line {content[: error.start].count(10) + 1})" if isinstance(error, UnicodeDecodeError) else ""
        kind = "UTF-8" if encoding is None else encoding
        raise GenfedError(
            f'it is not {kind} text{at}; set encoding, such as encoding = "latin-1" or "cp1252"'
        ) from None
    if "\0" in text:
        raise GenfedError('it holds NUL characters; if it is UTF-16, set encoding = "utf-16"')
    if any("\ud800" <= c <= "\udfff" for c in text[:_HEAD]):
        raise GenfedError(f"it is not {encoding} text")
    return text.removeprefix("\ufeff"), [marked] if marked == "utf-16" else []


def _find_delimiter(text: str) -> str:
    first = next((line for line in io.StringIO(text[:_HEAD]) if line.strip()), "")
    plain = re.sub(r'"[^"]*"', "", first)
    return "," if "," in plain else next((mark for mark in _DELIMITERS if mark in plain), ",")


def _take_header(text: str, delimiter: str) -> tuple[list[str], str]:
    """Returns the names of the columns, as many as the first row has values, and the text after them."""
    source = io.StringIO(text, newline="")
    rows = csv.reader(iter(source.readline, ""), delimiter=delimiter, skipinitialspace=True)
    try:
        names = next((row for row in rows if row), [])
        rest = text[source.tell() :]
        first = next((row for row in rows if row), names)
    except csv.Error as error:
        raise GenfedError(f"its first lines cannot be read ({first_line(error)})") from None
    if not names:
        raise GenfedError("the file is empty")
    names = [" ".join(name.split()) if name.strip() else "" for name in names]
    if len(names) == len(first) + 1 and not names[-1]:
        names.pop()
    elif len(names) + 1 == len(first):  # R writes no name over the names of rows; others end every row with a comma
        names = [*names, ""] if not first[-1].strip() else ["", *names]
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)], rest


def _parse(rest: str, names: Sequence[str], delimiter: str) -> Any:
    import pyarrow
    from pyarrow import csv as arrow

    require_distinct(names)
    if not rest.strip():
        return pyarrow.table({name: pyarrow.array([], pyarrow.large_string()) for name in names})
    places = [str(i) for i in range(len(names))]

    def parse(content: bytes) -> Any:
        return arrow.read_csv(
            pyarrow.BufferReader(content),
            # a row is within one block; texts need no other rows to be typed
            arrow.ReadOptions(column_names=places, block_size=min(max(len(content) + 1, 2**16), 2**31 - 1)),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow.ConvertOptions(column_types=dict.fromkeys(places, pyarrow.large_string()), strings_can_be_null=False),
        )

    try:
        try:
            table = parse(rest.encode("utf-8"))
        except pyarrow.ArrowException:
            if delimiter == " ":
                raise
            trimmed = re.sub(rf'(^|{re.escape(delimiter)})[ ]+"', r'\1"', rest, flags=re.M)  # 1, "a,b"
            if trimmed == rest:
                raise
            table = parse(trimmed.encode("utf-8"))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise GenfedError(show(first_line(error), 200)) from None
    return table.rename_columns(list(names))


def _drop_headers(table: Any, notes: list[str]) -> Any:
    """Drops rows that repeat the header, as they stand in files that were put together from several."""
    from pyarrow import compute

    names = table.column_names
    again = None
    for name in names:
        same = compute.equal(compute.utf8_trim_whitespace(table.column(name)), name)
        again = same if again is None else compute.and_(again, same)
        if not compute.any(again).as_py():
            return table
    notes.append(f"{compute.sum(again).as_py():,} repeated headers left out")
    return table.filter(compute.invert(again))
