"""Columns of a table as they were read: numbers, or texts in one spelling whichever file they come from."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MISSING_WORDS = (
    "", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "-NaN", "null", "NULL", "None", "<NA>", "#NA", "#N/A",
    "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
)  # fmt: skip
"""Texts that pandas reads as missing, and the question mark."""
ReadAs = Literal["any", "text", "category"]
"""How a column is read: numbers where all values are; "text": what a text file holds stays as it is written;
"category": the numbers of a typed file become texts, too."""
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks of a duration in a second."""
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
CODE = re.compile(r"\d+[eE]\d+")
"""Digits, an E and digits, such as 36E3: a number, but programs write a point or a sign in it, so it may be a code."""
WIDEST_EXACT = 2**53
"""Size above which 64 bits do not hold every whole number."""
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")
_MIDNIGHT = re.compile(r"(\d{4}-\d{2}-\d{2})[ T]00:00(:00(\.0+)?)?")


@dataclass(frozen=True)
class Cells:
    """One column of n rows. A file of types gives numbers; every other value is a text: trimmed, in Unicode's form NFC,
    true and false in small letters, times as 08:00 or 08:00:05, a day as 2020-01-31.
    """

    numbers: NDArray[np.float64] | None
    """The numbers [n], NaN where one is missing. None: the column is of texts."""
    values: tuple[str, ...]
    """The distinct texts."""
    index: NDArray[np.int64]
    """The place of each row's text among the distinct ones, [n]; −1: missing."""
    missing: tuple[str, ...] = ()
    """Words that mean that there is no value, for texts that are read as numbers later: -999,00 is the word -999."""
    times: tuple[str, str] = ("", "")
    """A time without and one with seconds, as they are written; empty: there is none. 08:00 may be 08:00:00, or minutes
    beside 1:08:00."""
    rounded: str = ""
    """A whole number of a typed file that is above `WIDEST_EXACT`, as it is written; empty: there is none."""

    def __len__(self) -> int:
        return len(self.index)

    def select(self, rows: NDArray[np.int64]) -> "Cells":
        """Returns the chosen rows [m]; of the distinct texts, those that stand in them."""
        if self.numbers is not None:
            return replace(self, numbers=self.numbers[rows], index=self.index[rows])
        index = self.index[rows]
        there = np.unique(index[index >= 0])
        place = np.full(len(self.values) + 1, -1)
        place[there] = np.arange(len(there))
        return replace(self, values=tuple(self.values[i] for i in there), index=place[index])

    def as_texts(self) -> "Cells":
        """Returns the column as texts; numbers are spelled as short as they can be, 1.0 as 1."""
        if self.numbers is None:
            return self
        values, index = np.unique(self.numbers, return_inverse=True)
        texts = tuple(spell_number(float(value)) for value in values)
        return Cells(None, texts, np.where(np.isnan(self.numbers), -1, index))

    def counts(self) -> NDArray[np.int64]:
        """Returns how often each distinct text stands there, [len(values)]."""
        return np.bincount(self.index[self.index >= 0], minlength=len(self.values))

    @property
    def present(self) -> int:
        """Number of values that are not missing."""
        return int((self.index >= 0).sum() if self.numbers is None else (~np.isnan(self.numbers)).sum())


def number_cells(numbers: NDArray[np.float64]) -> Cells:
    """Returns a column of numbers [n]; NaN: missing."""
    return Cells(numbers, (), np.zeros(len(numbers), np.int64))


def empty_cells(rows: int, of_numbers: bool) -> Cells:
    """Returns a column in which every value is missing."""
    return number_cells(np.full(rows, np.nan)) if of_numbers else Cells(None, (), np.full(rows, -1, np.int64))


