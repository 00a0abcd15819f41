"""The page of a run: one HTML file that loads nothing from anywhere."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import jinja2
from torch import Tensor

from genfed.audits.findings import Audits
from genfed.core.errors import GenfedError
from genfed.report import figures, tables
from genfed.report.images import CLASSES, Grid, SetGrid, _width, client_name, encode_png
from genfed.report.privacy_section import NOTHING, SEES, build_privacy_section, describe_exposure, describe_protections
from genfed.report.results import Report, TrialResult
from genfed.report.summary_table import (
    CENTRALISED,
    LOCAL,
    NONE,
    TextTable,
    accuracy_spread,
    find_differences,
    format_bytes,
    format_percent,
    format_points,
    format_seconds,
    gain_over,
    join_summaries,
    shows_personal,
    summary,
)

VALUES = 50
"""Values of a natural column that are shown."""
_FAILURES = 200  # lines that are shown


class Strip(NamedTuple):
    """One class of a grid: data URLs of PNGs, and the width at which they are shown, in CSS pixels."""

    label: str
    generated: str
    real: str | None
    width: int


class PictureCell(NamedTuple):
    """Pictures of one class: a data URL of a PNG, how wide it is shown in CSS pixels, and what it shows."""

    source: str
    width: int
    alt: str


def page(report: Report, grids: Mapping[str, Grid | SetGrid], audits: Audits = NOTHING) -> str:
    """HTML with everything a reader needs to judge the run; `grids` by title, empty for none; `audits`: what was sent,
    and what attacks found.

    Raises:
        GenfedError: the report has no trial.
    """
    _refuse_empty([(report.name, report)])
    seed = next(iter(report.partition), None)
    failures = [f"{t.method}, seed {t.seed}: {line}" for t in report.trials for line in t.failures]
    return _templates().get_template("report.html.j2").render(
        report=report,
        headlines=write_headlines(report),
        setting=_setting(report),
        summary=summary(report),
        own=shows_personal(report),
        curve=figures.accuracy_figure(report),
        architectures=_by_architecture(report),
        over_clients=tables.client_spread_table(report),
        clients=_by_client(report),
        own_by_client=tables.personal_table_by_client(report),
        own_by_value=tables.personal_table_by_value(report),
        values_shown=VALUES,
        published=tables.published_table(report),
        generators=tables.generator_table(report),
        generators_explained=tables.GENERATORS_EXPLAINED,
        seed=seed,
        partition=None if seed is None else figures.partition_figure(report, seed),
        grids={t: (grid, _strips(grid, report.classes)) for t, grid in grids.items() if isinstance(grid, Grid)},
        sets={t: (grid, _cells(grid, report.classes)) for t, grid in grids.items() if isinstance(grid, SetGrid)},
        classes_shown=CLASSES,
        client_name=client_name,
        privacy=build_privacy_section(audits),
        seen_by=SEES,
        protections=describe_protections(report),
        exposed=describe_exposure(report),
        level=report.protected,
        losses=figures.loss_figures(report),
        costs=tables.cost_table(report),
        radar=figures.radar_figure(report, tables.cost_axes(report)),
        phases=_costs(report),
        sent=figures.cost_figure(report, "MB sent per client, up and down", _megabytes),
        time=figures.cost_figure(report, "seconds", lambda trial: {c.phase: c.seconds for c in trial.costs}),
        failures=failures[:_FAILURES],
        failures_count=len(failures),
        environment=_environment(report),
    )  # fmt: skip


def compare_page(reports: Sequence[tuple[str, Report]]) -> str:
    """HTML with named runs side by side.

    Raises:
        GenfedError: there is no run, or one has no trial.
    """
    _refuse_empty(reports)
    return (
        _templates()
        .get_template("compare.html.j2")
        .render(
            names=[name for name, _ in reports],
            differences=find_differences([report for _, report in reports]),
            summary=join_summaries(reports),
            own=shows_personal(*(report for _, report in reports)),
            picture=figures.compare_figure(reports),
        )
    )


def _refuse_empty(reports: Sequence[tuple[str, Report]]) -> None:
    if not reports:
        raise GenfedError("there is no run to show")
    for name, report in reports:
        if not report.trials:
            raise GenfedError(f"{name}: the report has no finished trial to show")


def write_headlines(report: Report) -> list[str]:
    """A sentence for every method that is not a baseline (for every method if all are), in the config's order."""
    chosen = [method for method in report.methods if method not in (LOCAL, CENTRALISED)] or report.methods
    return [_headline(report, method) for method in chosen]


