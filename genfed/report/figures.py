"""The figures of a report, as SVG that takes its text color and font from the page around it."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from genfed.report.results import Point, Report, TrialResult
from genfed.report.summary_table import CENTRALISED, LOCAL
from genfed.report.svg import COLORS, INK, render_svg, shorten

_DOTS = 60  # more clients than this are drawn as a heat map
_NAMED = 20  # more classes than this have numbers at an axis
_WRITTEN = 12  # more classes than this have no numbers in the cells of a confusion matrix


def draw_accuracy(report: Report) -> Markup:
    """Draws accuracy by finished rounds: per method the mean over seeds, in a band from the worst to the best seed.

    A thin line continues the final value of each baseline.
    """
    marks = _choose_marks(report.methods)

    def paint(axes: Axes) -> None:
        for method in report.methods:
            trials = report.of(method)
            x, mean = _draw_line(axes, [_map_points(t.curve, lambda p: p.step, 100) for t in trials], marks[method])
            if x and (len(x) == 1 or method in (LOCAL, CENTRALISED)):
                axes.axhline(mean[-1], color=marks[method].get_color(), linestyle=marks[method].get_linestyle(), lw=0.7)
        axes.set_xlabel("finished rounds, over all phases")
        axes.set_ylabel(f"accuracy on the {report.scored_on} part, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return render_svg(paint, "Accuracy of every method by finished rounds", marks)


def draw_losses(report: Report) -> dict[str, Markup]:
    """Draws the training loss by round, one figure per phase, with a line and band per method that has the phase."""
    phases = dict.fromkeys(point.phase for trial in report.trials for point in trial.losses)
    return {phase: _draw_loss(report, phase) for phase in phases}


def _draw_loss(report: Report, phase: str) -> Markup:
    curves = {
        method: [
            _map_points([p for p in trial.losses if p.phase == phase], lambda p: p.round + 1)
            for trial in report.of(method)
        ]
        for method in report.methods
    }
    all_marks = _choose_marks(report.methods)
    marks = {method: all_marks[method] for method, curve in curves.items() if any(curve)}

    def paint(axes: Axes) -> None:
        for method, mark in marks.items():
            _draw_line(axes, curves[method], mark)
        axes.set_xlabel("round")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return render_svg(paint, f"Training loss in the phase {phase}, by round", marks)


def draw_partition(report: Report, seed: str) -> Markup:
    """Draws the number of examples of each class at each client: areas of dots, or a heat map for many clients."""
    counts = np.array(report.partition[seed]).T  # [classes, clients]

    def paint(axes: Axes) -> None:
        if counts.shape[1] <= _DOTS:
            y, x = np.nonzero(counts)
            largest = min(90.0, (230 / counts.shape[1]) ** 2)  # points²: neighbors just touch
            axes.scatter(x, y, largest * counts[y, x] / max(1, counts.max()), color=COLORS[0], linewidths=0)
            axes.set_ylim(-0.7, len(counts) - 0.3)
            axes.invert_yaxis()
        else:
            image = axes.imshow(counts, _shades(1), aspect="auto", interpolation="none")
            figure = axes.get_figure()
            assert isinstance(figure, Figure)
            figure.colorbar(image, label="examples", fraction=0.05, pad=0.02)
        if len(report.classes) <= _NAMED:
            axes.set_yticks(range(len(report.classes)), [shorten(name) for name in report.classes])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("client")
        axes.set_ylabel("class")

    height = min(6.0, max(2.0, 0.9 + 0.2 * len(report.classes)))
    return render_svg(paint, f"Examples of each class at each client, seed {seed}", {}, height)


def draw_confusion(report: Report, method: str) -> Markup:
    """Draws how the examples of each class were classified, over all clients and seeds."""
    counts = np.sum([trial.confusion for trial in report.of(method) if trial.confusion], 0)  # [true, predicted]
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))

    def paint(axes: Axes) -> None:
        axes.imshow(shares, _shades(0.75), vmin=0, vmax=100, aspect="auto", interpolation="none")
        if len(shares) <= _WRITTEN:
            for true, said in np.argwhere(shares >= 0.5):
                axes.text(said, true, f"{shares[true, said]:.0f}", ha="center", va="center", fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(shares) <= _NAMED:
            names = [shorten(name, 12) for name in report.classes]
            axes.set_yticks(range(len(names)), names)
            axes.set_xticks(range(len(names)), names, rotation=0 if len("".join(names)) < 50 else 45, ha="center")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")

    height = min(5.2, max(2.2, 1.0 + 0.25 * len(shares)))
    return render_svg(paint, f"Confusion matrix of {method}, in percent of each true class", {}, height)


def draw_megabytes(report: Report) -> Markup:
    """Draws the bytes that one client sends and receives, a bar per method, stacked by phase, averaged over seeds."""
    return _draw_costs(
        report,
        "MB per client, up and down",
        lambda trial: {cost.phase: (cost.up_bytes + cost.down_bytes) / 1e6 for cost in trial.costs},
    )


def draw_seconds(report: Report) -> Markup:
    """Draws the wall time, a bar per method, stacked by phase, averaged over seeds."""
    return _draw_costs(report, "seconds", lambda trial: {cost.phase: cost.seconds for cost in trial.costs})


def _draw_costs(report: Report, unit: str, read: Callable[[TrialResult], Mapping[str, float]]) -> Markup:
    totals = {method: [read(trial) for trial in report.of(method)] for method in report.methods}
    phases = dict.fromkeys(phase for each in totals.values() for trial in each for phase in trial)
    marks = {phase: Line2D([], [], color=COLORS[i % len(COLORS)], marker="s", ls="") for i, phase in enumerate(phases)}
    shown = {p for each in totals.values() for trial in each for p, value in trial.items() if value}

    def paint(axes: Axes) -> None:
        left = np.zeros(len(totals))
        for phase in phases:
            width = np.array([fmean(trial.get(phase, 0.0) for trial in each) for each in totals.values()])
            axes.barh(range(len(totals)), width, 0.6, left, color=marks[phase].get_color())
            left += width
        axes.set_yticks(range(len(totals)), [shorten(method) for method in totals])
        axes.set_ylim(len(totals) - 0.5, -0.5)
        axes.set_xlim(0, left.max() * 1.02 or 1)
        axes.set_xlabel(unit)

    legend = {phase: mark for phase, mark in marks.items() if phase in shown}
    return render_svg(paint, f"{unit[:1].upper()}{unit[1:]}, by method and phase", legend, 1.1 + 0.3 * len(totals))


def draw_radar(report: Report, costs: Mapping[str, Mapping[str, float]]) -> Markup | None:
    """Draws a polygon per method over costs, each as a share of the largest, logarithmic over three decades.

    Args:
        report: The run.
        costs: Cost → method → amount; 0: not counted.

    Returns:
        The figure; None where fewer than three costs are known.
    """
    known = {name: amounts for name, amounts in costs.items() if any(amounts.values())}
    if len(known) < 3:
        return None
    marks = _choose_marks(report.methods)
    angles = math.pi / 2 - np.linspace(0, 2 * math.pi, len(known), endpoint=False)  # clockwise from the top

    def paint(axes: Axes) -> None:
        for method, mark in marks.items():
            shares = [amounts.get(method, 0.0) / max(amounts.values()) for amounts in known.values()]
            radii = [max(0.0, 1 + math.log10(share) / 3) if share else 0.0 for share in shares]
            x, y = np.append(angles, angles[0]), [*radii, radii[0]]
            axes.plot(x, y, color=mark.get_color(), linestyle=mark.get_linestyle(), marker="o", markersize=3, lw=1.4)
        axes.set_xticks(angles % (2 * math.pi), known)
        axes.set_yticks([1 / 3, 2 / 3, 1], ["1/100", "1/10", "largest"])
        axes.set_ylim(0, 1.02)
        assert isinstance(axes, PolarAxes)
        axes.set_rlabel_position(90 - 180 / len(known))  # between two axes
        axes.tick_params(axis="x", pad=12)
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(color=INK, alpha=0.25, linewidth=0.6)
        axes.spines[:].set_visible(False)

    return render_svg(paint, "Costs of every method as shares of the largest", marks, 4.2, "polar")


def draw_comparison(reports: Sequence[tuple[str, Report]]) -> Markup:
    """Draws a row per run and method: a dot per seed, and a bar at their mean."""
    rows = [(f"{name}: {method}", report.of(method)) for name, report in reports for method in report.methods]

    def paint(axes: Axes) -> None:
        for y, (_, trials) in enumerate(rows):
            values = [100 * trial.accuracy for trial in trials]
            axes.plot(values, [y] * len(values), "o", color=COLORS[0], markersize=5, alpha=0.8, markeredgewidth=0)
            axes.plot([fmean(values)], [y], "|", color=INK, markersize=14)
        axes.set_yticks(range(len(rows)), [shorten(label, 32) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="y", alpha=0.2)

    return render_svg(paint, "Accuracy of every run and method, a dot per seed", {}, 0.7 + 0.22 * len(rows))


def _shades(most: float) -> LinearSegmentedColormap:
    """Returns the colors of a heat map, from transparent up to this opacity."""
    return LinearSegmentedColormap.from_list("", [(*mpl.colors.to_rgb(COLORS[0]), alpha) for alpha in (0, most)])


def _choose_marks(methods: Sequence[str]) -> dict[str, Line2D]:
    """Returns the color and line style of each method, the same in every figure."""
    marks = {LOCAL: Line2D([], [], color="#8a8a8a", ls="--"), CENTRALISED: Line2D([], [], color=INK, ls=":")}
    others = [method for method in methods if method not in marks]
    marks |= {method: Line2D([], [], color=COLORS[i % len(COLORS)]) for i, method in enumerate(others)}
    return {method: marks[method] for method in methods}


def _map_points(points: Sequence[Point], x: Callable[[Point], int], scale: float = 1) -> dict[int, float]:
    return {x(p): math.nan if p.value is None else scale * p.value for p in points}


def _draw_line(axes: Axes, curves: Sequence[Mapping[int, float]], mark: Line2D) -> tuple[list[int], list[float]]:
    """Draws mean and band where every seed has a value; returns the mean's x and y."""
    x = sorted(set.intersection(*map(set, curves)))
    y = np.array([[curve[at] for at in x] for curve in curves])  # [seeds, len(x)]
    mean = y.mean(0)
    single = "o" if len(x) == 1 else None
    axes.plot(x, mean, color=mark.get_color(), linestyle=mark.get_linestyle(), marker=single, markersize=4)
    axes.fill_between(x, y.min(0), y.max(0), color=mark.get_color(), alpha=0.2, linewidth=0)
    return x, list(mean)
