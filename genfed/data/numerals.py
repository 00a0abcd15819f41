"""How numbers, days and times are written in texts: found from the training rows, then applied."""

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genfed.core.errors import GenfedError
from genfed.data.cells import Cells, missing_numbers, spell_number
from genfed.data.units import CURRENCIES, Quantity, choose_units, join_unit, name_currency, split_unit
from genfed.preprocessing.source_summary import list_some, show

Mark = Literal[".", ","]
Form = Literal["time zone", "no time zone", "seconds", "whole", "decimals", "three decimals", "thousands"]
"""Something that a day or time has or lacks, or how the numbers of a column use points and commas: none has decimals;
some have; each of these has three, which may be thousands; whole numbers have a mark of thousands."""
NO_VALUE = frozenset(
    {
        *("-", "--", "---", "–", "—", ".", "..", "...", "*", "**", "#", "x", "??", "na", "na.", "n.a", "n.a.", "n/a."),
        *("nd", "n.d.", "n/d", "nat", "none", "nil", "null", "missing", "unknown", "unk", "undefined", "unspecified"),
        *("not available", "not applicable", "not known", "not recorded", "no data", "no value", "no answer", "tbd"),
        *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!", "k.a.", "keine angabe", "unbekannt", "s/d"),
        *("0000-00-00", "0000-00-00 00:00:00", "k. a.", "o.a.", "n. a.", "n.b.", "not reported", "not measured"),
        *("not done", "refused", "inconnu", "non renseigné", "sin dato", "sin datos", "desconocido", "未知", "不明"),
    }
)
"""Further texts that mean, among numbers, that there is none; in small letters."""
_ZONE = r"(?:Z| ?UTC| ?GMT| ?[+-]\d{2}:?\d{2})"
_CLOCK = re.compile(rf"[ T]\d{{2}}:\d{{2}}(?::\d{{2}}(?:\.\d+)?)?(?P<zone>{_ZONE})?")
_DAY = re.compile(rf"\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?:{_CLOCK.pattern})?")
_TIME = re.compile(r"([01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")
_DURATION = re.compile(r"\d{1,3}(:[0-5]\d){1,2}(\.\d+)?")
_BARE = re.compile(r"[+-]?[.,]?[0-9][0-9.,]*")
_AROUND = re.compile(
    rf"(?P<before>(?:{'|'.join(re.escape(code) for code in CURRENCIES)})\s*|[^\d.,+()-]*)"
    r"(?P<number>[+-]?[.,]?\d(?:[\d.,' _]*\d)?[.,]?(?:[eE][+-]?\d+)?)(?P<after>[^\d]*)"
)
_POINT_OF_THREE = re.compile(r"[+-]?(\d{1,3}|[1-9]\d{0,2}\.\d{3})")
SURE = 0.9
"""Share of a column's values above which the others are taken for mistakes."""
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
    units: dict[str, float] = field(default_factory=lambda: {"": 1.0})
    """Factors by the unit beside a number, a currency or a text such as "kg" or "Mio"; the empty text: none is there.
    A number with another unit is missing."""
    given: bool = False
    """Whether the settings give the units."""
    forms: tuple[Form, ...] = ()
    """What some days and times of the training rows have or lack, or the form of their numbers; empty if that is not
    known, or the settings give the marks."""

    @property
    def unit(self) -> str:
        """The unit of the numbers when they are read; empty: none."""
        return next((unit for unit, factor in self.units.items() if unit and factor == 1), "")


PLAIN = Notation()
MEND = "write the numbers alike, or set data.units"
"""What mends a column of several units."""