def _headline(report: Report, method: str) -> str:
    score = accuracy_spread(report.of(method))
    spread = "" if score.sd is None else f" ± {format_percent(score.sd)}"
    parts = []
    for baseline, words in ((LOCAL, "training alone"), (CENTRALISED, "training on all data in one place")):
        if more := gain_over(report, method, baseline):
            parts.append(
                f"{format_points(more.mean).lstrip('+-')} points {'below' if more.mean < 0 else 'above'} {words}"
            )
    seeds = len(report.of(method))
    return (
        f"{method} classifies {format_percent(score.mean)}{spread} % of the {report.scored_on} examples correctly"
        f"{', ' + ' and '.join(parts) if parts else ''}: {_setting(report)}, "
        + (f"mean ± standard deviation of {seeds} seeds." if seeds > 1 else "one seed.")
    )


def _setting(report: Report) -> str:
    clients = _widest(report).clients
    kinds = len({c.architecture for c in clients})
    return f"{_count(len(clients), 'client')} with {_count(kinds, 'architecture')}"


def _widest(report: Report) -> TrialResult:
    """The first trial with the most clients: a centralised one has fewer than there are."""
    return max(report.trials, key=lambda trial: len(trial.clients))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _by_architecture(report: Report) -> TextTable:
    clients = _widest(report).clients
    names = dict.fromkeys(c.architecture for c in clients)

    def cell(method: str, name: str) -> str:
        groups = [[c.accuracy for c in t.clients if c.architecture == name] for t in report.of(method)]
        means = [fmean(group) for group in groups if group]
        return format_percent(fmean(means)) if means else NONE

    rows = [
        (name, str(sum(c.architecture == name for c in clients)), *(cell(m, name) for m in report.methods))
        for name in names
    ]
    return TextTable(("architecture", "clients", *report.methods), rows)


def _by_client(report: Report) -> TextTable:
    """Of the first seed. A method whose clients are others (one client with everybody's data) has no column."""
    widest = _widest(report)
    clients = [(c.client, c.architecture, c.examples) for c in widest.clients]
    columns = {}
    for method in report.methods:
        trial = next((t for t in report.of(method) if t.seed == widest.seed), None)
        scores = {(c.client, c.architecture, c.examples): c.accuracy for c in trial.clients} if trial else {}
        if scores.keys() & set(clients):
            columns[method] = scores
    rows = [
        (*map(str, client), *(format_percent(s[client]) if client in s else NONE for s in columns.values()))
        for client in clients
    ]
    return TextTable(("client", "architecture", "examples", *columns), rows)


def _megabytes(trial: TrialResult) -> dict[str, float]:
    return {cost.phase: (cost.up_bytes + cost.down_bytes) / 1e6 for cost in trial.costs}


def _costs(report: Report) -> TextTable:
    rows = []
    for method in report.methods:
        by_phase = defaultdict(list)
        for trial in report.of(method):
            for cost in trial.costs:
                by_phase[cost.phase].append(cost)
        for phase, costs in by_phase.items():
            rows.append(
                (
                    method,
                    phase,
                    f"{fmean(c.rounds for c in costs):g}",
                    format_bytes(fmean(c.up_bytes for c in costs)),
                    format_bytes(fmean(c.down_bytes for c in costs)),
                    format_seconds(fmean(c.client_seconds for c in costs)),
                    format_seconds(fmean(c.seconds for c in costs)),
                )
            )
    return TextTable(
        ("method", "phase", "rounds", "up per client", "down per client", "client seconds", "seconds"), rows
    )


def _environment(report: Report) -> TextTable:
    at = report.environment
    rows = [
        ("started (UTC)", at.started),
        ("seeds", ", ".join(str(seed) for seed in sorted({t.seed for t in report.trials}))),
        ("processor", f"{at.processor}, {_count(at.cores, 'core')}"),
        ("device", f"{at.device}, {at.precision}"),
        ("workers", f"{at.workers}, {_count(at.threads, 'thread')} each"),
        ("versions", ", ".join(f"{name} {version}" for name, version in at.versions.items())),
    ]
    return TextTable((), rows)


def _strips(grid: Grid, classes: Sequence[str]) -> list[Strip]:
    shown = _width(grid.images[0])
    return [
        Strip(name, encode_png(grid.images[k]), None if grid.real is None else encode_png(grid.real[k]), shown)
        for k, name in enumerate(classes[:CLASSES])
    ]


def _cells(grid: SetGrid, classes: Sequence[str]) -> list[tuple[str, list[PictureCell | None]]]:
    """A row per class: its name, a cell per client, and one of real images where there are any."""

    def cell(images: Tensor | None, what: str) -> PictureCell | None:
        return None if images is None else PictureCell(encode_png(images), _width(images), what)

    rows = []
    for k, name in enumerate(classes[:CLASSES]):
        row = [cell(grid.cells.get((k, c)), f"Images of class {name} for {client_name(c)}") for c in grid.shown]
        rows.append((name, row if grid.real is None else [*row, cell(grid.real[k], f"Real images of class {name}")]))
    return rows


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("genfed.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
