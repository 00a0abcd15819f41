"""Tables of what is measured besides accuracy: generators, spread over clients, costs, and figures of papers."""

from collections.abc import Callable, Sequence
from statistics import fmean

from rich.table import Table

from genfed.report.results import GeneratorQuality, Report, TrialResult
from genfed.report.summary_table import (
    NONE,
    TextTable,
    accuracy_spread,
    format_amount,
    format_bytes,
    format_percent,
    format_points,
    format_seconds,
    personal_accuracy_spread,
    rich_table,
    shows_personal,
)

_GENERATORS: dict[str, Callable[[GeneratorQuality], float | None]] = {
    "Fréchet": lambda q: q.frechet,
    "of real": lambda q: q.frechet_real,
    "precision": lambda q: q.precision,
    "recall": lambda q: q.recall,
    "density": lambda q: q.density,
    "coverage": lambda q: q.coverage,
    "right class %": lambda q: 100 * q.right_class,
    "TSTR %": lambda q: 100 * q.train_on_synthetic,
    "TRTR %": lambda q: 100 * q.train_on_real,
    "MND": lambda q: q.memorisation,
    "MND features": lambda q: q.memorisation_features,
}
_LPIPS: dict[str, Callable[[GeneratorQuality], float | None]] = {"MND LPIPS": lambda q: q.memorisation_lpips}
"""Shown where a run has the weights."""
_FOR_CLIENTS: dict[str, Callable[[GeneratorQuality], float | None]] = {
    "teacher sure %": lambda q: None if q.certainty is None else 100 * q.certainty,
    "client match %": lambda q: None if q.client_match is None else 100 * q.client_match,
    "of real clients %": lambda q: None if q.clients_apart is None else 100 * q.clients_apart,
}
"""Shown where a method made images for clients."""
GENERATORS_EXPLAINED = (
    "Fréchet: distance of samples to held-out examples in the features of a small classifier trained on the clients' "
    "real examples (not Inception's: it compares within this run only); of real: that of as many training examples.",
    "Precision: samples that look real; recall: real examples that samples come near; density and coverage: the same, "
    "less swayed by outliers (k = 5). Density may be above 1.",
    "Right class: samples that this classifier takes for the class asked for.",
    "TSTR: the same network trained on samples alone, tested on held-out examples; TRTR: trained on the real ones.",
    "MND: how many times nearer to a training example its nearest sample is than its nearest held-out example, a mean, "
    "by input and by features: above 1 is memorisation.",
    "A generator of features (GeFL-F) is judged among the features that its clients share, by an mlp trained on those "
    "of real examples: only its right class, TSTR and TRTR can be set beside another generator's.",
    "For images made for clients, teacher sure: the probability that the client's own classifier gives the class asked "
    "for; client match: those taken for their own client's by a network that tells clients apart; of real clients: its "
    "accuracy on real examples.",
)


def generator_table(report: Report) -> TextTable | None:
    """A row per method whose generator was judged, means over seeds; None where there is none."""
    judged = {method: [trial.quality for trial in report.of(method) if trial.quality] for method in report.methods}
    every = [q for each in judged.values() for q in each]
    shown = _GENERATORS | {n: of for n, of in (_LPIPS | _FOR_CLIENTS).items() if any(of(q) is not None for q in every)}

    def cell(name: str, each: Sequence[GeneratorQuality]) -> str:
        values = [value for value in map(shown[name], each) if value is not None]
        return _decimals(name, fmean(values)) if values else NONE

    rows = [(method, *(cell(name, each) for name in shown)) for method, each in judged.items() if each]
    return TextTable(("method", *shown), rows) if rows else None


def published_table(report: Report) -> TextTable | None:
    """The run's own figures beside those of papers; None where none are named."""
    rows = []
    for method, figure in report.published.items():
        final, best = accuracy_spread(report.of(method)), _mean(report.of(method), lambda trial: trial.best)
        ours = best if figure.metric == "best round on test" else final.mean
        difference = NONE if ours is None else format_points(ours - figure.accuracy / 100)
        own = (NONE if best is None else format_percent(best), format_percent(final.mean), difference)
        rows.append((method, f"{figure.accuracy:g}", figure.metric, *own, figure.source))
    head = ("method", "published %", "which is", "our best round %", "our final round %", "difference", "source")
    return TextTable(head, rows) if rows else None


