"""Which columns of a table are features, and what looks wrong in them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.data.cells import CODE, WIDEST_EXACT, Cells, ReadAs
from genfed.data.column_summary import CategorySummary
from genfed.data.decimal_style import find_style, note_form
from genfed.data.features import Scale, TableSchema, TableSummary, build_schema, summarize_table
from genfed.data.numerals import (
    MEND,
    NO_VALUE,
    SURE,
    Finding,
    Mark,
    Notation,
    find_duration,
    find_notation,
    give_notation,
    list_units,
    looks_like_a_day,
    read_numbers,
    spell_value,
)
from genfed.data.sentinels import find_sentinels
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show

Read = Callable[[str, ReadAs], Cells | None]
"""Returns a column of the training rows by its name. None: it has no values that can be used."""
_MANY = 20
"""Distinct numbers above which a column with a few other texts is one of numbers."""
_FEW = (3, 10)
"""Distinct whole numbers that may be codes."""
_SECONDS = "write durations as numbers of seconds"
_ENOUGH = 10
"""Rows from which a column can be seen to name them."""
UNNAMED = re.compile(r"Unnamed: [\d.]+|__index_level_\d+__")
"""Name of a column that a text file or a data frame does not name."""
_ID = re.compile(
    r"(.*[_\W])?(id|ids|idx|index|key|uuid|guid|nr|no|number|rowid|row|level)(_.*)?|.*[a-z]I[dD]", re.I | re.S
)
_GROUP = re.compile(r"patient|subject|person|participant|individual|user|customer|writer|speaker|animal|specimen", re.I)


@dataclass(frozen=True)
class Choice:
    """What the settings say of a table's columns."""

    names: tuple[str, ...]
    """The columns that may be features, in this order."""
    numeric: tuple[str, ...] = ()
    """Those that are numbers, whatever they look like."""
    categorical: tuple[str, ...] = ()
    """Those that are categories, whatever they look like."""
    decimal: Mark | None = None
    thousands: str | None = None
    units: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The factor of each unit, by column."""
    delimiter: str = ","
    """Character between the columns."""
    typed: bool = False
    """Whether the file tells texts from numbers."""


@dataclass
class _Columns:
    """The columns as they are chosen one by one, and what is said of them."""

    numbers: dict[str, tuple[Cells, Notation]]
    categories: dict[str, Cells]
    dropped: list[str]
    unused: list[str]
    warnings: dict[str, list[str]]
    """Columns with something wrong, by the words that say it and how it is mended; {} stands for the columns."""

    def warn(self, words: str, column: str) -> None:
        self.warnings.setdefault(words, []).append(column)


def choose_columns(
    choice: Choice, read: Read, labels: NDArray[np.int64], scale: Scale, where: str
) -> tuple[TableSchema, SourceSummary]:
    """Chooses the features by the training rows. Returns the schema and what is to be said of the columns.

    Args:
        choice: The settings.
        read: Reads a column of the training rows.
        labels: The labels of the training rows [n].
        scale: The scaling of numbers, see `fit_schema`.
        where: The file, for messages.

    Raises:
        GenfedError: a named column cannot be used as it is named, or no column is left.
    """
    found = _choose(choice, read, where)
    summary = summarize_table(found.numbers, found.categories, where)
    schema = build_schema(summary, scale, where)
    _look_closer(found, summary, labels)
    return schema, _describe(found, summary)


def summarize_columns(
    choice: Choice, read: Read, labels: NDArray[np.int64], where: str, least: int
) -> tuple[TableSummary, SourceSummary]:
    """Chooses the features of a site by its training rows. Returns what the site says of them to agree on a schema with
    others, and what is to be said of the columns to its own people.

    Args:
        choice: The settings.
        read: Reads a column of the training rows.
        labels: The labels of the training rows [n].
        where: The file, for messages.
        least: Least number of rows of what is said to others, see `summarize_table`.

    Raises:
        GenfedError: see `choose_columns`.
    """
    found = _choose(choice, read, where)
    summary = summarize_table(found.numbers, found.categories, where, least)
    _look_closer(found, summary, labels)
    return summary, _describe(found, summary)


def _choose(choice: Choice, read: Read, where: str) -> _Columns:
    """Chooses the features.

    Raises:
        GenfedError: a named column cannot be used as it is named.
    """
    found = _Columns({}, {}, [], [], {})
    numeric, categorical = {*choice.numeric, *choice.units}, set(choice.categorical)
    cells = {name: read(name, "category" if name in categorical else "any") for name in choice.names}
    european = _find_style(choice, cells, read, found)
    if european:  # what looks like a decimal point may be one between thousands
        cells |= {name: read(name, "text") for name, column in cells.items() if column and column.numbers is not None}
    for name, column in cells.items():
        if name in numeric:
            found.numbers[name] = _take_as_numbers(name, column, choice, european, where)
        elif name in categorical:
            if column is None:
                raise GenfedError(f"{where}: column {name!r} is not of categories")
            found.categories[name] = column
        else:
            _take(name, column, choice, european, found)
    if choice.decimal is None and choice.thousands is None:
        found.numbers = {name: (column, note_form(column, about)) for name, (column, about) in found.numbers.items()}
    return found


def _find_style(choice: Choice, cells: Mapping[str, Cells | None], read: Read, found: _Columns) -> bool | None:
    """Returns whether the file writes decimals with a comma. None: nothing shows it. Warns of what is in doubt."""
    if choice.decimal is not None or choice.thousands is not None:
        return choice.decimal == "," or (choice.decimal is None and choice.thousands == ".")
    european, doubts = find_style(cells, lambda name: read(name, "text"), choice.delimiter, choice.typed)
    for name, words in doubts.items():
        if name in choice.numeric or (not choice.typed and name not in choice.categorical):
            found.warn(words, name)
    return european


def _take_as_numbers(
    name: str, column: Cells | None, choice: Choice, european: bool | None, where: str
) -> tuple[Cells, Notation]:
    """Returns a column that the settings name as numbers.

    Raises:
        GenfedError: most of its values are no numbers.
    """
    if column is None:
        raise GenfedError(f"{where}: column {name!r} is not of numbers")
    units = choice.units.get(name)
    if column.numbers is not None or not column.present:
        plain = give_notation(choice.decimal, choice.thousands)
        return column, plain if units is None else replace(plain, units=dict(units), given=True)
    finding = find_notation(column, choice.decimal, choice.thousands, european, units)
    if text := find_duration(column, finding):
        raise GenfedError(f"{where}: column {name!r}: {text!r} is no time of day; {_SECONDS}")
    if finding.others > 1 - SURE:
        raise GenfedError(f"{where}: column {name!r}: several units: {list_units(column, finding.notation)}; {MEND}")
    if finding.share < 0.5:
        strange = read_numbers(column, finding.notation)[1]
        words = list_some((repr(show(text)) for text in sorted(strange)), 3)
        raise GenfedError(f"{where}: column {name!r} is not of numbers ({words})")
    return column, finding.notation


def _take(name: str, column: Cells | None, choice: Choice, european: bool | None, found: _Columns) -> None:
    """Decides what a column is that the settings do not name."""
    if column is None:
        found.unused.append(name)
    elif not column.present:
        found.dropped.append(f"{show(name)} (empty)")
        if not UNNAMED.fullmatch(name):
            found.warn("{}: no value in the training rows, so it is not used", name)
    elif column.numbers is not None:
        if UNNAMED.fullmatch(name) and _numbers_rows(column.numbers):
            found.dropped.append(f"{show(name)} (numbers the rows)")
        else:
            found.numbers[name] = (column, give_notation(choice.decimal, choice.thousands))
    else:
        finding = find_notation(column, choice.decimal, choice.thousands, european)
        if _is_of_numbers(name, column, finding, choice, found):
            if UNNAMED.fullmatch(name) and _numbers_rows(read_numbers(column, finding.notation)[0]):
                found.dropped.append(f"{show(name)} (numbers the rows)")
            else:
                found.numbers[name] = (column, finding.notation)
        elif UNNAMED.fullmatch(name) and _is_all_distinct(column):
            found.dropped.append(f"{show(name)} (names the rows)")
        else:
            _take_as_category(name, column, found)


def _is_of_numbers(name: str, column: Cells, finding: Finding, choice: Choice, found: _Columns) -> bool:
    """Returns whether a column of texts is one of numbers, and warns of what is doubtful about that."""
    sure = finding.share == 1 or (finding.share >= SURE and finding.distinct > _MANY)
    if finding.others and not sure and finding.share + finding.others >= 0.5:
        if len(column.values) > _FEW[1]:
            units = list_units(column, finding.notation)
            found.warn(f"{{}}: several units: {units}; taken as categories; {MEND}", name)
        return False
    if text := find_duration(column, finding):
        found.warn(f"{{}}: {show(text)!r} is no time of day; taken as categories; {_SECONDS}", name)
        return False
    if finding.share == 0 or set(column.values) <= {"true", "false"}:
        return False
    if choice.typed and finding.notation.kind == "number":
        if finding.share > SURE:
            found.warn(
                "{}: the file stores numbers as texts, so they are taken as categories; name it in data.numeric", name
            )
        return False
    if finding.notation.kind == "number" and any(re.match(r"[+-]?0\d", text) for text in column.values):
        found.warn(
            "{}: digits that begin with a zero are taken as codes; if they are numbers, name it in data.numeric", name
        )
        return False
    strange = read_numbers(column, finding.notation)[1]
    if not sure:
        if finding.share >= 0.5:
            words = list_some((repr(show(text)) for text in sorted(strange)), 3)
            found.warn(
                f"{{}}: texts ({words}) among numbers, taken as categories; to use numbers, name it in data.numeric",
                name,
            )
        return False
    _warn_of_reading(name, column, finding, found)
    return True


def _warn_of_reading(name: str, column: Cells, finding: Finding, found: _Columns) -> None:
    """Warns of texts of a column of numbers that may mean something else."""
    if code := next((text for text in column.values if CODE.fullmatch(text)), ""):
        found.warn(
            f"{{}}: {show(code)!r} is read as the number {float(code):.15g}; if it is a code, name it in "
            "data.categorical",
            name,
        )
    if finding.doubtful == ",":
        example = next((text for text in column.values if "," in text), column.values[0])
        found.warn(
            f"{{}}: the comma in {show(example)!r} is taken as one of thousands; set data.thousands or data.decimal",
            name,
        )
    gone = [text for text in column.values if text.casefold() in NO_VALUE]
    if gone:
        found.warn(
            f"{{}}: {list_some((repr(show(text)) for text in sorted(gone)), 3)} among numbers is taken as missing",
            name,
        )


def _take_as_category(name: str, column: Cells, found: _Columns) -> None:
    n, distinct = column.present, len(column.values)
    if n >= _ENOUGH and distinct == n:
        found.dropped.append(f"{show(name)} (another text in every row)")
        found.warn(
            "{}: another text in every row (an id, a name), so it is not used; to use it, name it in data.categorical",
            name,
        )
        return
    found.categories[name] = column
    if looks_like_a_day(column.values):
        found.warn(
            "{}: days taken as categories; write them as 2020-01-31 to use them as numbers, or name it in data.drop",
            name,
        )
    elif n >= _ENOUGH and 2 * distinct > n:
        found.warn(
            "{}: more than half of the texts are distinct (ids, names?); name it in data.drop, or in data.group if "
            "rows with the same one belong together, as those of a patient do",
            name,
        )
    alike = len(column.values) - len({" ".join(text.casefold().split()) for text in column.values})
    if alike:
        found.warn("{}: categories differ only in capitals or spaces; write them alike", name)


def _numbers_rows(values: NDArray[np.float64]) -> bool:
    """Returns whether whole numbers name each row, as a data frame's index does."""
    return len(values) > 1 and bool(np.all(values == np.floor(values))) and len(np.unique(values)) == len(values)