def read_unit_factors(units: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the factors that the settings give, with each unit in the one form in which it is found: $M as $ M.

    Raises:
        GenfedError: a text is no unit, or a factor is 0 or not finite.
    """
    found = dict[str, dict[str, float]]()
    for name, factors in units.items():
        found[name] = {}
        for unit, factor in factors.items():
            if (parts := _take_apart(f"1 {unit}")) is None or parts[0] != "1":
                raise GenfedError(f'data.units.{name}: {unit!r} is no unit; texts such as "kg" and "€" are allowed')
            if not factor or not math.isfinite(factor):
                raise GenfedError(f"data.units.{name}.{unit} = {factor}: a finite factor that is not 0 is allowed")
            found[name][join_unit(*parts[1:])] = factor
    return found


def spell_value(value: float, kind: Literal["number", "day", "time"]) -> str:
    """Returns a number, or the day that it stands for."""
    if kind != "day":
        return spell_number(value)
    day = np.datetime64("1970-01-01T00:00:00") + np.timedelta64(round(value * 86400), "s")
    return str(day).removesuffix("T00:00:00")


def read_numbers(cells: Cells, notation: Notation) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Returns the numbers [n], NaN where none is there or it has another unit, and the texts that are no numbers in any
    unit with their counts.
    """
    if cells.numbers is not None:
        return cells.numbers * notation.units.get("", np.nan), {}
    found = [_parse(text, notation) for text in cells.values]
    counts = cells.counts().tolist()
    strange = {
        text: count
        for text, value, count in zip(cells.values, found, counts, strict=True)
        if value is None and count and text.casefold() not in NO_VALUE
    }
    written = (_parse(word, notation) for word in cells.missing)
    gaps = {word.value for word in written if word is not None}
    if notation.kind == "number":
        gaps |= missing_numbers(cells.missing)
    values = [
        np.nan if each is None or each.value in gaps else each.value * notation.units.get(each.unit, np.nan)
        for each in found
    ]
    return np.array([*values, np.nan], np.float64)[cells.index], strange


def _parse(text: str, notation: Notation) -> Quantity | None:
    """Returns a value, whatever its unit is. None: the text is no value of this kind."""
    if notation.kind != "number":
        value = _parse_day(text) if notation.kind == "day" else _parse_time(text)
        return None if value is None else Quantity(value, "", "")
    try:
        if notation.decimal == "." and not notation.thousands and "_" not in text and text.isascii():
            return Quantity(float(text), "", "")
    except ValueError:
        pass
    parts = (text, "", "") if _BARE.fullmatch(text) else _take_apart(text)
    value = None if parts is None else _parse_digits(parts[0], notation)
    return None if parts is None or value is None else Quantity(value, *parts[1:])


def _parse_digits(digits: str, notation: Notation) -> float | None:
    if notation.thousands and notation.thousands in digits:
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


def list_units(cells: Cells, notation: Notation) -> str:
    """Returns the units of a column's numbers with how often each stands there and an example, as a text."""
    return list_some(
        f"{show(unit) or 'none'} {sum(n for *_, n in numbers):,} ({show(numbers[0][0])!r})"
        for unit, numbers in _find_units(cells, notation)
    )


def describe_units(cells: Cells, notation: Notation) -> str:
    """Returns what is said of the units of a column's numbers, with an example of each: they differ, or are not those
    of the training rows. Empty: nothing. Days and times: what is said of their forms.
    """
    if notation.kind != "number":
        return "; ".join(_describe_forms(cells, notation))
    found = _find_units(cells, notation)
    there = {unit for unit, _ in found}
    lacks = notation.unit and there == {""}
    if there <= notation.units.keys() and (notation.given or not (len(there) > 1 or lacks)):
        return ""
    uses = []
    for unit, numbers in found:
        factor, (text, value, _) = notation.units.get(unit), numbers[0]
        read = "taken as missing" if factor is None else f"{value * factor:.12g} {notation.unit}".strip()
        uses.append(f"{show(unit) or 'none'} {sum(n for *_, n in numbers):,} ({show(text)!r} is {read})")
    words = "several units" if len(there) > 1 else "not the unit of training"
    return f"{words}: {list_some(uses)}; {MEND}"


def _find_units(cells: Cells, notation: Notation) -> list[tuple[str, list[tuple[str, float, int]]]]:
    """Returns the units of a column's numbers, the most frequent first, with the texts, values and counts of each."""
    found = dict[str, list[tuple[str, float, int]]]()
    if cells.numbers is not None:
        there = cells.numbers[~np.isnan(cells.numbers)]
        return [("", [(spell_number(float(there[0])), float(there[0]), len(there))])] if len(there) else []
    for text, count in zip(cells.values, cells.counts().tolist(), strict=True):
        if count and (each := _parse(text, notation)) is not None and not np.isnan(each.value):
            found.setdefault(each.unit, []).append((text, each.value, count))
    return sorted(found.items(), key=lambda item: -sum(count for *_, count in item[1]))


def _describe_forms(cells: Cells, notation: Notation) -> Iterator[str]:
    """Yields what is said of days and times that are written in two forms, of which one may mean something else."""
    if notation.kind == "day":
        forms = {form: text for text in reversed(cells.values) if (form := _form_of_day(text))}
        if "no time zone" in forms and (len(forms) > 1 or "time zone" in notation.forms):
            yield f"{show(forms['no time zone'])!r} is read as UTC; others have a time zone; write them alike"
        elif "time zone" in forms and "no time zone" in notation.forms:
            yield f"{show(forms['time zone'])!r} has a time zone; the training rows have none and are read as UTC"
    short, long = cells.times
    if notation.kind == "time" and short and (long or "seconds" in notation.forms):
        yield (
            f"{show(short)!r} is read as hours and minutes beside hours, minutes and seconds; if it is minutes and "
            f"seconds, write {show('00:' + short.zfill(5))!r}"
        )


def _form_of_day(text: str) -> Form | None:
    """Returns whether a moment has a time zone. None: it is a day, or neither."""
    if not _DAY.fullmatch(text) or not (clock := _CLOCK.search(text)):
        return None
    return "time zone" if clock["zone"] else "no time zone"


def _find_forms(texts: Sequence[str], kind: Literal["day", "time"]) -> tuple[Form, ...]:
    """Returns the forms of days and times among texts."""
    if kind == "day":
        forms = {form for text in texts if (form := _form_of_day(text))}
        return tuple(sorted(forms))
    return ("seconds",) if any(_TIME.fullmatch(text) and text.count(":") > 1 for text in texts) else ()


def _take_apart(text: str) -> tuple[str, str, str] | None:
    """Returns the digits with their marks, the currency and the measure beside them. None: it is no number."""
    plain = "".join(" " if c.isspace() else c for c in text).replace("−", "-").replace("’", "'").strip("'")
    negative = len(plain) > 2 and plain[0] == "(" and plain[-1] == ")"
    plain = plain[1:-1] if negative else plain
    sign = "-" if negative else ""
    if plain[:1] in "+-" and plain[1:2] and not plain[1].isdigit():  # -$5
        sign, plain = plain[0].replace("+", ""), plain[1:]
    if not (found := _AROUND.fullmatch(plain)):
        return None
    before, after = found["before"].strip(), split_unit(found["after"].strip())
    currency = name_currency(before) if before else ""
    if currency is None or after is None or (currency and after[0]):
        return None
    return sign + found["number"].strip(), currency or after[0], after[1]


def _parse_day(text: str) -> float | None:
    if not _DAY.fullmatch(text):
        return None
    day, rest = re.fullmatch(r"([\d./-]{8,10})(.*)", text, re.S).groups()  # type: ignore[union-attr]
    year, month, number = re.split(r"[-/.]", day)
    try:
        moment = datetime.datetime.fromisoformat(f"{year}-{int(month):02}-{int(number):02}{_shorten_zone(rest)}")
    except ValueError:
        return None
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return (zoned - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(days=1)


def _shorten_zone(rest: str) -> str:
    return re.sub(r" ?(?:UTC|GMT)$", "Z", re.sub(" (?=[+-])", "", rest))


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
    others: float
    """Share of the values that are numbers in another unit, in [0, 1]."""
    distinct: int
    """Number of distinct numbers."""
    doubtful: Literal["", ",", "."]
    """The mark that may be one of decimals or of thousands; empty: there is none."""


def find_notation(
    cells: Cells,
    decimal: Mark | None,
    thousands: str | None,
    european: bool | None,
    units: Mapping[str, float] | None = None,
) -> Finding:
    """Finds how a column of texts is written.

    Args:
        cells: The training rows.
        decimal: The mark of decimals; None: found.
        thousands: The mark of thousands; None: found.
        european: Whether the file writes decimals with a comma; None: unknown.
        units: The factor of each unit; None: found.
    """
    texts, counts = cells.values[:_TRIED], cells.counts()[:_TRIED].tolist()
    meant = [(text, count) for text, count in zip(texts, counts, strict=True) if text.casefold() not in NO_VALUE]
    best, read = Finding(PLAIN, 0.0, 0.0, 0, ""), list[tuple[float, list[Quantity | None]]]()
    if not any(count for _, count in meant):
        return best
    for notation in _candidates(texts, decimal, thousands, european):
        values = [_parse(text, notation) for text, _ in meant]
        finding = _weigh(notation, meant, values, units)
        read.append((finding.share + finding.others, values))
        if read[-1][0] > best.share + best.others:
            best = finding
        if read[-1][0] == 1 and not european and notation.decimal == "." and not notation.thousands:
            break
    if european is not None or decimal is not None or thousands is not None:
        return best
    if best.notation.decimal == "." and not best.notation.thousands:
        return replace(best, doubtful="." if _may_be_thousands(texts) else "")
    others = [values for share, values in read if share == best.share + best.others]
    open_question = best.notation.thousands == "," and any(values != others[0] for values in others)
    return replace(best, doubtful="," if open_question else "")


def give_notation(decimal: Mark | None, thousands: str | None) -> Notation:
    """Returns the notation of numbers by the marks that the settings give, if any."""
    mark: Mark = decimal or ("," if thousands == "." else ".")
    return Notation("number", mark, thousands if thousands is not None else ("." if mark == "," else ""))


def find_duration(cells: Cells, finding: Finding) -> str:
    """Returns a text of a column of times that is like one and none of the day, such as 26:38, so that 12:30 may be
    minutes and seconds, too; empty: there is none, or a few that may be mistakes.
    """
    if finding.notation.kind != "time" or (finding.share >= SURE and not all(cells.times)):
        return ""
    return next((text for text in cells.values if _DURATION.fullmatch(text) and not _TIME.fullmatch(text)), "")


def _weigh(
    notation: Notation,
    meant: Sequence[tuple[str, int]],
    values: Sequence[Quantity | None],
    units: Mapping[str, float] | None,
) -> Finding:
    """Returns how well a notation fits texts with their counts, of which `values` are read; its units are `units`, or
    chosen.
    """
    there = [(value, n) for value, (_, n) in zip(values, meant, strict=True) if value is not None]
    if notation.kind != "number":
        found = replace(notation, forms=_find_forms([text for text, _ in meant], notation.kind))
    elif units is not None:
        found = replace(notation, units=dict(units), given=True)
    else:
        found = replace(notation, units=choose_units(there))
    total = sum(n for _, n in meant)
    share = sum(n for value, n in there if value.unit in found.units) / total
    every = sum(n for _, n in there) / total
    distinct = len({value.value for value, _ in there if value.unit in found.units})
    return Finding(found, share, every - share, distinct, "")


def _may_be_thousands(texts: Sequence[str]) -> bool:
    """Returns whether the points in texts stand before three digits each, so that they may be between thousands."""
    parts = [_take_apart(text) for text in texts if text.casefold() not in NO_VALUE]
    numbers = [part[0] for part in parts if part is not None]
    return any("." in number for number in numbers) and all(_POINT_OF_THREE.fullmatch(n) for n in numbers)


def _candidates(
    some: Sequence[str], decimal: Mark | None, thousands: str | None, european: bool | None
) -> list[Notation]:
    """Returns the notations to try; of those that fit equally, the first is taken."""
    days, times = sum(bool(_DAY.fullmatch(t)) for t in some), sum(bool(_TIME.fullmatch(t)) for t in some)
    others: list[Notation] = [Notation("day")] * (days > 0) + [Notation("time")] * (times > 0)
    if decimal is not None or thousands is not None:
        return [give_notation(decimal, thousands), *others]
    american: list[Notation] = [Notation("number", ".", m) for m in (",", " ", "'")]
    comma: list[Notation] = [Notation("number", ",", m) for m in (".", " ", "'")]
    plain = Notation("number", ".", "")
    return [*comma, plain, *american, *others] if european else [plain, *american, *comma, *others]


def looks_like_a_day(texts: Sequence[str]) -> bool:
    """Returns whether most of the texts are days in another order than year, month, day."""
    digits, month = r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*", r"[A-Za-z]{3,9}"
    named = re.compile(rf"{digits}|\d{{1,2}}[- ]{month}\.?[- ,]+\d{{2,4}}.*|{month}\.? \d{{1,2}},? \d{{4}}.*", re.S)
    return 2 * sum(bool(named.fullmatch(text)) for text in texts) > len(texts)
