"""The figures of the page of a synthetic table."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genfed.metrics.table_columns import AlignedColumn
from genfed.metrics.tables import SiteQuality
from genfed.report.svg import COLORS, INK, render_svg, shorten

CATEGORIES, SITES = 8, 30
"""Largest number of categories, and of sites, that a figure shows."""
_BINS = 30
_REAL: Any = {"color": INK, "alpha": 0.3, "linewidth": 0}  # as in the legend of the page
_SYNTHETIC = COLORS[0]
_CUT = (0.005, 0.995)


def draw_marginal(column: AlignedColumn) -> Markup:
    """Draws the shares of the real rows (the first table) beside those of the synthetic rows in one column."""

    def paint(axes: Axes) -> None:
        if column.categories is None:
            _paint_numbers(axes, column)
        else:
            _paint_categories(axes, column)
        axes.tick_params(labelsize=8)

    return render_svg(paint, f"Real and synthetic rows by {shorten(column.name, 40)}", {}, 2.0, width=3.4)


def _paint_numbers(axes: Axes, column: AlignedColumn) -> None:
    there = [rows[~np.isnan(rows)] for rows in column.tables]
    ends = [np.quantile(rows, _CUT) for rows in there if len(rows)]
    if not ends:
        axes.text(0.5, 0.5, "all values are missing", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    low, high = float(np.min(ends)), float(np.max(ends))
    whole = all((rows == np.round(rows)).all() for rows in there) and high - low < _BINS
    edges = np.arange(low - 0.5, high + 1) if whole else np.linspace(low, high if high > low else low + 1, _BINS + 1)
    real, synthetic = (
        100 * np.histogram(np.clip(rows, low, high), edges)[0] / len(all_rows)
        for rows, all_rows in zip(there, column.tables, strict=True)
    )
    axes.stairs(real, edges, fill=True, **_REAL)
    axes.stairs(synthetic, edges, color=_SYNTHETIC, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.set_ylabel("% of rows", fontsize=8)
    if column.times:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: column.show(value)[:10]))


def _paint_categories(axes: Axes, column: AlignedColumn) -> None:
    names = ["missing", *(column.categories or ())]
    shares = [100 * np.bincount(rows + 1, minlength=len(names)) / len(rows) for rows in column.tables]
    order = np.argsort(-shares[0], kind="stable")
    shown = [int(k) for k in order if shares[0][k] or shares[1][k]][:CATEGORIES]
    bars = [[float(share[k]) for k in shown] for share in shares]
    labels = [shorten(names[k], 16) for k in shown]
    rest = [float(100 - sum(each)) for each in bars]
    if max(rest) > 1e-6:
        labels.append("all others")
        bars = [[*each, max(0.0, left)] for each, left in zip(bars, rest, strict=True)]
    places = np.arange(len(labels))
    axes.barh(places - 0.2, bars[0], 0.4, **_REAL)
    axes.barh(places + 0.2, bars[1], 0.4, color=_SYNTHETIC)
    axes.set_yticks(places, labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("% of rows", fontsize=8)


def draw_pairs(names: Sequence[str], scores: Sequence[Sequence[float]]) -> Markup:
    """Draws how alike the relation of each two columns is, [columns, columns]; the darker, the less alike."""
    loss = 1 - np.array(scores)
    shades = LinearSegmentedColormap.from_list("", [(*mpl.colors.to_rgb(COLORS[1]), alpha) for alpha in (0.03, 1)])

    def paint(axes: Axes) -> None:
        image = axes.imshow(100 * loss, shades, vmin=0, vmax=max(5.0, 100 * float(loss.max())), interpolation="none")
        axes.set_xticks(range(len(names)), [shorten(name, 16) for name in names], rotation=90)
        axes.set_yticks(range(len(names)), [shorten(name, 16) for name in names])
        axes.tick_params(labelsize=8 if len(names) <= 20 else 5, length=0)
        axes.spines[:].set_visible(False)
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.colorbar(image, label="points below 100 %", fraction=0.04, pad=0.02)

    return render_svg(paint, "How unlike the relation of each two columns is", {}, 4.6)


def draw_sites(sites: Sequence[SiteQuality]) -> Markup:
    """Draws how much worse each site is served than as many rows of all sites, the worst site first."""
    shown = sorted(sites, key=lambda site: -site.shortfall)[:SITES]
    points = [100 * site.shortfall for site in shown]

    def paint(axes: Axes) -> None:
        axes.barh(range(len(shown)), points, 0.6, color=[COLORS[4], *[COLORS[0]] * (len(shown) - 1)])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [shorten(site.name, 24) for site in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("points of pair trends below as many rows of all sites")

    return render_svg(paint, "How much worse each site is served", {}, 0.8 + 0.24 * len(shown))
