"""Tables of accuracy: by architecture, over clients, by client, and beside published figures."""

from statistics import fmean

from genfed.report.formatting import NONE, TextTable, format_percent, format_points
from genfed.report.results import Report, TrialResult
from genfed.report.summary_table import accuracy_spread, average_trials, format_personal_accuracy, shows_personal


def build_architecture_table(report: Report) -> TextTable:
    """Returns the accuracy of every method by architecture, averaged over clients and seeds."""
    clients = find_largest_trial(report).clients
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


def build_client_spread_table(report: Report) -> TextTable:
    """Returns how accuracy is spread over clients, a row per method, averaged over seeds.

    Where clients' data differ, the mean and the worst client's accuracy on their own data stand at the end.
    """
    rows, own = [], shows_personal(report)
    for method in report.methods:
        trials = report.of(method)
        spread = zip(*((t.worst, *t.quartiles, max(c.accuracy for c in t.clients)) for t in trials), strict=True)
        personal = (format_personal_accuracy(trials), format_personal_accuracy(trials, lambda t: t.personal_worst))
        rows.append((method, *(format_percent(fmean(values)) for values in spread), *(personal if own else ())))
    head = ("method", "worst client", "first quartile", "median", "third quartile", "best client")
    return TextTable((*head, "own data, mean", "own data, worst") if own else head, rows)


def build_client_table(report: Report) -> TextTable:
    """Returns the accuracy of every client, for one seed.

    A method with other clients (all data in one place) has no column.
    """
    largest = find_largest_trial(report)
    clients = [(c.client, c.architecture, c.examples) for c in largest.clients]
    columns = {}
    for method in report.methods:
        trial = next((t for t in report.of(method) if t.seed == largest.seed), None)
        scores = {(c.client, c.architecture, c.examples): c.accuracy for c in trial.clients} if trial else {}
        if scores.keys() & set(clients):
            columns[method] = scores
    rows = [
        (*map(str, client), *(format_percent(s[client]) if client in s else NONE for s in columns.values()))
        for client in clients
    ]
    return TextTable(("client", "architecture", "examples", *columns), rows)


def build_personal_table_by_client(report: Report) -> TextTable | None:
    """Returns the accuracy of every client on its own data, for one seed; None where it is not shown."""
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


def build_personal_table_by_value(report: Report) -> TextTable | None:
    """Returns the accuracy on clients' own data, a row per value of the natural column by which clients were made.

    A cell is the mean over the clients that have the value, and then over seeds. None where there is no such column.
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


def build_published_table(report: Report) -> TextTable | None:
    """Returns the run's accuracy beside that of papers, a row per published figure; None where there are none."""
    rows = []
    for method, figure in report.published.items():
        final, best = accuracy_spread(report.of(method)), average_trials(report.of(method), lambda trial: trial.best)
        ours = best if figure.metric == "best round on test" else final.mean
        difference = NONE if ours is None else format_points(ours - figure.accuracy / 100)
        own = (NONE if best is None else format_percent(best), format_percent(final.mean), difference)
        rows.append((method, f"{figure.accuracy:g}", figure.metric, *own, figure.source))
    head = ("method", "published %", "which is", "our best round %", "our final round %", "difference", "source")
    return TextTable(head, rows) if rows else None


def find_largest_trial(report: Report) -> TrialResult:
    """Returns the first trial with the most clients: one with all data in one place has fewer."""
    return max(report.trials, key=lambda trial: len(trial.clients))
