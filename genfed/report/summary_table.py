"""The numbers of a run as a table: one row per method, for the terminal, for docs and for the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from genfed.privacy.guarantee import Level
from genfed.report.results import Report, TrialResult

LOCAL = "local"
"""The label of the baseline in which every client trains alone."""
CENTRALISED = "centralised"
"""The label of the ceiling: all clients' data in one place."""
NONE = "–"
HEADINGS = (
    "method",
    "seeds",
    "accuracy %",
    "over local",
    "worst %",
    "up",
    "down",
    "seconds",
)

EPSILON = "ε"
"""Stands after the accuracy, where differential privacy was asked for."""
OWN = "own %"
"""Stands after the worst, where clients are not alike."""

EXPLANATION = (
    "Accuracy after the final round: mean ± sd over seeds. Over local: points gained on the same clients with the same "
    "seed, [least, most]. Worst: the worst client. Up and down: bytes per client. Seconds: wall time of a seed."
)
EPSILON_EXPLAINED: dict[Level, str] = {
    "example": "ε: differential privacy of every example of a client, with its δ; the client that spent most, over "
    "seeds.",
    "client": "ε: differential privacy of every client as a whole, with its δ; the client that spent most, over seeds.",
}
OWN_EXPLAINED = "Own: the accuracy of each client on held-out examples like its own, a mean over clients and seeds."


class TextTable(NamedTuple):
    """A table of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds."""

    mean: float
    sd: float | None
    """With n − 1; None for a single seed."""
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def accuracy_spread(trials: Sequence[TrialResult]) -> Spread:
    """Of a method's trials, in [0, 1]."""
    return Spread.of([trial.accuracy for trial in trials])


def gain_over(report: Report, method: str, over: str = LOCAL) -> Spread | None:
    """Accuracy of `method` less that of `over` with the same seed, in [-1, 1]; None where no seed has both."""
    before = {trial.seed: trial.accuracy for trial in report.of(over)}
    gains = [trial.accuracy - before[trial.seed] for trial in report.of(method) if trial.seed in before]
    return Spread.of(gains) if gains and method != over else None


def shows_personal(*reports: Report) -> bool:
    """Whether accuracy on data like the clients' own is shown: where clients of a run are not alike, so that it says
    more than the common one, and where it was measured.
    """
    return any(report.skewed and any(trial.own for trial in report.trials) for report in reports)


def shows_epsilon(*reports: Report) -> bool:
    """Whether ε is shown: where any trial was to be private."""
    return any(report.protected for report in reports)


def worst_epsilon(trials: Sequence[TrialResult]) -> str:
    """The largest ε of a method's trials and its δ."""
    found = [trial.protection for trial in trials if trial.protection]
    if not found or any(each.epsilon is None for each in found):
        return "∞"
    if any(each.reproducible_noise for each in found):
        return "not private"
    return f"{max(each.epsilon or 0.0 for each in found):.2f} (δ = {found[0].delta:g})"


def personal_accuracy_spread(
    trials: Sequence[TrialResult], of: Callable[[TrialResult], float | None] = lambda t: t.personal_accuracy
) -> str:
    """The mean over the trials that have it, in percent; a dash where none has. `of`: what of each."""
    values = [value for value in map(of, trials) if value is not None]
    return format_percent(fmean(values)) if values else NONE


def summary(report: Report) -> TextTable:
    """A row for every method."""
    own, private = shows_personal(report), shows_epsilon(report)
    return TextTable(_headings(own, private), _rows(report, own, private))


def join_summaries(reports: Sequence[tuple[str, Report]]) -> TextTable:
    """A row for every method of every named run."""
    every = [report for _, report in reports]
    own, private = shows_personal(*every), shows_epsilon(*every)
    rows = [(name, *row) for name, report in reports for row in _rows(report, own, private)]
    return TextTable(("run", *_headings(own, private)), rows)


def summary_table(report: Report) -> Table:
    """One row per method: means over seeds, ± standard deviation; gains in points, [least, most]."""
    private = [EPSILON_EXPLAINED[report.protected]] if report.protected else []
    more = private + [OWN_EXPLAINED] * shows_personal(report)
    caption = " ".join([EXPLANATION, *more])
    return rich_table(f"{report.name}: accuracy on the {report.scored_on} part", summary(report), caption)