def _is_all_distinct(column: Cells) -> bool:
    return len(column.values) == len(column)


def _look_closer(found: _Columns, summary: TableSummary, labels: NDArray[np.int64]) -> None:
    """Warns of columns that are used and should not be."""
    codes = []
    for name, (cells, notation) in found.numbers.items():
        values = read_numbers(cells, notation)[0]
        there = values[~np.isnan(values)]
        if large := cells.rounded or _find_large(cells, notation):
            found.warn(
                f"{{}}: whole numbers as large as {show(large)} are rounded (ids?); name it in data.drop, or in "
                "data.categorical",
                name,
            )
        distinct = np.unique(there)
        whole = bool(np.all(distinct == np.floor(distinct)))
        if len(distinct) < 2:
            found.warn("{}: one value only, which tells nothing; name it in data.drop", name)
            continue
        _warn_of_groups(name, np.searchsorted(distinct, there), labels[~np.isnan(values)], whole, found)
        if whole and notation.kind == "number" and len(distinct) == len(values) >= _ENOUGH:
            if distinct[-1] - distinct[0] <= 1.5 * len(distinct) and (_ID.fullmatch(name) or _in_order(values)):
                found.warn("{}: it numbers the rows; name it in data.drop", name)
            elif _ID.fullmatch(name):
                found.warn("{}: another number in every row (an id?); name it in data.drop", name)
        if whole and _FEW[0] <= len(distinct) <= _FEW[1] and len(there) >= 5 * len(distinct) and np.ptp(distinct) < 20:
            codes.append(name)
        for value in find_sentinels(there, notation.kind):
            words = f"stands far from the other {notation.kind}s; if it means missing, add it to data.missing"
            found.warn(f"{{}}: {spell_value(value, notation.kind)} {words}", name)
        _warn_of_leak(name, np.searchsorted(distinct, values) if len(there) == len(values) else None, labels, found)
    if codes:
        found.warnings["{}: few whole numbers; if they are codes, name it in data.categorical"] = codes
    for name, column in found.categories.items():
        if _count_codes(summary.categories[name]) < 2:
            found.warn("{}: one value only, which tells nothing; name it in data.drop", name)
        else:
            texts = column.as_texts()
            _warn_of_leak(name, texts.index if texts.present == len(texts) else None, labels, found)
            _warn_of_groups(name, texts.index[texts.index >= 0], labels[texts.index >= 0], True, found)


