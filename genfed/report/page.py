"""The page of a run: one HTML file that loads nothing from anywhere."""

from collections.abc import Mapping, Sequence

from genfed.audits.findings import Audits
from genfed.core.errors import GenfedError
from genfed.report import accuracy_tables, cost_tables, figures
from genfed.report.formatting import TextTable, format_count, format_percent, format_points
from genfed.report.generator_table import build_generator_table
from genfed.report.glossary import describe_metrics
from genfed.report.images import CLASSES, Grid, SetGrid, build_set_rows, build_strips, name_client
from genfed.report.measures_section import build_measures_section, join_measures_tables
from genfed.report.privacy_guarantees import describe_guarantees, describe_limits
from genfed.report.privacy_section import NOTHING, SEES, build_privacy_section
from genfed.report.results import Report
from genfed.report.summary_table import (
    CENTRALISED,
    LOCAL,
    accuracy_spread,
    build_summary,
    describe_differences,
    gain_over,
    join_summaries,
)
from genfed.report.templating import load_templates

VALUES = 50
"""Largest number of values of a natural column that are shown."""
_FAILURES = 200  # lines that are shown


def build_page(report: Report, grids: Mapping[str, Grid | SetGrid], audits: Audits = NOTHING) -> str:
    """Returns the page of a run as HTML.

    Args:
        report: The run.
        grids: Generated images by title; empty: none.
        audits: What was sent, and what attacks found.

    Raises:
        GenfedError: the report has no trial.
    """
    _refuse_empty([(report.name, report)])
    seed = next(iter(report.partition), None)
    failures = [f"{t.method}, seed {t.seed}: {line}" for t in report.trials for line in t.failures]
    return load_templates().get_template("report.html.j2").render(
        report=report,
        headlines=write_headlines(report),
        setting=_describe_setting(report),
        describe_metrics=describe_metrics,
        summary=build_summary(report),
        measures=build_measures_section(report),
        curve=figures.draw_accuracy(report),
        architectures=accuracy_tables.build_architecture_table(report),
        over_clients=accuracy_tables.build_client_spread_table(report),
        clients=accuracy_tables.build_client_table(report),
        own_by_client=accuracy_tables.build_personal_table_by_client(report),
        own_by_value=accuracy_tables.build_personal_table_by_value(report),
        values_shown=VALUES,
        published=accuracy_tables.build_published_table(report),
        generators=build_generator_table(report),
        seed=seed,
        partition=None if seed is None else figures.draw_partition(report, seed),
        grids={t: (g, build_strips(g, report.classes)) for t, g in grids.items() if isinstance(g, Grid)},
        sets={t: (g, build_set_rows(g, report.classes)) for t, g in grids.items() if isinstance(g, SetGrid)},
        classes_shown=CLASSES,
        name_client=name_client,
        privacy=build_privacy_section(audits),
        seen_by=SEES,
        guarantees=describe_guarantees(report),
        limits=describe_limits(report),
        losses=figures.draw_losses(report),
        costs=cost_tables.build_cost_table(report),
        radar=figures.draw_radar(report, cost_tables.collect_costs(report)),
        phases=cost_tables.build_phase_table(report),
        sent=figures.draw_megabytes(report),
        time=figures.draw_seconds(report),
        failures=failures[:_FAILURES],
        failures_count=len(failures),
        environment=_build_environment_table(report),
    )  # fmt: skip


def build_compare_page(reports: Sequence[tuple[str, Report]]) -> str:
    """Returns the page with named runs side by side as HTML.

    Raises:
        GenfedError: there is no run, or one has no trial.
    """
    _refuse_empty(reports)
    return (
        load_templates()
        .get_template("compare.html.j2")
        .render(
            names=[name for name, _ in reports],
            differences=describe_differences([report for _, report in reports]),
            describe_metrics=describe_metrics,
            summary=join_summaries(reports),
            measures=join_measures_tables(reports),
            picture=figures.draw_comparison(reports),
        )
    )


def _refuse_empty(reports: Sequence[tuple[str, Report]]) -> None:
    if not reports:
        raise GenfedError("there is no run to show")
    for name, report in reports:
        if not report.trials:
            raise GenfedError(f"{name}: the report has no finished trial to show")


def write_headlines(report: Report) -> list[str]:
    """Returns a sentence for every method that is no baseline (for every method if all are), in the config's order."""
    chosen = [method for method in report.methods if method not in (LOCAL, CENTRALISED)] or report.methods
    return [_write_headline(report, method) for method in chosen]


def _write_headline(report: Report, method: str) -> str:
    score = accuracy_spread(report.of(method))
    spread = "" if score.sd is None else f" ± {format_percent(score.sd)}"
    parts = []
    for baseline, words in ((LOCAL, "local training"), (CENTRALISED, "training on all data in one place")):
        if gain := gain_over(report, method, baseline):
            points = format_points(gain.mean).lstrip("+-")
            parts.append(f"{points} points {'below' if gain.mean < 0 else 'above'} {words}")
    return (
        f"{method}: {format_percent(score.mean)}{spread} % accuracy on the {report.scored_on} part"
        f"{', ' + ' and '.join(parts) if parts else ''}."
    )


def _describe_setting(report: Report) -> str:
    clients = accuracy_tables.find_largest_trial(report).clients
    architectures, seeds = len({c.architecture for c in clients}), len({t.seed for t in report.trials})
    return (
        f"{format_count(len(clients), 'client')}, {format_count(architectures, 'architecture')}, "
        f"{format_count(seeds, 'seed')}"
    )


def _build_environment_table(report: Report) -> TextTable:
    at = report.environment
    rows = [
        ("started (UTC)", at.started),
        ("seeds", ", ".join(str(seed) for seed in sorted({t.seed for t in report.trials}))),
        ("processor", f"{at.processor}, {format_count(at.cores, 'core')}"),
        ("device", f"{at.device}, {at.precision}"),
        ("workers", f"{at.workers}, {format_count(at.threads, 'thread')} each"),
        ("versions", ", ".join(f"{name} {version}" for name, version in at.versions.items())),
    ]
    return TextTable((), rows)
