"""How numbers, days and times are written in texts: found from the training rows, then applied."""

import datetime
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genfed.data.cells import Cells, missing_numbers

Mark = Literal[".", ","]
NO_VALUE = frozenset(
    {
        *("-", "--", "---", "–", "—", ".", "..", "...", "*", "**", "#", "x", "??", "na", "na.", "n.a", "n.a.", "n/a."),
        *("nd", "n.d.", "n/d", "nat", "none", "nil", "null", "missing", "unknown", "unk", "undefined", "unspecified"),
        *("not available", "not applicable", "not known", "not recorded", "no data", "no value", "no answer", "tbd"),
        *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!", "k.a.", "keine angabe", "unbekannt", "s/d"),
    }
)
"""Further texts that mean, among numbers, that there is none; in small letters."""
_DAY = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z| ?[+-]\d{2}:?\d{2})?)?")
_TIME = re.compile(r"([01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")
_AROUND = re.compile(
    r"(?P<before>[^\d.,+()-]*)(?P<number>[+-]?[.,]?\d(?:[\d.,' _]*\d)?[.,]?(?:[eE][+-]?\d+)?)(?P<after>[^\d]*)"
)
_POINT_OF_THREE = re.compile(r"[+-]?(\d{1,3}|[1-9]\d{0,2}\.\d{3})")
_CODES = ("EUR", "USD", "GBP", "CHF", "JPY", "Rs", "Rs.", "kr", "R$", "US$")
_UNIT = 12
"""Most characters of a unit."""
_TRIED = 2000
"""Distinct texts of a column on which notations are tried."""


@dataclass(frozen=True)
class Notation:
    """How a column's values are written as texts."""

    kind: Literal["number", "day", "time"] = "number"
    """A day counts the days since 1970-01-01 (UTC), a time of day the hours since midnight."""
    decimal: Mark = "."
    """Mark before the decimals."""
    thousands: str = ""
    """Mark between groups of digits; empty: none."""
    unit: str = ""
    """Text after each number, such as "kg" or "%"; it may lack."""


PLAIN = Notation()


