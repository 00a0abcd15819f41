"""A site with a table agrees on a schema with the others: it says what its columns are, and takes what was agreed."""

import math
from pathlib import Path

import pydantic

from genfed.core.errors import GenfedError
from genfed.core.files import make_folder, write_file
from genfed.data.encoder import dump_schema, parse_schema
from genfed.data.features import MISSING, RARE, TableSchema, TableSummary
from genfed.data.schema_agreement import MOST_CATEGORIES
from genfed.data.table import Table
from genfed.data.table_source import find_lacking
from genfed.deployment.site_settings import LocatedSite
from genfed.experiment.inputs import locate_source
from genfed.preprocessing.source_summary import show

AGREED = "schema.json"
"""File name of the schema that was agreed on last, in the folder of the site."""
LONGEST_SCHEMA = 2**23
"""Largest number of characters of a schema, and of a summary, in a message (8 MiB)."""
_SUMMARY = pydantic.TypeAdapter(TableSummary)


def is_open(site: LocatedSite) -> bool:
    """Returns whether the site takes part in an agreement: it has a table, its file names no schema, and it demands no
    protection, which a summary of its columns would not have.
    """
    config = site.config
    return isinstance(config.data, Table) and config.data.encoder is None and not config.has_demand


def agreed_schema(site: LocatedSite) -> TableSchema | None:
    """Returns the schema that was agreed on last. None: there is none, or the site takes part in no agreement.

    Raises:
        GenfedError: its file is damaged.
    """
    content = agreed_content(site)
    return parse_schema(content, str(_file(site))) if content else None


def agreed_content(site: LocatedSite) -> bytes:
    """Returns the file of the schema that was agreed on last. Empty: there is none, or the site takes part in no
    agreement.
    """
    file = _file(site)
    return file.read_bytes() if is_open(site) and file.exists() else b""


def summarize_site(site: LocatedSite) -> str:
    """Returns what the site says of its columns, as JSON.

    Raises:
        GenfedError: the site takes part in no agreement.
    """
    return _SUMMARY.dump_json(_summarize(site)).decode()


def take_schema(site: LocatedSite, text: object) -> None:
    """Stores the schema that the sites agreed on.

    Raises:
        GenfedError: the site takes part in no agreement; or it is no schema, or one that uses a column in another way
            than the site does. A column of which the site said nothing is missing in all its rows.
    """
    own = _summarize(site)
    if not isinstance(text, str) or len(text) > LONGEST_SCHEMA:
        raise GenfedError(f"the schema of the run is no text of up to {LONGEST_SCHEMA:,} characters")
    schema = parse_schema(text, "the schema of the run")
    find_lacking(schema, own)
    for name, known in schema.categories.items():
        if len(known) > MOST_CATEGORIES + len((MISSING, RARE)):
            raise GenfedError(f"the schema of the run has {len(known):,} categories in column {show(name)!r}")
    make_folder(site.folder)
    write_file(_file(site), dump_schema(schema), durable=True)


def read_summary(text: object, site: str) -> TableSummary:
    """Returns the summary that a site sent.

    Raises:
        GenfedError: it is none, or cannot be one of rows.
    """
    try:
        if not isinstance(text, str) or len(text) > LONGEST_SCHEMA:
            raise ValueError
        found = _SUMMARY.validate_json(text)
    except ValueError:
        raise GenfedError(f"site {site}: its summary of its columns is none") from None
    for name, number in found.numbers.items():
        sizes = {len(number.values), len(number.counts), len(number.single)}
        if (
            len(sizes) > 1
            or list(number.values) != sorted(set(number.values))
            or any(count < 1 for count in number.counts)
            or number.present + number.gaps != found.rows
            or min(number.gaps, number.spread, (number.decimals or 0)) < 0
            or number.low > number.high
            or name not in found.notations
            or not all(map(math.isfinite, (*number.values, number.low, number.high, number.mean, number.spread)))
        ):
            raise GenfedError(f"site {site}: its summary of column {show(name)!r} cannot be one of rows")
    for name, category in found.categories.items():
        rows = sum(category.counts.values()) + category.gaps + category.rare
        if rows != found.rows or min((category.gaps, category.rare, *category.counts.values())) < 0:
            raise GenfedError(f"site {site}: its summary of column {show(name)!r} cannot be one of rows")
    return found


def _summarize(site: LocatedSite) -> TableSummary:
    if not is_open(site):
        raise GenfedError(f"site {site.config.name} takes part in no agreement on a schema")
    table = site.config.data
    assert isinstance(table, Table), "a site that takes part in an agreement has a table"
    return locate_source(table, str(site.root)).summarize(site.config.least_rows)


def _file(site: LocatedSite) -> Path:
    return site.folder / AGREED
