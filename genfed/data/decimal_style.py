"""Whether a text file writes decimals with a point or a comma: shown by one column, it holds for all."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genfed.data.cells import Cells
from genfed.data.numerals import SURE, find_notation
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