def read_numbers(cells: Cells, notation: Notation) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Returns the numbers [n], NaN where none is there, and the texts that are no numbers with their counts."""
    if cells.numbers is not None:
        return cells.numbers, {}
    found = [_parse(text, notation) for text in cells.values]
    counts = cells.counts().tolist()
    strange = {
        text: count
        for text, value, count in zip(cells.values, found, counts, strict=True)
        if value is None and count and text.casefold() not in NO_VALUE
    }
    values = np.array([np.nan if value is None else value for value in found] + [np.nan], np.float64)
    if notation.kind == "number":
        written = (_parse(word, notation) for word in cells.missing)
        gaps = {*missing_numbers(cells.missing), *(value for value in written if value is not None)}
        values[np.isin(values, list(gaps))] = np.nan
    return values[cells.index], strange


def _parse(text: str, notation: Notation) -> float | None:
    if notation.kind == "day":
        return _parse_day(text)
    if notation.kind == "time":
        return _parse_time(text)
    try:
        if notation.decimal == "." and not notation.thousands and "_" not in text and text.isascii():
            return float(text)
    except ValueError:
        pass
    parts = _take_apart(text)
    if parts is None or parts[1] not in ("", notation.unit):
        return None
    digits = parts[0]
    if notation.thousands:
        mark = re.escape(notation.thousands)
        if re.fullmatch(
            rf"[+-]?[1-9]\d{{0,2}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}(?:{re.escape(notation.decimal)}\d*)?", digits
        ):
            digits = digits.replace(notation.thousands, "")
    if notation.decimal == ",":
        if "." in digits:
            return None
        digits = digits.replace(",", ".")
    try:
        return float(digits) if "_" not in digits else None
    except ValueError:
        return None


def find_without_unit(cells: Cells, notation: Notation) -> list[str]:
    """Returns the texts of a column that are numbers and lack its unit, where that may change what they mean: those of
    a column in per cent or per mille, 0.5 beside 50 %.
    """
    if notation.unit not in ("%", "‰"):
        return []
    parts = {text: _take_apart(text) for text in cells.values}
    return [text for text, part in parts.items() if part and not part[1] and _parse(text, notation) is not None]


def _take_apart(text: str) -> tuple[str, str] | None:
    """Returns the digits with their marks, and the unit after them. None: it is no number."""
    plain = "".join(" " if c.isspace() else c for c in text).replace("−", "-").replace("’", "'").strip("'")
    negative = len(plain) > 2 and plain[0] == "(" and plain[-1] == ")"
    plain = plain[1:-1] if negative else plain
    sign = "-" if negative else ""
    if plain[:1] in "+-" and plain[1:2] and not plain[1].isdigit():  # -$5
        sign, plain = plain[0].replace("+", ""), plain[1:]
    if not (found := _AROUND.fullmatch(plain)):
        return None
    before, after = found["before"].strip(), found["after"].strip()
    if not _is_currency(before) and before:
        return None
    if _is_currency(after):
        after = ""
    if after and (len(after) > _UNIT or not _is_unit(after)):
        return None
    return sign + found["number"].strip(), after


def _is_currency(text: str) -> bool:
    return text in _CODES or (len(text) == 1 and unicodedata.category(text) == "Sc")


def _is_unit(text: str) -> bool:
    return text == "%" or ((text[0].isalpha() or text[0] in "°‰/") and not any(c in "-:;()" for c in text))


def _parse_day(text: str) -> float | None:
    if not _DAY.fullmatch(text):
        return None
    day, rest = re.fullmatch(r"([\d./-]{8,10})(.*)", text, re.S).groups()  # type: ignore[union-attr]
    year, month, number = re.split(r"[-/.]", day)
    try:
        moment = datetime.datetime.fromisoformat(f"{year}-{int(month):02}-{int(number):02}{rest.replace(' +', '+')}")
    except ValueError:
        return None
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return (zoned - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(days=1)


def _parse_time(text: str) -> float | None:
    if not (found := _TIME.fullmatch(text)):
        return None
    hours, minutes, seconds = found.groups()
    return int(hours) + int(minutes) / 60 + float(seconds or 0) / 3600


@dataclass(frozen=True)
class Finding:
    """How well the best notation fits a column of texts."""

    notation: Notation
    share: float
    """Share of the values that are numbers in it, in [0, 1]; texts that mean that there is none do not count."""
    distinct: int
    """Number of distinct numbers."""
    doubtful: Literal["", ",", "."]
    """The mark that may be one of decimals or of thousands; empty: there is none."""


def find_notation(cells: Cells, decimal: Mark | None, thousands: str | None, european: bool | None) -> Finding:
    """Finds how a column of texts is written.

    Args:
        cells: The training rows.
        decimal: The mark of decimals; None: found.
        thousands: The mark of thousands; None: found.
        european: Whether the file writes decimals with a comma; None: unknown.
    """
    texts, counts = cells.values[:_TRIED], cells.counts()[:_TRIED]
    meant = np.array([text.casefold() not in NO_VALUE for text in texts], bool)
    total, best = int(counts[meant].sum()), Finding(PLAIN, 0.0, 0, "")
    if not total:
        return best
    read = list[tuple[float, list[float | None]]]()
    for notation in _candidates(texts, decimal, thousands, european):
        values = [_parse(text, notation) for text in texts]
        good = np.array([value is not None for value in values], bool)
        read.append((float(counts[good & meant].sum()) / total, values))
        if read[-1][0] > best.share:
            best = Finding(notation, read[-1][0], len({value for value in values if value is not None}), "")
        if best.share == 1 and not european and notation.decimal == "." and not notation.thousands:
            break
    if european is not None or decimal is not None or thousands is not None:
        return best
    if best.notation.decimal == "." and not best.notation.thousands:
        return replace(best, doubtful="." if _may_be_thousands(texts) else "")
    others = [values for share, values in read if share == best.share]
    open_question = best.notation.thousands == "," and any(values != others[0] for values in others)
    return replace(best, doubtful="," if open_question else "")


def _may_be_thousands(texts: Sequence[str]) -> bool:
    """Returns whether the points in texts stand before three digits each, so that they may be between thousands."""
    parts = [_take_apart(text) for text in texts if text.casefold() not in NO_VALUE]
    numbers = [part[0] for part in parts if part is not None]
    return any("." in number for number in numbers) and all(_POINT_OF_THREE.fullmatch(n) for n in numbers)


def _candidates(
    some: Sequence[str], decimal: Mark | None, thousands: str | None, european: bool | None
) -> list[Notation]:
    """Returns the notations to try; of those that fit equally, the first is taken."""
    units = {parts[1] for text in some if (parts := _take_apart(text)) and parts[1]}
    unit = units.pop() if len(units) == 1 else ""
    days, times = sum(bool(_DAY.fullmatch(t)) for t in some), sum(bool(_TIME.fullmatch(t)) for t in some)
    others: list[Notation] = [Notation("day")] * (days > 0) + [Notation("time")] * (times > 0)
    if decimal is not None or thousands is not None:
        mark: Mark = decimal or ("," if thousands == "." else ".")
        group = thousands if thousands is not None else ("." if mark == "," else "")
        return [Notation("number", mark, group, unit), *others]
    american: list[Notation] = [
        Notation("number", ".", ",", unit),
        *(Notation("number", ".", m, unit) for m in (" ", "'")),
    ]
    comma: list[Notation] = [Notation("number", ",", m, unit) for m in (".", " ", "'")]
    plain = Notation("number", ".", "", unit)
    return [*comma, plain, *american, *others] if european else [plain, *american, *comma, *others]


def looks_like_a_day(texts: Sequence[str]) -> bool:
    """Returns whether most of the texts are days in another order than year, month, day."""
    digits, month = r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*", r"[A-Za-z]{3,9}"
    named = re.compile(rf"{digits}|\d{{1,2}}[- ]{month}\.?[- ,]+\d{{2,4}}.*|{month}\.? \d{{1,2}},? \d{{4}}.*", re.S)
    return 2 * sum(bool(named.fullmatch(text)) for text in texts) > len(texts)
