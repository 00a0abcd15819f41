"""The summary of a run: one row per method, for the terminal, for documents and for the page."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from rich.table import Table

from genfed.report.formatting import (
    NONE,
    TextTable,
    build_rich_table,
    format_bytes,
    format_count,
    format_percent,
    format_points,
    format_score,
    format_seconds,
)
from genfed.report.results import Report, TrialResult

LOCAL = "local"
"""The label of the baseline in which every client trains alone."""
CENTRALISED = "centralised"
"""The label of the upper baseline: all clients' data in one place."""
HEADINGS = ("method", "seeds", "accuracy %", "over local", "worst client %", "up", "down", "seconds")
AUROC = "AUROC"
"""The column after the accuracy, where there are two classes: of these, one is often rare."""
EPSILON = "ε"
"""The column after the accuracy, where differential privacy was requested."""
OWN = "own data %"
"""The column after the worst client, where clients' data differ."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and how far the seeds lie apart."""

    mean: float
    sd: float | None
    """Standard deviation with n − 1; None for a single seed."""
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def accuracy_spread(trials: Sequence[TrialResult]) -> Spread:
    """Returns the spread of the accuracies of a method's trials, in [0, 1]."""
    return Spread.of([trial.accuracy for trial in trials])


def gain_over(report: Report, method: str, baseline: str = LOCAL) -> Spread | None:
    """Returns the accuracy of `method` minus that of `baseline`, seed by seed, in [-1, 1]; None where no seed has both.

    Args:
        report: The run.
        method: Label of the method.
        baseline: Label of the method to compare with.
    """
    before = {trial.seed: trial.accuracy for trial in report.of(baseline)}
    gains = [trial.accuracy - before[trial.seed] for trial in report.of(method) if trial.seed in before]
    return Spread.of(gains) if gains and method != baseline else None


def shows_personal(*reports: Report) -> bool:
    """Returns whether accuracy on clients' own data is shown: where it was measured, and clients' data differ."""
    return any(report.skewed and any(trial.own for trial in report.trials) for report in reports)


def shows_auroc(*reports: Report) -> bool:
    """Returns whether AUROC is shown: where there are two classes, and it was measured."""
    return any(len(report.classes) == 2 and any(trial.measures for trial in report.trials) for report in reports)


def shows_epsilon(*reports: Report) -> bool:
    """Returns whether ε is shown: where differential privacy was requested."""
    return any(report.protected for report in reports)


def format_epsilon(trials: Sequence[TrialResult], *, protected: bool) -> str:
    """Returns the largest ε of a method's trials with its δ; a dash where nothing is uploaded, so nothing protected.

    Args:
        trials: The trials.
        protected: Whether differential privacy was requested in their run.
    """
    found = [trial.protection for trial in trials if trial.protection]
    if protected and all(each.is_void for each in found):
        return NONE
    if not found or any(each.epsilon is None for each in found):
        return "∞"
    if any(each.reproducible_noise for each in found):
        return "not private"
    return f"{max(each.epsilon or 0.0 for each in found):.2f} (δ = {found[0].delta:g})"


def average_trials(trials: Sequence[TrialResult], read: Callable[[TrialResult], float | None]) -> float | None:
    """Returns the mean of what `read` gives over the trials that have it; None where none has."""
    values = [value for value in map(read, trials) if value is not None]
    return fmean(values) if values else None


def format_personal_accuracy(
    trials: Sequence[TrialResult], read: Callable[[TrialResult], float | None] = lambda t: t.personal_accuracy
) -> str:
    """Returns the mean over trials of an accuracy on clients' own data, in percent; a dash where none has it."""
    value = average_trials(trials, read)
    return NONE if value is None else format_percent(value)


def build_summary(report: Report) -> TextTable:
    """Returns a table with a row for every method."""
    shown = _choose_columns(report)
    return TextTable(_choose_headings(shown), _build_rows(report, shown))


def join_summaries(reports: Sequence[tuple[str, Report]]) -> TextTable:
    """Returns a table with a row for every method of every named run."""
    every = [report for _, report in reports]
    shown = _choose_columns(*every)
    rows = [(name, *row) for name, report in reports for row in _build_rows(report, shown)]
    return TextTable(("run", *_choose_headings(shown)), rows)