def text_cells(texts: Iterable[str | None], missing: Sequence[str] = MISSING_WORDS) -> Cells:
    """Returns a column of n texts. None, and a text that is one of `missing` or empty: missing."""
    words, gaps = {"", *missing}, missing_numbers(missing)
    places, distinct, index = dict[str | None, int](), dict[str, int](), []
    for text in texts:
        if (place := places.get(text)) is None:
            plain = None if text is None else _tidy(text)
            known = plain is None or plain in words or (_NUMBER.fullmatch(plain) and float(plain) in gaps)
            place = places[text] = -1 if known or plain is None else distinct.setdefault(_spell(plain), len(distinct))
        index.append(place)
    forms = {bool(time[3]): text for text in places if text and ":" in text and (time := _TIME.fullmatch(_tidy(text)))}
    return Cells(
        None,
        tuple(distinct),
        np.array(index, np.int64),
        tuple(missing),
        (forms.get(False, "").strip(), forms.get(True, "").strip()),
    )


def missing_numbers(missing: Iterable[str]) -> set[float]:
    """Returns the numbers among words that mean that there is no value: of -999 and NA, −999."""
    return {float(word) for word in missing if _NUMBER.fullmatch(word)}


def arrow_cells(column: Any, missing: Sequence[str] = MISSING_WORDS, as_text: bool = False) -> Cells | None:
    """Returns a pyarrow column. None: it holds no numbers, truth values, times or texts, such as lists, or bytes that
    are no text in UTF-8.

    Args:
        column: The column, chunked.
        missing: Texts that mean that there is no value.
        as_text: Whether numbers become texts too, to the last digit.
    """
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_nested(kind) or isinstance(kind, pyarrow.BaseExtensionType):
        return None
    try:
        if types.is_duration(kind) or types.is_float16(kind):
            column, kind = _simplify(column), pyarrow.float64()
        if types.is_floating(kind):
            column = compute.if_else(compute.is_nan(column), None, column)
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
            # by its text: 0.1 of 32 bits is the number 0.1
            short = column if types.is_float64(kind) or types.is_integer(kind) else column.cast(pyarrow.string())
            return _text_column(column, missing) if as_text else _number_column(short, missing)
        if types.is_timestamp(kind) and kind.tz:
            column = column.cast(pyarrow.timestamp(kind.unit, "UTC"))
        cells = _text_column(column, missing)
        return None if _is_bytes(kind) and not all(map(_is_plain, cells.values)) else cells
    except pyarrow.ArrowException:
        return None


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_plain(text: str) -> bool:
    """Returns whether bytes that are UTF-8 were written as a text: numbers and keys hold control characters."""
    return all(c.isprintable() or c in "\t\r\n" for c in text)


def _simplify(column: Any) -> Any:
    """Returns a pyarrow column of durations in seconds, or of floats of 16 bits as they are written: 0.1 is 0.1."""
    import pyarrow
    from pyarrow import types

    if types.is_duration(column.type):
        ticks = column.cast(pyarrow.int64()).cast(pyarrow.float64(), safe=False)
        numbers = np.array(ticks.to_numpy(), np.float64) / _TICKS[column.type.unit]
    else:
        numbers = np.array(column.to_numpy(), np.float16).astype(np.str_).astype(np.float64)
    return pyarrow.chunked_array([pyarrow.array(numbers, from_pandas=True)])


def _text_column(column: Any, missing: Sequence[str]) -> Cells:
    import pyarrow

    encoded = column.cast(pyarrow.large_string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pyarrow.ChunkedArray):
        encoded = encoded.combine_chunks()
    distinct = text_cells(encoded.dictionary.to_pylist(), missing)
    index = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    return replace(distinct, index=np.append(distinct.index, -1)[index])


def _number_column(column: Any, missing: Sequence[str]) -> Cells:
    """Returns numbers, NaN where one is missing or is one of `missing`, however it is written: -999 is -999.00."""
    import pyarrow

    numbers = np.array(column.cast(pyarrow.float64(), safe=False).to_numpy(), np.float64)
    numbers[np.isin(numbers, list(missing_numbers(missing)))] = np.nan
    large = np.flatnonzero(np.abs(numbers) > WIDEST_EXACT)
    rounded = str(column[int(large[0])]) if len(large) and pyarrow.types.is_integer(column.type) else ""
    return replace(number_cells(numbers), rounded=rounded)


