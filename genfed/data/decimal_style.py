"""Whether a text file writes decimals with a point or a comma: shown by one column, it holds for all; and whether
another file writes them as the training rows do.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genfed.data.cells import Cells, spell_number
from genfed.data.numerals import SURE, Form, Notation, find_notation, read_numbers
from genfed.preprocessing.source_summary import show


def find_style(
    columns: Mapping[str, Cells | None], read_texts: Callable[[str], Cells | None], delimiter: str, typed: bool
) -> tuple[bool | None, dict[str, str]]:
    """Returns whether the file writes decimals with a comma, None: nothing shows it; and by column what is in doubt: a
    column of which each point stands before three digits, where no other column shows what it is.

    Args:
        columns: The columns of the training rows.
        read_texts: Reads a column of numbers as it is written.
        delimiter: The character between the columns.
        typed: Whether the file tells texts from numbers.
    """
    marks, unclear, texts = set[str](), list[str](), dict[str, Cells]()
    for name, column in columns.items():
        if column is not None and column.numbers is None:
            texts[name] = column
        elif column is not None and column.numbers is not None and _has_decimals(column.numbers):
            if typed or not _may_be_thousands(column.numbers):
                marks.add(".")
            else:
                unclear.append(name)
    if not marks:
        texts |= {name: column for name in unclear if (column := read_texts(name)) is not None}
    doubtful = dict[str, Sequence[str]]()
    for name, column in texts.items():
        finding = find_notation(column, None, None, None)
        if finding.share <= SURE or finding.notation.kind != "number":
            continue
        if finding.doubtful == ".":
            doubtful[name] = column.values
        elif not finding.doubtful:
            marked = bool(finding.notation.thousands) or finding.notation.decimal == ","
            marks |= {finding.notation.decimal} if marked or any("." in text for text in column.values) else set()
    return ("," in marks, {}) if marks else _guess(doubtful, delimiter)


def _guess(doubtful: Mapping[str, Sequence[str]], delimiter: str) -> tuple[bool | None, dict[str, str]]:
    """Returns the style of a file where nothing shows it, and what is in doubt; see `find_style`. Files of semicolons
    are those that write decimals with a comma; in them and in those of tabs a comma needs no quotation marks.
    """
    # 898 beside 1.277: a number of three decimals would be 898.000, or others would have fewer
    mixed = {name for name, texts in doubtful.items() if any("." not in text for text in texts)}
    european = delimiter in (";", "\t") if mixed else delimiter == ";" and not doubtful
    meaning, doubts = "thousands" if european else "decimals", {}
    for name, texts in doubtful.items():
        if delimiter == ";" or european or name in mixed:
            example = next(text for text in texts if "." in text)
            doubts[name] = (
                f"{{}}: the point in {show(example)!r} is taken as one of {meaning}; set data.thousands or data.decimal"
            )
    return european or (False if doubtful else None), doubts


def _has_decimals(values: NDArray[np.float64]) -> bool:
    return bool((np.floor(values) < values).any())


def _may_be_thousands(values: NDArray[np.float64]) -> bool:
    """Returns whether the decimals of numbers may be three digits each."""
    there = values[~np.isnan(values)]
    return bool((np.abs(there) < 1000).all() and np.allclose(there * 1000, np.round(there * 1000), rtol=0, atol=1e-6))


def note_form(cells: Cells, notation: Notation) -> Notation:
    """Returns the notation of a column of the training rows with the form of its numbers."""
    if notation.kind != "number":
        return notation
    return replace(notation, forms=(_find_marked(cells, read_numbers(cells, notation)[0], notation).form,))


def describe_marks(cells: Cells, values: NDArray[np.float64], notation: Notation, usual: float) -> str:
    """Returns what is said of a file's column of which the points or commas may mean something else than in training:
    4.826 beside whole numbers there is 4826 or 4.826. Empty: nothing.

    Args:
        cells: The column.
        values: Its numbers, as they are read [n].
        notation: How the training rows are written.
        usual: The median of their numbers.
    """
    if notation.kind != "number" or not notation.forms:
        return ""
    found = _find_marked(cells, values, notation)
    before = notation.forms[0]
    if found.form == before or found.form not in ("three decimals", "thousands"):
        return ""
    mark: str
    if found.form == "three decimals":
        read, other, mark = "decimals", "thousands", notation.decimal
        doubtful = before in ("whole", "thousands") or _is_nearer(found.size * 1000, found.size, usual)
    else:
        read, other, mark = "thousands", "decimals", notation.thousands
        doubtful = before != "whole" and _is_nearer(found.size / 1000, found.size, usual)
    if not doubtful:
        return ""
    name = "point" if mark == "." else "comma"
    return (
        f"the {name} in {show(found.example)!r} is taken as one of {read} ({spell_number(found.value)}), which the "
        f"numbers of training do not suggest; if it is one of {other}, write the numbers as there, or set "
        "data.thousands or data.decimal before training"
    )


@dataclass(frozen=True)
class _Marked:
    """The numbers of a column that have decimals, or else marks of thousands."""

    form: Form
    example: str = ""
    value: float = 0.0
    """What the example is read as."""
    size: float = 0.0
    """The median of their sizes."""


def _find_marked(cells: Cells, values: NDArray[np.float64], notation: Notation) -> _Marked:
    """Returns the form of numbers [n], of which those that are not finite do not count."""
    rows = np.flatnonzero(np.isfinite(values) & (np.floor(values) < values))
    if len(rows):
        three = rows[_find_third_decimals(values[rows])]
        return _mark("three decimals", cells, values, three) if 2 * len(three) > len(rows) else _Marked("decimals")
    if cells.numbers is not None or notation.thousands not in (".", ","):
        return _Marked("whole")
    mark = re.escape(notation.thousands)
    one = re.compile(rf"\D*[1-9]\d{{0,2}}{mark}\d{{3}}(?![\d.,]).*", re.S)
    marked = [bool(one.fullmatch(text)) for text in cells.values]
    if any(notation.thousands in text and not fits for text, fits in zip(cells.values, marked, strict=True)):
        return _Marked("whole")
    rows = np.flatnonzero(np.array([*marked, False])[cells.index] & np.isfinite(values))
    return _mark("thousands", cells, values, rows) if len(rows) else _Marked("whole")


def _mark(form: Form, cells: Cells, values: NDArray[np.float64], rows: NDArray[np.int64]) -> _Marked:
    first, size = rows[0], float(np.median(np.abs(values[rows])))
    value = float(values[first])
    return _Marked(
        form, cells.values[cells.index[first]] if cells.numbers is None else spell_number(value), value, size
    )


def _find_third_decimals(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which of the numbers [n] with decimals end with a third one; none does unless all may be thousands, as
    4.826 and 4.82 may, but not 0.826 and 4.8261.
    """
    hundreds = np.abs(values) * 100
    there = ~np.isclose(hundreds, np.round(hundreds), rtol=0, atol=1e-6)
    all_may = _may_be_thousands(values) and bool((np.abs(values) >= 1).all())
    return there if all_may else np.zeros(len(values), np.bool_)


def _is_nearer(one: float, other: float, to: float) -> bool:
    """Returns whether a size is nearer to that of a number than another is, by their ratios."""
    return to != 0 and abs(np.log(one / abs(to))) < abs(np.log(other / abs(to)))
