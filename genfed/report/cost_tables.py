"""Tables of what a run cost, for one client and by phase."""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean

from genfed.report.formatting import NONE, TextTable, format_amount, format_bytes, format_seconds
from genfed.report.results import PhaseCost, Report, TrialResult
from genfed.report.summary_table import average_trials

_COSTS: dict[str, tuple[Callable[[TrialResult], float | None], Callable[[float], str]]] = {
    "bytes": (lambda trial: trial.up_bytes + trial.down_bytes, format_bytes),
    "work": (lambda trial: trial.work_seconds, lambda value: f"{format_seconds(value)} s"),
    "FLOPs": (lambda trial: trial.flops, format_amount),
    "parameters": (lambda trial: trial.parameters, format_amount),
    "sampling": (
        lambda trial: 1000 * q.seconds / q.samples if (q := trial.quality) and not q.stored else None,
        lambda value: f"{value:.2g} s",
    ),
}


def build_cost_table(report: Report) -> TextTable:
    """Returns what one client pays, a row per method, averaged over the seeds in which it was counted."""
    rows = []
    for method in report.methods:
        values = [(average_trials(report.of(method), read), show) for read, show in _COSTS.values()]
        rows.append((method, *(NONE if value is None else show(value) for value, show in values)))
    return TextTable(("method", *_COSTS), rows)


def collect_costs(report: Report) -> dict[str, dict[str, float]]:
    """Returns the same as numbers: cost → method → amount; 0 where it was not counted."""
    return {
        name: {method: average_trials(report.of(method), read) or 0.0 for method in report.methods}
        for name, (read, _) in _COSTS.items()
    }


def build_phase_table(report: Report) -> TextTable:
    """Returns what each phase cost, a row per method and phase, averaged over seeds."""
    rows = []
    for method in report.methods:
        by_phase: dict[str, list[PhaseCost]] = defaultdict(list)
        for trial in report.of(method):
            for cost in trial.costs:
                by_phase[cost.phase].append(cost)
        rows += [_build_phase_row(method, phase, costs) for phase, costs in by_phase.items()]
    head = ("method", "phase", "rounds", "up per client", "down per client", "client seconds", "seconds")
    return TextTable(head, rows)


def _build_phase_row(method: str, phase: str, costs: list[PhaseCost]) -> tuple[str, ...]:
    return (
        method,
        phase,
        f"{fmean(c.rounds for c in costs):g}",
        format_bytes(fmean(c.up_bytes for c in costs)),
        format_bytes(fmean(c.down_bytes for c in costs)),
        format_seconds(fmean(c.client_seconds for c in costs)),
        format_seconds(fmean(c.seconds for c in costs)),
    )