def compare_table(reports: Sequence[tuple[str, Report]]) -> Table:
    """Named runs side by side; the caption warns where they do not compare like with like."""
    different = ", ".join(find_differences([report for _, report in reports]))
    warning = f"These runs do not compare like with like: they differ in {different}." if different else None
    return rich_table("Runs side by side", join_summaries(reports), warning)


def find_differences(reports: Sequence[Report]) -> tuple[str, ...]:
    """What keeps runs from being compared, in words; empty when nothing does."""
    shared = sorted(set.intersection(*(set(report.partition) for report in reports))) if reports else []
    facts = [_facts(report, shared) for report in reports]
    return tuple(name for name in (facts[0] if facts else {}) if any(f[name] != facts[0][name] for f in facts))


def rich_table(title: str, cells: TextTable, caption: str | None = None) -> Table:
    """The same for a terminal."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, caption=None if caption is None else Text(caption))
    for heading in cells.head:
        named = heading in ("run", "method")
        table.add_column(heading, justify="left" if named else "right", no_wrap=named, overflow="fold")
    for row in cells.rows:
        table.add_row(*map(Text, row))  # Text, since a label may hold [brackets] that markup would swallow
    return table


def to_markdown(table: Table) -> str:
    """The same content as a Markdown table, the caption under it; ends in a newline."""
    columns = [[_plain(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    head, *body = zip(*columns, strict=True)
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rules, *body)]
    caption = ["", str(table.caption)] if table.caption else []
    return "\n".join([*lines, *caption]) + "\n"


def format_percent(value: float) -> str:
    """A share in [0, 1] as 81.2."""
    return f"{100 * value:.1f}"


def format_points(value: float) -> str:
    """A difference of shares as +6.3."""
    return f"{100 * value:+.1f}"


def format_bytes(count: float) -> str:
    """Bytes for people, in steps of 1000: 0 B, 999 B, 1.2 kB, 3.4 MB."""
    return _in_thousands(count, ("B", "kB", "MB", "GB", "TB"))


def format_amount(count: float) -> str:
    """A large number of anything, likewise: 999, 1.2 k, 3.4 M."""
    return _in_thousands(count, ("", "k", "M", "G", "T", "P", "E")).rstrip()


def _in_thousands(count: float, units: Sequence[str]) -> str:
    power = next((p for p in range(len(units)) if round(count / 1000**p, 1 if p else 0) < 1000), len(units) - 1)
    return f"{count / 1000**power:.{1 if power else 0}f} {units[power]}"


def format_seconds(value: float) -> str:
    """0.4, 12.3, 1,234: in seconds, with decimals while they mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _facts(report: Report, partition_seeds: Sequence[str]) -> dict[str, object]:
    return {
        "classes": report.classes,
        "shape of an example": report.shape,
        "part scored on": report.scored_on,
        "seeds": sorted({trial.seed for trial in report.trials}),
        "partition": [report.partition[seed] for seed in partition_seeds],
    }


def _headings(own: bool, private: bool) -> tuple[str, ...]:
    after = {"accuracy %": (EPSILON,) * private, "worst %": (OWN,) * own}
    return tuple(name for heading in HEADINGS for name in (heading, *after.get(heading, ())))


def _rows(report: Report, own: bool, private: bool) -> list[tuple[str, ...]]:
    return [_row(report, method, report.of(method), own, private) for method in report.methods]


def _row(report: Report, method: str, trials: Sequence[TrialResult], own: bool, private: bool) -> tuple[str, ...]:
    score, more = accuracy_spread(trials), gain_over(report, method)
    return (
        method,
        str(len(trials)),
        f"{format_percent(score.mean)} ± {NONE if score.sd is None else format_percent(score.sd)}",
        *((worst_epsilon(trials),) if private else ()),
        NONE if more is None else format_points(more.mean) + _range(more),
        format_percent(fmean(trial.worst for trial in trials)),
        *((personal_accuracy_spread(trials),) if own else ()),
        format_bytes(fmean(trial.up_bytes for trial in trials)),
        format_bytes(fmean(trial.down_bytes for trial in trials)),
        format_seconds(fmean(trial.seconds for trial in trials)),
    )


def _range(spread: Spread) -> str:
    return "" if spread.sd is None else f" [{format_points(spread.low)}, {format_points(spread.high)}]"


def _plain(cell: object) -> str:
    return str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