def written_numbers(column: Any, missing: Sequence[str]) -> Cells | None:
    """Returns a pyarrow column of texts as numbers, fast. None: a text is no plain number, or may be a code: it begins
    with a zero, is like 36E3, or has 16 digits or more.
    """
    import pyarrow
    from pyarrow import compute

    plain = compute.utf8_trim_whitespace(column)
    gone = compute.is_in(plain, pyarrow.array(["", *missing], plain.type))
    plain = compute.if_else(gone, None, plain)
    try:
        numbers = plain.cast(pyarrow.float64())
    except pyarrow.ArrowException:
        return None
    if compute.any(compute.match_substring_regex(plain, r"^[+-]?(0\d|\d{16})|^\d+[eE]\d+$")).as_py():
        return None
    return _number_column(numbers, missing)


def _tidy(text: str) -> str:
    """Returns the text trimmed, without quotation marks around it, in Unicode's form NFC."""
    plain = text.strip().strip("\ufeff\u200b")
    if len(plain) > 1 and plain[0] == plain[-1] == '"':
        plain = plain[1:-1].strip()
    return plain if plain.isascii() else unicodedata.normalize("NFC", plain)


def _spell(text: str) -> str:
    """Returns the one spelling of a truth value, a time of day or a day."""
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if time := _TIME.fullmatch(text):
        hours, minutes, seconds = time.groups()
        seconds = (seconds or "").rstrip("0").rstrip(".") if "." in (seconds or "") else seconds
        return f"{int(hours):02}:{minutes}" + (f":{seconds}" if (seconds or "00") != "00" else "")
    return day.group(1) if (day := _MIDNIGHT.fullmatch(text)) else text


def spell_number(value: float) -> str:
    """Returns the shortest text of a number; a whole one has no point."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)


def same_numbers(cells: Cells) -> bool:
    """Returns whether texts are compared as numbers, so that 1.0 is 1: all are plain numbers (1, not 01 or 36E3) that
    64 bits hold, if rounded, and no two of them would become one, but 1 and 1.0.
    """
    found = dict[str, str]()
    for text in cells.values:
        code = "E" in text and CODE.fullmatch(text)  # 1e3 is a number that somebody wrote
        if not _NUMBER.fullmatch(text) or code or not np.isfinite(float(text)):
            return False
        short = plain_number(text)
        if found.setdefault(short, text) != text and not {found[short], text} <= {short, f"{short}.0"}:
            return False
    return bool(cells.values)


def plain_number(text: str) -> str:
    """Returns the short spelling of a plain number, such as 1 for 1.0; another text as it is."""
    if _INTEGER.fullmatch(text) or not _NUMBER.fullmatch(text):
        return text
    return spell_number(float(text))


def label_values(cells: Sequence[Cells]) -> list[NDArray[Any]]:
    """Returns the texts of columns that hold one thing in several files, none missing: whole numbers [n] where all are
    plain numbers, else texts.
    """
    texts = [column.as_texts() for column in cells]
    every = Cells(None, tuple({text: None for column in texts for text in column.values}), np.zeros(0, np.int64))
    if not same_numbers(every):
        return [np.array(column.values, dtype=np.str_)[column.index] for column in texts]
    found = []
    for column in texts:
        short = [plain_number(text) for text in column.values]
        whole = all(_INTEGER.fullmatch(text) for text in short)
        values = np.array([int(text) if whole else float(text) for text in short], object if whole else np.float64)
        found.append(values[column.index])
    return found


def spell_names(cells: Mapping[str, Cells]) -> dict[str, list[str]]:
    """Returns the texts [n] of columns that name the same things in several files, such as patients, none missing.

    1.0 in one file is 1 in the others, also beside names that are no numbers. If one file tells 1.10 from 1.1, each
    name stays as it is written.
    """
    texts = {part: column.as_texts() for part, column in cells.items()}
    numbers = (tuple(text for text in column.values if _NUMBER.fullmatch(text)) for column in texts.values())
    alike = all(same_numbers(Cells(None, there, np.zeros(0, np.int64))) for there in numbers if there)
    found = {}
    for part, column in texts.items():
        names = [plain_number(text) for text in column.values] if alike else column.values
        found[part] = [names[i] for i in column.index.tolist()]
    return found