def _find_large(cells: Cells, notation: Notation) -> str:
    """Returns a text of digits that 64 bits may round; empty: there is none."""
    if notation.kind != "number":
        return ""
    digits = (text for text in cells.values if re.fullmatch(r"[+-]?\d{16,}", text))
    return next((text for text in digits if abs(float(text)) > WIDEST_EXACT), "")


def _in_order(values: NDArray[np.float64]) -> bool:
    return bool(np.all(np.diff(values) > 0) or np.all(np.diff(values) < 0))


def _warn_of_leak(name: str, codes: NDArray[np.int64] | None, labels: NDArray[np.int64], found: _Columns) -> None:
    """Warns if the values [n] stand for the labels one to one."""
    if codes is None or len(labels) < _ENOUGH:
        return
    pairs = np.unique(np.stack([codes, labels]), axis=1).shape[1]
    if pairs == len(np.unique(codes)) == len(np.unique(labels)):
        found.warn(
            "{}: each value has one class of its own; if it is made from the label, name it in data.drop",
            name,
        )


def _warn_of_groups(
    name: str, codes: NDArray[np.int64], labels: NDArray[np.int64], names_things: bool, found: _Columns
) -> None:
    """Warns if values [n] seem to name patients or the like, of which each has several rows."""
    counts = np.unique(codes, return_counts=True)[1]
    if not names_things or len(counts) < _MANY or len(codes) < 2 * len(counts) or counts.max() * 4 > len(codes):
        return
    pairs = np.unique(np.stack([codes, labels]), axis=1).shape[1]
    if pairs == len(counts) or _ID.fullmatch(name) or _GROUP.search(name):
        found.warn("{}: if a value is one patient with several rows, set data.group to keep them in one part", name)


