"""Sites agree on one schema for their tables, from summaries that hold no row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from genfed.core.errors import GenfedError
from genfed.data.column_summary import (
    CategorySummary,
    NumberSummary,
    find_near_misses,
    merge_categories,
    merge_numbers,
)
from genfed.data.features import Scale, TableSchema, TableSummary, build_schema
from genfed.preprocessing.source_summary import SourceSummary, count_of, list_some, show

T = TypeVar("T", NumberSummary, CategorySummary)
MOST_CATEGORIES = 1000
"""Largest number of categories of a column that have a name; further ones are "(rare)"."""


@dataclass(frozen=True)
class AgreedSchema:
    """What sites agree on."""

    schema: TableSchema
    summary: SourceSummary
    """What is to be said of it before training."""


def agree(sites: Mapping[str, TableSummary], scale: Scale = "standard", least_sites: int = 1) -> AgreedSchema:
    """Returns the schema for the rows of all sites. It does not depend on the order of the sites.

    Columns are matched by their names. A column that a site lacks is missing in all of its rows.

    Args:
        sites: What each site says of its columns, by the site's name.
        scale: The scaling of numbers, see `fit_schema`.
        least_sites: Least number of sites that have a category which is named; others are "(rare)".

    Raises:
        GenfedError: a column is of numbers at one site and of categories at another, or written in other units; or
            there are no columns.
    """
    ordered = dict(sorted(sites.items()))
    numbers = dict.fromkeys(name for site in ordered.values() for name in site.numbers)
    categories = dict.fromkeys(name for site in ordered.values() for name in site.categories)
    for name in numbers.keys() & categories.keys():
        raise GenfedError(_describe_clash(name, ordered))
    warnings = _describe_absent(ordered, (*numbers, *categories))
    merged = {}
    notations = {}
    for name in numbers:
        _check_units(name, ordered)
        there = [site for site in ordered.values() if name in site.numbers]
        merged[name] = _lack(merge_numbers([site.numbers[name] for site in there]), name, ordered)
        notations[name] = there[0].notations[name]
    codes = {}
    for name in categories:
        there = [site for site in ordered.values() if name in site.categories]
        codes[name] = merge_categories([site.categories[name] for site in there], least_sites, MOST_CATEGORIES)
        every = merge_categories([site.categories[name] for site in there])  # those of one site too
        warnings += _describe_categories(name, codes[name], every.counts, ordered)
        codes[name] = _lack(codes[name], name, ordered)
    rows = sum(site.rows for site in ordered.values())
    schema = build_schema(TableSummary(merged, notations, codes, rows), scale, "the sites' tables")
    words = tuple(dict.fromkeys(word for site in ordered.values() for word in site.missing))
    schema = replace(schema, missing=words or None)
    said = f"one schema for {count_of(len(sites), 'site')}: {count_of(len(numbers) + len(categories), 'column')}"
    return AgreedSchema(schema, SourceSummary((said,), tuple(warnings)))


def _lack(about: T, name: str, sites: Mapping[str, TableSummary]) -> T:
    """Returns the summary with the rows of the sites that lack the column."""
    rows = sum(site.rows for site in sites.values() if not site.has(name))
    return replace(about, gaps=about.gaps + rows)


def _describe_clash(name: str, sites: Mapping[str, TableSummary]) -> str:
    as_numbers = [show(site) for site, about in sites.items() if name in about.numbers]
    as_texts = [show(site) for site, about in sites.items() if name in about.categories]
    example = next(text for about in sites.values() if name in about.categories for text in _texts(about, name))
    return (
        f"column {name!r} is of numbers at {list_some(as_numbers)} and of categories at {list_some(as_texts)} "
        f"(such as {show(example)!r}): name it in data.numeric or data.categorical at all sites"
    )


def _texts(about: TableSummary, name: str) -> list[str]:
    return list(about.categories[name].counts) or ["(rare)"]


def _check_units(name: str, sites: Mapping[str, TableSummary]) -> None:
    """Refuses numbers that mean other things at different sites.

    Raises:
        GenfedError: they have another unit, or are days at one site only.
    """
    kinds = {site: about.notations[name] for site, about in sites.items() if name in about.numbers}
    meanings = {site: (each.kind, each.unit) for site, each in kinds.items()}
    (first, meant), *_ = meanings.items()
    for site, other in meanings.items():
        if other != meant:
            what = ["numbers" if kind == "number" else f"{kind}s" for kind, _ in (meant, other)]
            units = [f" in {show(unit)}" if unit else "" for _, unit in (meant, other)]
            raise GenfedError(
                f"column {name!r} is of {what[0]}{units[0]} at {show(first)} and of {what[1]}{units[1]} at "
                f"{show(site)}: write it alike, or set data.units"
            )


def _describe_absent(sites: Mapping[str, TableSummary], names: tuple[str, ...]) -> list[str]:
    lines = []
    for name in names:
        lack = [show(site) for site, about in sites.items() if not about.has(name)]
        if lack:
            lines.append(f"column {show(name)!r} is not at {list_some(lack)}: it is missing in all their rows")
    return lines


def _describe_categories(
    name: str, merged: CategorySummary, every: Mapping[str, int], sites: Mapping[str, TableSummary]
) -> list[str]:
    lines = []
    for one, other in find_near_misses(every)[:3]:
        who = [
            next((show(site) for site, about in sites.items() if text in _counts(about, name)), "")
            for text in (one, other)
        ]
        lines.append(
            f"column {show(name)!r}: {show(one)!r} ({who[0]}) and {show(other)!r} ({who[1]}) are two categories; write "
            "them alike if they mean the same"
        )
    lines += _describe_codes(name, sites)
    if merged.rare:
        lines.append(
            f"column {show(name)!r}: {count_of(merged.rare, 'row')} of categories that are too rare to be named become "
            '"(rare)"'
        )
    return lines


def _describe_codes(name: str, sites: Mapping[str, TableSummary]) -> list[str]:
    """Returns a line if sites number the same categories in different ways, as 0 to 3 and 1 to 4."""
    codes = {
        site: frozenset(_counts(about, name))
        for site, about in sites.items()
        if name in about.categories and about.categories[name].as_numbers
    }
    for one, mine in codes.items():
        for other, theirs in codes.items():
            if one < other and mine - theirs and theirs - mine and mine & theirs:
                shown = [", ".join(sorted(map(show, some), key=_by_number)[:8]) for some in (mine, theirs)]
                return [
                    f"column {show(name)!r} has the codes {shown[0]} at {show(one)} and {shown[1]} at {show(other)}: "
                    "if a code does not mean the same at both, number them alike"
                ]
    return []


def _by_number(text: str) -> tuple[float, str]:
    return (float(text), text) if text.lstrip("+-").replace(".", "", 1).isdigit() else (math.inf, text)


def _counts(about: TableSummary, name: str) -> Mapping[str, int]:
    return about.categories[name].counts if name in about.categories else {}
