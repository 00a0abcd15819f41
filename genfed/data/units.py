"""The units beside the numbers of a column: which numbers mean the same thing, and what a unit multiplies them by."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_SAME = {"EUR": "€", "GBP": "£", "INR": "₹", "Rs": "₹", "Rs.": "₹", "US$": "USD", "R$": "BRL", "ILS": "₪", "KRW": "₩"}
"""Currencies with two names."""
_CODES = (
    *("USD", "CHF", "JPY", "kr", "BRL", "CAD", "AUD", "NZD", "CNY", "RMB", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF"),
    *("MXN", "ZAR", "TRY", "RUB", "SGD", "HKD", "A$", "C$", "CA$", "AU$", "HK$", "NZ$", "S$", "Fr.", "zł", "Kč"),
)
CURRENCIES = tuple(sorted((*_SAME, *_CODES), key=len, reverse=True))
"""Currencies that are written as more than one sign, the longest first."""
_UNIT = 12
"""Most characters of a unit."""
_ALIKE = 5
"""Ratio of two medians above which numbers are not in one unit."""
_KELVIN = 100
"""K after a smaller number is a thousand; the kelvins of a table are more."""


def _spell(words: Mapping[str, float]) -> dict[str, float]:
    """Returns words in small letters, with a capital and in capitals."""
    return {form: factor for word, factor in words.items() for form in (word, word.capitalize(), word.upper())}


_THOUSANDS = {"k": 1e3, "K": 1e3}
_LETTERS = frozenset({"k", "K", "M", "m", "B", "b", "T", "G", "L", "Cr", "cr", "CR", "W", "w"})
"""Factors that may be units, too: M is metre or male, CR credit, W watt, week or west."""
_SMALL = frozenset({"m", "b"})
"""Of these, letters that are more often units."""
_FAMILIES: tuple[dict[str, float], ...] = (
    _THOUSANDS
    | {"M": 1e6, "m": 1e6, "B": 1e9, "b": 1e9, "G": 1e9, "T": 1e12, "mn": 1e6, "Mn": 1e6, "bn": 1e9, "Bn": 1e9}
    | _spell({"thousand": 1e3, "mln": 1e6, "million": 1e6, "millions": 1e6, "billion": 1e9, "billions": 1e9})
    | _spell({"tn": 1e12, "trillion": 1e12, "trillions": 1e12}),
    _THOUSANDS
    | _spell({"tsd": 1e3, "tsd.": 1e3, "tausend": 1e3, "mio": 1e6, "mio.": 1e6, "million": 1e6, "millionen": 1e6})
    | _spell({"mrd": 1e9, "mrd.": 1e9, "milliarde": 1e9, "milliarden": 1e9, "bio.": 1e12, "billionen": 1e12}),
    _THOUSANDS
    | {"L": 1e5, "Cr": 1e7, "cr": 1e7, "CR": 1e7, "Cr.": 1e7}
    | _spell({"lakh": 1e5, "lakhs": 1e5, "lac": 1e5, "lacs": 1e5, "crore": 1e7, "crores": 1e7}),
    {"千": 1e3, "万": 1e4, "萬": 1e4, "W": 1e4, "w": 1e4, "亿": 1e8, "億": 1e8},
)
"""Words of one language that multiply a number."""
_HEMISPHERES = (("N", "S", 90), ("E", "W", 180))


@dataclass(frozen=True)
class Quantity:
    """A number as a text of a column holds it."""

    value: float
    currency: str
    measure: str
    """Text after the number that is no currency, such as "kg" or "Mio"; empty: none."""

    @property
    def unit(self) -> str:
        """The currency and the measure; empty: there is none."""
        return join_unit(self.currency, self.measure) if self.currency or self.measure else ""


def join_unit(currency: str, measure: str) -> str:
    """Returns a unit as one text, such as "€ Mio" or "€/kg"."""
    return f"{currency}{'' if measure.startswith('/') else ' '}{measure}".strip()


def name_currency(text: str) -> str | None:
    """Returns the one name of a currency. None: the text is none."""
    if text in CURRENCIES:
        return _SAME.get(text, text)
    return text if len(text) == 1 and unicodedata.category(text) == "Sc" else None


def split_unit(text: str) -> tuple[str, str] | None:
    """Returns the currency and the measure in the text after a number: of "Mio €", € and Mio. None: it is no unit."""
    if not text:
        return "", ""
    for mark in (*(c for c in CURRENCIES if c in text), *(c for c in text if unicodedata.category(c) == "Sc")):
        before, _, after = text.partition(mark)
        apart = len(mark) == 1 or not (before[-1:].isalpha() or after[:1].isalpha())
        if apart and not (before.strip() and after.strip()):
            rest = before.strip() or after.strip()
            return (name_currency(mark) or "", rest) if _is_measure(rest) else None
    return ("", text) if _is_measure(text) else None


def _is_measure(text: str) -> bool:
    if not text or text == "%":
        return True
    begins = text[0].isalpha() or text[0] in "°‰/"
    return len(text) <= _UNIT and begins and not any(c in "-:;()" for c in text)


def choose_units(counted: Sequence[tuple[Quantity, int]]) -> dict[str, float]:
    """Returns the units in which the numbers of a column, with their counts, can be read together, each with the factor
    of its numbers; the empty text is a number without a unit. Numbers with other units mean something else.

    >>> from genfed.data.units import Quantity, choose_units
    >>> choose_units([(Quantity(175, "", "cm"), 9), (Quantity(1.75, "", ""), 1)])
    {'cm': 1.0}
    """
    total, values = dict[str, int](), dict[str, list[float]]()
    found = [quantity for quantity, _ in counted if np.isfinite(quantity.value)]
    for quantity, count in counted:
        total[quantity.unit] = total.get(quantity.unit, 0) + count
        values.setdefault(quantity.unit, []).append(quantity.value)
    if not any(total):
        return {"": 1.0}
    if (factors := _find_factors(found) or _find_hemispheres(found)) is not None:
        return factors
    *_, main = sorted(total, key=lambda unit: (total[unit], unit))
    if not main and len(total) == 2 and _are_alike(*values.values()):
        main = next(unit for unit in total if unit)
    if not main:
        return {"": 1.0}
    return {main: 1.0} | ({"": 1.0} if "" not in total or _are_alike(values[main], values[""]) else {})


def _are_alike(one: Iterable[float], other: Iterable[float]) -> bool:
    """Returns whether numbers may be in one unit, by their medians; 0 is the same in each."""
    sizes = [[abs(value) for value in values if value and np.isfinite(value)] for values in (one, other)]
    if not all(sizes):
        return True
    small, large = sorted(float(np.median(values)) for values in sizes)
    return large <= _ALIKE * small


def _find_factors(found: Sequence[Quantity]) -> dict[str, float] | None:
    """Returns units that are words for factors, where that is sure. None: they are not, or not all."""
    currencies, measures = {q.currency for q in found}, {q.measure for q in found if q.measure}
    family = next((words for words in _FAMILIES if measures <= words.keys()), None)
    if len(currencies) > 1 or not measures or family is None:
        return None
    (currency,) = currencies
    if not currency and not (measures - _LETTERS) and not _are_factors(measures, found, family):
        return None
    return {join_unit(currency, word): factor for word, factor in family.items()} | {currency: 1.0, "": 1.0}


def _are_factors(measures: set[str], found: Sequence[Quantity], family: Mapping[str, float]) -> bool:
    """Returns whether letters without a currency are factors: several are, and so is K beside numbers without it."""
    if measures <= _THOUSANDS.keys():
        bare = any(not q.measure for q in found)
        return bare and ("k" in measures or min(abs(q.value) for q in found if q.measure) < _KELVIN)
    return not measures & _SMALL and len({family[letter] for letter in measures}) > 1


def _find_hemispheres(found: Sequence[Quantity]) -> dict[str, float] | None:
    """Returns the signs of north and south, or of east and west, where both stand in a column of degrees."""
    units = {q.unit for q in found}
    for plus, minus, most in _HEMISPHERES:
        signs = {unit: unit.removeprefix("°").strip() for unit in units}
        if set(signs.values()) == {plus, minus} and all(0 <= q.value <= most for q in found):
            return {unit: 1.0 if sign == plus else -1.0 for unit, sign in signs.items()}
    return None
