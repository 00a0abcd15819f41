"""The measures of classifiers beside accuracy, as the page shows them: by method, and by class."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from genfed.core.text import NAME, one_line
from genfed.report.figures import draw_confusion
from genfed.report.formatting import NONE, TextTable, format_percent, format_score
from genfed.report.results import Measures, Report
from genfed.report.summary_table import AUROC, Spread

_COLUMNS: dict[str, tuple[Callable[[Measures], float | None], Callable[[float], str]]] = {
    "balanced accuracy %": (lambda m: m.balanced_accuracy, format_percent),
    "macro F1 %": (lambda m: m.f1, format_percent),
    AUROC: (lambda m: m.auroc, format_score),
    "ECE": (lambda m: m.ece, format_score),
}
"""How each measure is read and shown, by its heading."""


class ClassSection(NamedTuple):
    """How a method classifies each class."""

    picture: Markup
    """Confusion matrix."""
    table: TextTable
    """Sensitivity and specificity."""


class MeasuresSection(NamedTuple):
    """What the page shows of the measures beside accuracy."""

    by_method: TextTable
    by_class: dict[str, ClassSection]
    """Sections by method. {}: there are too many classes for confusion matrices."""


def build_measures_section(report: Report) -> MeasuresSection | None:
    """Returns what the page shows; None: nothing was measured, by an older version."""
    if not _is_measured(report):
        return None
    counted = [method for method in report.methods if any(trial.confusion for trial in report.of(method))]
    by_class = {
        method: ClassSection(draw_confusion(report, method), build_class_table(report, method)) for method in counted
    }
    return MeasuresSection(build_measures_table(report), by_class)


def build_measures_table(report: Report) -> TextTable:
    """Returns the measures of every method: their means over clients, with the deviation over seeds, and those of the
    client where they are worst. Averaged over seeds.
    """
    rows = []
    for method in report.methods:
        trials = report.of(method)
        means = (_format_cell(name, [trial.measures for trial in trials], deviation=True) for name in _COLUMNS)
        worst = (_format_cell(name, [trial.worst_measures for trial in trials]) for name in _COLUMNS)
        rows.append((method, *means, *worst))
    head = ("method", *_COLUMNS, *(f"worst client: {name}" for name in _COLUMNS))
    return TextTable(head, rows)


def join_measures_tables(reports: Sequence[tuple[str, Report]]) -> TextTable | None:
    """Returns the measures of named runs in one table; None: none of them has any."""
    tables = [(name, build_measures_table(report)) for name, report in reports if _is_measured(report)]
    rows = [(name, *row) for name, table in tables for row in table.rows]
    return TextTable(("run", *tables[0][1].head), rows) if tables else None


def _is_measured(report: Report) -> bool:
    return any(trial.measures for trial in report.trials)


def _format_cell(name: str, of_seeds: Sequence[Measures | None], deviation: bool = False) -> str:
    read, show = _COLUMNS[name]
    values = [value for each in of_seeds if each and (value := read(each)) is not None]
    if not values:
        return NONE
    spread = Spread.of(values)
    return show(spread.mean) + (f" ± {show(spread.sd)}" if deviation and spread.sd is not None else "")


def build_class_table(report: Report, method: str) -> TextTable:
    """Returns sensitivity and specificity of every class for a method, averaged over seeds."""
    trials = [trial for trial in report.of(method) if trial.by_class]
    rows = [
        (
            one_line(name, NAME),
            _average_shares([trial.by_class[label].sensitivity for trial in trials]),
            _average_shares([trial.by_class[label].specificity for trial in trials]),
        )
        for label, name in enumerate(report.classes)
    ]
    return TextTable(("class", "sensitivity %", "specificity %"), rows)


def _average_shares(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return format_percent(fmean(known)) if known else NONE
