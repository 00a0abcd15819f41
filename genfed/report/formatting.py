"""Tables of text, and numbers as a report shows them."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from genfed.core.text import escape_controls, one_line

NONE = "–"
"""The cell of a number that does not exist."""
_UNBROKEN = ("run", "method", "accuracy %", "AUROC", "up", "down")
"""Headings of the columns whose cells stay on one line in a narrow terminal."""


class TextTable(NamedTuple):
    """A table of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def build_rich_table(title: str, cells: TextTable, caption: str | None = None) -> Table:
    """Returns the table for a terminal, aligned to the left, with `caption` below it; None: nothing below."""
    table = Table(
        title=Text(f"{title}\n", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption=None if caption is None else Text(f"\n{caption}"),
        caption_justify="left",
    )
    numeric = _find_numeric_columns(cells)
    for heading, right in zip(cells.head, numeric, strict=True):
        shown = heading.replace(" ", "\n", 1) if heading.count(" ") > 1 else heading  # narrow where cells are
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(shown, justify=justify, no_wrap=heading in _UNBROKEN, overflow="fold")
    for row in cells.rows:
        # [a,b] stays on one line; Text, since a label may hold [brackets] that markup would swallow
        table.add_row(*(Text(cell.replace(", ", ",") if n else cell) for cell, n in zip(row, numeric, strict=True)))
    return table


def format_markdown(cells: TextTable, caption: str | None = None) -> str:
    """Returns the table in Markdown, with `caption` below it (None: nothing below); it ends in a newline."""
    head, *body = [[_escape_cell(cell) for cell in row] for row in (cells.head, *cells.rows)]
    rules = ["---:" if numeric else "---" for numeric in _find_numeric_columns(cells)]
    lines = [f"| {' | '.join(row)} |" for row in (head, rules, *body)]
    return "\n".join([*lines, *(["", escape_controls(caption).replace("<", "&lt;")] if caption else [])]) + "\n"


def _find_numeric_columns(cells: TextTable) -> list[bool]:
    """Returns for each column whether every cell is a number, or a dash in its place."""
    number = re.compile(r"[+-]?\d|[–∞]")
    return [bool(cells.rows) and all(number.match(row[i]) for row in cells.rows) for i in range(len(cells.head))]


def format_percent(value: float) -> str:
    """Returns a share in [0, 1] in percent: 81.2."""
    return f"{100 * value:.1f}"


def format_score(value: float) -> str:
    """Returns a score in [0, 1] that is no share: 0.912."""
    return f"{value:.3f}"


def format_points(value: float) -> str:
    """Returns a difference of two shares in percentage points: +6.3."""
    return f"{100 * value:+.1f}"


def format_bytes(count: float) -> str:
    """Returns a number of bytes in steps of 1000: 0 B, 999 B, 1.2 kB, 3.4 MB."""
    return _scale_by_thousands(count, ("B", "kB", "MB", "GB", "TB"))


def format_amount(count: float) -> str:
    """Returns a large number in steps of 1000: 999, 1.2 k, 3.4 M."""
    return _scale_by_thousands(count, ("", "k", "M", "G", "T", "P", "E")).rstrip()


def format_seconds(value: float) -> str:
    """Returns seconds, with one decimal below 100: 0.4, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def format_count(number: int, noun: str) -> str:
    """Returns a number with its noun, in the plural where it is not 1: 1 client, 1,234 clients."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _scale_by_thousands(count: float, units: Sequence[str]) -> str:
    power = next((p for p in range(len(units)) if round(count / 1000**p, 1 if p else 0) < 1000), len(units) - 1)
    return f"{count / 1000**power:.{1 if power else 0}f} {units[power]}"


def _escape_cell(cell: str) -> str:
    line = one_line(cell.replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return line.replace("](", "]\\(").replace("][", "]\\[")  # no links, and no pictures
