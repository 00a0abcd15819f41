"""The page of a synthetic table: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from genfed.core.files import write_file
from genfed.core.text import NAME, one_line
from genfed.metrics.table_columns import align_tables
from genfed.metrics.table_utility import BOOSTING, Fairness, TableScores
from genfed.metrics.tables import TableQuality, WithControls
from genfed.report import table_figures
from genfed.report.formatting import NONE, TextTable, format_percent, format_points
from genfed.report.svg import COLORS
from genfed.report.table_glossary import TABLE_METRICS
from genfed.report.templating import load_templates

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS, PAIRS, RULES = 24, 40, 20
"""Largest number of columns, of columns of the heat map, and of broken rules that are shown."""
_WORST = 8  # pairs
_SITES = 100


def write_table_page(quality: TableQuality, real: DataFrame, synthetic: DataFrame, file: Path) -> None:
    """Writes the page of a synthetic table. It shows shares of the real rows: it is to be protected like them.

    Args:
        quality: What was measured.
        real: The real training rows.
        synthetic: The synthetic rows.
        file: The HTML file to write.

    Raises:
        GenfedError: the tables do not fit together.
    """
    write_file(file, build_table_page(quality, real, synthetic))


def build_table_page(quality: TableQuality, real: DataFrame, synthetic: DataFrame) -> str:
    """Returns the page of a synthetic table as HTML; see `write_table_page`."""
    worst = quality.worst_site
    return load_templates().get_template("table.html.j2").render(
        quality=quality,
        headlines=write_table_headlines(quality),
        warnings=_list_warnings(quality),
        utility=_build_utility_table(quality),
        controls=_build_control_table(quality),
        heat_map=table_figures.draw_pairs(quality.columns[:PAIRS], [row[:PAIRS] for row in quality.pairs[:PAIRS]]),
        worst_pairs=_build_worst_pairs(quality),
        pairs_shown=PAIRS,
        marginals=_draw_marginals(quality, real, synthetic),
        synthetic_color=COLORS[0],
        columns_shown=COLUMNS,
        sites=_build_site_table(quality),
        worst=None if worst is None else one_line(worst.name, NAME),
        worst_points=None if worst is None else format_points(worst.shortfall).lstrip("+"),
        sites_picture=table_figures.draw_sites(quality.sites) if quality.sites else None,
        sites_shown=_SITES,
        privacy=_build_privacy_table(quality),
        coverage=_build_coverage_table(quality),
        tails=_build_tail_table(quality),
        rules=TextTable(
            ("rule of all real rows", "broken by %"),
            [(one_line(r.text, 160), _small_percent(r.broken)) for r in quality.broken_rules[:RULES]],
        ),
        fairness=_build_fairness_tables(quality.fairness) if quality.fairness else (),
        metrics=TABLE_METRICS,
    )  # fmt: skip


def write_table_headlines(quality: TableQuality) -> list[str]:
    """Returns what to know first. Shapes are not among it: columns without relations pass them."""
    learned, real = quality.tstr[BOOSTING], quality.trtr[BOOSTING]
    name, scores = ("AUC", (learned.auc, real.auc)) if learned.auc is not None else ("accuracy", None)
    shown = [_decimals(score) for score in scores or (learned.accuracy, real.accuracy)]
    pairs, apart, near = quality.pair_trends, quality.c2st, quality.nearness
    share = near.nearer
    return [
        f"Gradient boosting that learned from the synthetic rows has an {name} of {shown[0]} on real test rows; "
        f"when it learned from the real rows, it is {shown[1]}.",
        f"Relations between two columns agree to {format_percent(pairs.synthetic)} % "
        f"({format_percent(pairs.independent)} % if columns had no relations, {format_percent(pairs.real)} % for the "
        "real test rows).",
        f"A classifier tells synthetic from real rows with an AUC of {_decimals(apart.synthetic)} (0.5: it cannot; "
        f"{_decimals(apart.independent)} if columns had no relations).",
        f"{format_percent(share.share)} % [{format_percent(share.low)}, {format_percent(share.high)}] of the synthetic "
        f"rows are nearer to a training row than to a held-out row (50 %: no nearer than to others; "
        f"{format_percent(near.nearer_of_copies)} % if all were copies).",
    ]


def _list_warnings(quality: TableQuality) -> list[str]:
    found, near = [], quality.nearness
    if quality.c2st.synthetic > (quality.c2st.independent + quality.c2st.real) / 2:
        found.append("Synthetic rows are easily recognised: do not draw conclusions about relations from them.")
    if quality.pair_trends.synthetic < (quality.pair_trends.independent + quality.pair_trends.real) / 2:
        found.append("Relations between columns are closer to none than to those of real rows.")
    if near.nearer.low > 0.5:
        found.append("Synthetic rows are nearer to training rows than chance explains: some may be near copies.")
    if near.copies > 2 * near.copies_of_held_out + 0.001:
        found.append(
            f"{format_percent(near.copies)} % of the synthetic rows equal a training row; of the held-out rows it is "
            f"{format_percent(near.copies_of_held_out)} %."
        )
    return found


def _decimals(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _small_percent(share: float) -> str:
    return "< 0.1" if 0 < share < 0.001 else format_percent(share)


def _build_utility_table(quality: TableQuality) -> TextTable:
    rows = [
        (name, learned_from, *_score_cells(scores[name]))
        for name in quality.tstr
        for learned_from, scores in (("synthetic (TSTR)", quality.tstr), ("real (TRTR)", quality.trtr))
    ]
    return TextTable(("classifier", "learned from", "AUC", "accuracy", "F1", "balanced accuracy"), rows)


def _score_cells(scores: TableScores) -> tuple[str, ...]:
    return tuple(map(_decimals, (scores.auc, scores.accuracy, scores.f1, scores.balanced_accuracy)))


def _build_control_table(quality: TableQuality) -> TextTable:
    def row(name: str, found: WithControls, show: str) -> tuple[str, ...]:
        cells = (found.synthetic, found.independent, found.real)
        return (name, *(format_percent(v) if show == "%" else _decimals(v) for v in cells))

    return TextTable(
        ("measure", "synthetic rows", "real columns without relations", "real rows"),
        [row("pair trends %", quality.pair_trends, "%"), row("C2ST (AUC)", quality.c2st, "")],
    )


def _build_worst_pairs(quality: TableQuality) -> TextTable:
    pairs = sorted(combinations(range(len(quality.columns)), 2), key=lambda pair: quality.pairs[pair[0]][pair[1]])
    names = [one_line(name, NAME) for name in quality.columns]
    return TextTable(
        ("column", "and", "agree to %"),
        [(names[i], names[j], format_percent(quality.pairs[i][j])) for i, j in pairs[:_WORST]],
    )


def _draw_marginals(quality: TableQuality, real: DataFrame, synthetic: DataFrame) -> list[tuple[str, Markup]]:
    """Returns a title and a figure for each column; of many columns, for those with the lowest shapes."""
    columns = align_tables(real=real, synthetic=synthetic)
    lowest = set(sorted(quality.shapes, key=lambda name: quality.shapes[name])[:COLUMNS])
    return [
        (
            f"{one_line(column.name, NAME)}: shape {format_percent(quality.shapes[column.name])} %",
            table_figures.draw_marginal(column),
        )
        for column in columns
        if column.name in lowest
    ]


def _build_site_table(quality: TableQuality) -> TextTable:
    worst = quality.worst_site
    rows = [
        (
            one_line(site.name, NAME) + (" ← served worst" if site is worst and len(quality.sites) > 1 else ""),
            f"{site.rows:,}",
            format_percent(site.shape),
            format_percent(site.pairs),
            format_percent(site.pairs_of_as_many),
            format_points(site.shortfall),
            NONE if site.tstr is None else _decimals(site.tstr.auc),
            NONE if site.trtr is None else _decimals(site.trtr.auc),
            NONE if site.tstr is None else _decimals(site.tstr.accuracy),
        )
        for site in sorted(quality.sites, key=lambda site: -site.shortfall)[:_SITES]
    ]
    head = (
        "site", "rows", "shape %", "pair trends %", "as many rows of all sites %", "shortfall", "TSTR AUC", "TRTR AUC",
        "TSTR accuracy",
    )  # fmt: skip
    return TextTable(head, rows)


def _build_privacy_table(quality: TableQuality) -> TextTable:
    near, share = quality.nearness, quality.nearness.nearer
    interval = f"{format_percent(share.share)} [{format_percent(share.low)}, {format_percent(share.high)}]"
    return TextTable(
        ("measure", "synthetic rows", "for comparison"),
        [
            ("nearer to training %", interval, f"copies of training rows: {format_percent(near.nearer_of_copies)}"),
            (
                "equal to a training row %",
                _small_percent(near.copies),
                f"held-out rows: {_small_percent(near.copies_of_held_out)}",
            ),
            (
                "nearest over second nearest",
                _decimals(near.ratio),
                f"held-out rows: {_decimals(near.ratio_of_held_out)}",
            ),
        ],
    )


def _build_coverage_table(quality: TableQuality) -> TextTable:
    found = quality.coverage
    gap = max(map(abs, found.missing.values()), default=0.0)
    return TextTable(
        (),
        [
            ("categories that occur %", _optional_percent(found.categories)),
            ("of those below 1 % of the rows %", _optional_percent(found.rare_categories)),
            ("missing values: largest difference of a column, points", format_percent(gap)),
            ("missing in two columns at once: largest difference, points", format_percent(found.missing_together)),
        ],
    )


def _optional_percent(share: float | None) -> str:
    return NONE if share is None else format_percent(share)


def _build_tail_table(quality: TableQuality) -> TextTable:
    """Returns the columns of numbers whose tails are worst."""
    tails = sorted(quality.coverage.tails.items(), key=lambda item: -float(np.abs(item[1]).max()))
    rows = [(one_line(name, NAME), f"{low:+.2f}", f"{high:+.2f}") for name, (low, high) in tails[:COLUMNS]]
    return TextTable(("column", "1 % quantile", "99 % quantile"), rows)


def _build_fairness_tables(fairness: Sequence[Fairness]) -> list[tuple[str, TextTable]]:
    tables = []
    for found, learned_from in zip(fairness, ("synthetic", "real"), strict=True):
        rows = [
            (
                one_line(group.name, NAME),
                f"{group.rows:,}",
                *map(_optional_percent, (group.true_positive, group.false_positive, group.selected)),
            )
            for group in found.groups
        ]
        gaps = (found.true_positive_gap, found.false_positive_gap, found.selection_gap)
        rows.append(("gap", "", *map(_optional_percent, gaps)))
        head = (
            one_line(found.column, NAME),
            "test rows",
            "true positives %",
            "false positives %",
            "taken for positive %",
        )
        tables.append((f"Learned from {learned_from} rows", TextTable(head, rows)))
    return tables