def _count_codes(about: CategorySummary) -> int:
    return len(about.counts) + bool(about.gaps) + bool(about.rare)


def _describe(found: _Columns, summary: TableSummary) -> SourceSummary:
    facts = []
    if found.numbers:
        facts.append(f"numbers: {list_some(_describe_number(name, *about) for name, about in found.numbers.items())}")
    if summary.categories:
        codes = (f"{show(name)} {count_of(_count_codes(each), 'code')}" for name, each in summary.categories.items())
        facts.append(f"categories: {list_some(codes)}")
    if found.dropped:
        facts.append(f"columns not used: {list_some(found.dropped)}")
    if found.unused:
        found.warnings["{}: neither numbers nor texts, not used"] = found.unused
    lines = [
        words.replace(
            "{}", list_some(f"column {show(name)!r}" if not i else repr(show(name)) for i, name in enumerate(names))
        )
        for words, names in found.warnings.items()
    ]
    return SourceSummary(tuple(facts), tuple(lines))


def _describe_number(name: str, cells: Cells, notation: Notation) -> str:
    values = read_numbers(cells, notation)[0]
    there, gaps = values[~np.isnan(values)], int(np.isnan(values).sum())
    kind = "" if notation.kind == "number" else f" as {notation.kind}s"
    span = f"{there.min():.6g} to {there.max():.6g}" if len(there) else "empty"
    return f"{show(name)}{kind} {span}{notation.unit and ' ' + show(notation.unit)}" + (
        f" ({gaps:,} missing)" if gaps and len(there) else ""
    )
