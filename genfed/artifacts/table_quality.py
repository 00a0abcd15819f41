"""The page that compares drawn rows with real ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genfed.metrics.tables import SiteRows, measure_table
from genfed.report.table_page import write_table_headlines, write_table_page

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class ComparedRows:
    """Drawn rows, and the real ones that they are compared with; all have the same columns."""

    silos: "Mapping[str, DataFrame]"
    """Rows that the generator was fitted to, by silo."""
    drawn: "DataFrame"
    test: "DataFrame"
    """Real rows that it was not fitted to."""


def write_quality(rows: ComparedRows, label: str, out: Path, sensitive: str | None, seed: int) -> list[str]:
    """Writes the page, and returns what to know first; see `Synthesizer.report`."""
    import pandas as pd

    real = pd.concat(rows.silos.values(), ignore_index=True)
    names = [name for name, frame in rows.silos.items() for _ in range(len(frame))]
    sites = SiteRows(names) if len(rows.silos) > 1 else None
    quality = measure_table(real, rows.drawn, rows.test, label, sites=sites, sensitive=sensitive, seed=seed)
    write_table_page(quality, real, rows.drawn, out)
    return write_table_headlines(quality)
