"""The server has sites with tables agree on one schema before training."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from genfed.core.errors import GenfedError
from genfed.data.encoder import dump_schema
from genfed.data.features import TableSchema
from genfed.data.schema_agreement import agree
from genfed.deployment.roster import SiteDescription, SiteRoster
from genfed.deployment.site_schema import read_summary
from genfed.preprocessing.source_summary import SourceSummary

LEAST_SITES = 2
"""Number of sites that must have a category for it to have a name, where there are as many."""


@dataclass(frozen=True)
class SharedSchema:
    """What the sites of a run have in common."""

    sites: tuple[SiteDescription, ...]
    """The sites as they describe themselves with the schema."""
    schema: TableSchema | None = None
    """None: their examples are no tables, or every site's file names a schema."""
    summary: SourceSummary = field(default_factory=SourceSummary)
    """What is to be said of it."""


def share_schema(roster: SiteRoster, sites: Sequence[SiteDescription], before: TableSchema | None) -> SharedSchema:
    """Has the sites with tables agree on a schema, and encode their rows by it.

    Args:
        roster: The connected sites.
        sites: Those that take part.
        before: The schema of the run that is resumed. None: a new run.

    Raises:
        GenfedError: the sites' columns do not fit together, a site does not answer or refuses the schema, or some
            sites have a schema of their own and others none.
    """
    open_sites = [site for site in sites if site.open]
    if not open_sites:
        return SharedSchema(tuple(sites))
    if len(open_sites) < len(sites):
        own = next(site for site in sites if not site.open)
        raise GenfedError(
            f"site {own.name} has a schema of its own (data.encoder), or demands protection and so sends no summary of "
            f"its columns; {open_sites[0].name} does neither: name the same encoder.json in data.encoder of every "
            "SITE.toml, or in none"
        )
    summary = SourceSummary()
    if (schema := before) is None:
        offered = {
            site.name: read_summary(roster.ask(site.name, {"ask": "summary"})[0].get("summary"), site.name)
            for site in sites
        }
        agreed = agree(offered, least_sites=min(LEAST_SITES, len(sites)))
        schema, summary = agreed.schema, agreed.summary
    text = dump_schema(schema)
    for site in sites:
        roster.ask(site.name, {"ask": "schema", "schema": text})
        roster.describe_again(site.name)
    names = {site.name for site in sites}
    again = sorted((site for site in roster.here() if site.name in names), key=lambda site: site.name)
    return SharedSchema(tuple(again), schema, summary)