def build_summary_table(report: Report) -> Table:
    """Returns the summary for a terminal, with a legend of at most four lines of 80 characters."""
    cells, seeds = _shorten_seeds(build_summary(report))
    title = f"{report.name}: accuracy on the {report.scored_on} part after the final round{seeds}"
    several = any(len(report.of(method)) > 1 for method in report.methods)
    over = "; ± and [lowest, highest]: over seeds" if several else ""
    own = "; own data: test examples like the client's own" if shows_personal(report) else ""
    legend = [f"over local: points above training alone{over}", f"up, down: bytes per client{own}"]
    if shows_auroc(report):
        legend.append("AUROC: area under the ROC curve, averaged as accuracy is; 0.5: it guesses")
    if report.protected:
        legend.append(f"ε: differential privacy of every {report.protected} (the client that spent most); –: none")
    return build_rich_table(title, cells, "\n".join(legend))


def build_compare_table(reports: Sequence[tuple[str, Report]]) -> Table:
    """Returns named runs side by side for a terminal; the caption warns where they are not comparable."""
    cells, seeds = _shorten_seeds(join_summaries(reports))
    return build_rich_table(f"Runs side by side{seeds}", cells, describe_differences([r for _, r in reports]))


def _shorten_seeds(cells: TextTable) -> tuple[TextTable, str]:
    """Returns a summary without its column of seeds, and words for the title, if all rows have the same number."""
    place = list(cells.head).index("seeds")
    if len(counts := {row[place] for row in cells.rows}) != 1:
        return cells, ""
    head, *rows = [[*row[:place], *row[place + 1 :]] for row in (cells.head, *cells.rows)]
    return TextTable(head, rows), f", {format_count(int(counts.pop()), 'seed')}"


def describe_differences(reports: Sequence[Report]) -> str | None:
    """Returns a sentence on why runs are not comparable; None where they are."""
    facts = [_read_facts(report) for report in reports]
    names = [name for name in (facts[0] if facts else {}) if any(f[name] != facts[0][name] for f in facts)]
    by_seed: dict[str, list[Mapping[str, object]]] = {
        "partition": [report.partition for report in reports],
        "examples": [report.data_digest for report in reports],
    }
    for name, of_runs in by_seed.items():
        if any(_differ(one, other) for one, other in itertools.combinations(of_runs, 2)):
            names.append(name)
    return f"These runs are not comparable: they differ in {', '.join(names)}." if names else None


def _differ(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Returns whether two runs differ in a seed that both know; one on sites, or of an older genfed, knows none."""
    return any(one[seed] != other[seed] for seed in one.keys() & other.keys())


def _read_facts(report: Report) -> dict[str, object]:
    return {
        "classes": report.classes,
        "shape of an example": report.shape,
        "evaluation split": report.scored_on,
        "seeds": sorted({trial.seed for trial in report.trials}),
    }


class _ExtraColumns(NamedTuple):
    """Which columns a summary has beside `HEADINGS`."""

    auroc: bool
    private: bool
    own: bool


def _choose_columns(*reports: Report) -> _ExtraColumns:
    return _ExtraColumns(shows_auroc(*reports), shows_epsilon(*reports), shows_personal(*reports))


def _choose_headings(shown: _ExtraColumns) -> tuple[str, ...]:
    after = {
        "accuracy %": (AUROC,) * shown.auroc + (EPSILON,) * shown.private,
        "worst client %": (OWN,) * shown.own,
    }
    return tuple(name for heading in HEADINGS for name in (heading, *after.get(heading, ())))


def _build_rows(report: Report, shown: _ExtraColumns) -> list[tuple[str, ...]]:
    return [_build_row(report, method, shown) for method in report.methods]


def _build_row(report: Report, method: str, shown: _ExtraColumns) -> tuple[str, ...]:
    trials, gain = report.of(method), gain_over(report, method)
    score = accuracy_spread(trials)
    return (
        method,
        str(len(trials)),
        format_percent(score.mean) + ("" if score.sd is None else f" ± {format_percent(score.sd)}"),
        *((_format_auroc(trials),) if shown.auroc else ()),
        *((format_epsilon(trials, protected=report.protected is not None),) if shown.private else ()),
        NONE if gain is None else format_points(gain.mean) + _format_range(gain),
        format_percent(fmean(trial.worst for trial in trials)),
        *((format_personal_accuracy(trials),) if shown.own else ()),
        format_bytes(fmean(trial.up_bytes for trial in trials)),
        format_bytes(fmean(trial.down_bytes for trial in trials)),
        format_seconds(fmean(trial.seconds for trial in trials)),
    )


def _format_auroc(trials: Sequence[TrialResult]) -> str:
    value = average_trials(trials, lambda trial: trial.measures.auroc if trial.measures else None)
    return NONE if value is None else format_score(value)


def _format_range(spread: Spread) -> str:
    return "" if spread.sd is None else f" [{format_points(spread.low)}, {format_points(spread.high)}]"