def client_spread_table(report: Report) -> TextTable:
    """How accuracy is spread over clients: a row per method, means over seeds. Where clients are not alike, also that
    on data like their own: the mean and the worst.
    """
    rows, own = [], shows_personal(report)
    for method in report.methods:
        trials = report.of(method)
        spread = zip(*((t.worst, *t.quartiles, max(c.accuracy for c in t.clients)) for t in trials), strict=True)
        more = (
            (personal_accuracy_spread(trials), personal_accuracy_spread(trials, lambda t: t.personal_worst))
            if own
            else ()
        )
        rows.append((method, *(format_percent(fmean(values)) for values in spread), *more))
    head = ("method", "worst", "first quartile", "median", "third quartile", "best")
    return TextTable((*head, "own, mean", "own, worst") if own else head, rows)


def personal_table_by_client(report: Report) -> TextTable | None:
    """Accuracy on data like each client's own, of one seed; None where clients are alike or it was not measured."""
    if not shows_personal(report):
        return None
    seed = next(trial.seed for trial in report.trials if trial.own)
    trials = {method: next((t for t in report.of(method) if t.seed == seed), None) for method in report.methods}
    scores = {m: {s.client: s.accuracy for s in t.own} for m, t in trials.items() if t}
    architectures = {s.client: s.architecture for t in trials.values() if t for s in t.own}
    counts, natural = report.partition.get(str(seed)), report.natural.get(str(seed))
    rows = [
        (
            str(client),
            architectures[client],
            str(sum(counts[client])) if counts else NONE,
            *([", ".join(natural[client])] if natural else []),
            *(format_percent(of[client]) if client in of else NONE for of in scores.values()),
        )
        for client in sorted(architectures)
    ]
    head = ("client", "architecture", "examples", *([report.column or "value"] if natural else []))
    return TextTable((*head, *scores), rows)


def personal_table_by_value(report: Report) -> TextTable | None:
    """Accuracy of the clients that have a value of the natural column, each on data like its own: a row per value, a
    mean over clients and then over seeds. None where clients are not made by a column.
    """
    if not (shows_personal(report) and report.natural):
        return None

    def cell(method: str, value: str) -> str:
        means = []
        for trial in report.of(method):
            holders = {i for i, own in enumerate(report.natural.get(str(trial.seed), ())) if value in own}
            if found := [score.accuracy for score in trial.own if score.client in holders]:
                means.append(fmean(found))
        return format_percent(fmean(means)) if means else NONE

    values = sorted({value for clients in report.natural.values() for own in clients for value in own})
    rows = [(value, *(cell(method, value) for method in report.methods)) for value in values]
    return TextTable((report.column or "value", *report.methods), rows)


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


def cost_table(report: Report) -> TextTable:
    """What a client pays, a row per method, means over the seeds where it was counted."""
    rows = []
    for method in report.methods:
        values = [(_mean(report.of(method), of), shown) for of, shown in _COSTS.values()]
        rows.append((method, *(NONE if value is None else shown(value) for value, shown in values)))
    return TextTable(("method", *_COSTS), rows)


def cost_axes(report: Report) -> dict[str, dict[str, float]]:
    """The same as numbers: cost → method → amount, 0 where there is none."""
    return {name: {m: _mean(report.of(m), of) or 0.0 for m in report.methods} for name, (of, _) in _COSTS.items()}


def other_tables(report: Report) -> list[Table]:
    """For the terminal, those that there is something in."""
    tables = []
    if cells := generator_table(report):
        tables.append(rich_table("Generators", cells, "\n".join(GENERATORS_EXPLAINED)))
    if cells := published_table(report):
        caption = (
            f"Best round: each client's own, of those scored, on the {report.scored_on} part, which is too high; it "
            "stands here to compare with papers that report it. The final round is the result."
        )
        tables.append(rich_table("Beside published figures", cells, caption))
    return tables


def _mean(trials: Sequence[TrialResult], of: Callable[[TrialResult], float | None]) -> float | None:
    values = [value for value in map(of, trials) if value is not None]
    return fmean(values) if values else None


def _decimals(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith("%") else f"{value:.2f}" if value < 100 else f"{value:.0f}"
