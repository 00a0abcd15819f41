"""What the audits of a run found: audits.json, and the tables of the page's section on privacy."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pydantic
from rich.table import Table

from genfed.audits.findings import AuditResult, Audits, Estimate, Reading, ReportImage, Verdict
from genfed.core.errors import GenfedError
from genfed.core.files import atomic_write
from genfed.privacy.guarantee import Level, PrivacyGuarantee
from genfed.report.results import Report
from genfed.report.summary_table import NONE, TextTable, rich_table

FILE = "audits.json"
NOTHING = Audits((), ())
"""Where nothing was looked for."""
VERDICTS: dict[Verdict, str] = {
    "leak": "leak",
    "no leak found": "no leak found",
    "underpowered": "underpowered: it misses the planted leak",
    "false positive": "false positive: it finds a leak where there is none",
}
SEES = {
    "samples": "synthetic examples",
    "state": "all that the server holds in the end",
    "classifiers": "clients' final classifiers",
    "uploads": "what a client uploads",
}
UNCOVERED = (
    "Attacks that were not made: to find nothing says so of these attacks alone, by an attacker as described. It is "
    "no proof; only a formal guarantee (differential privacy) bounds what any attacker could learn.",
    "Attributes of persons and the mix of classes at a client, but where an audit above asks for them; and attackers "
    "who break the rules to learn more.",
    "What leaks by the way: numbers of examples, the timing of clients, and, where nothing above says that they stay "
    "at home, losses and scores that clients tell the server.",
    "Whoever reads a client's disk: what a client keeps for itself is not protected there.",
)


class ShownAudit(NamedTuple):
    """One audit of one trial, to be shown."""

    title: str
    result: AuditResult
    cells: TextTable | None
    """A row per attack and number; None: it was not made."""
    sizes: str
    images: Sequence[ReportImage]


class PrivacySection(NamedTuple):
    """The section."""

    verdict: str
    """How many readings found what, in a sentence."""
    lines: Sequence[str]
    """A sentence per reading."""
    shared: TextTable
    protection: Sequence[str]
    """A sentence per method."""
    audits: Sequence[ShownAudit]
    uncovered: Sequence[str]


def write_audits(audits: Audits, run: Path) -> None:
    """audits.json, whole or not at all."""
    with atomic_write(run / FILE) as part:
        part.write_bytes(pydantic.TypeAdapter(Audits).dump_json(audits, indent=1))


def read_audits(run: Path) -> Audits | None:
    """What was found so far; None: nothing was looked for.

    Raises:
        GenfedError: the file is something else, or of another version.
    """
    file = run / FILE
    if not file.exists():
        return None
    try:
        return pydantic.TypeAdapter(Audits).validate_json(file.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise GenfedError(f"{file} is no record of audits ({first['msg']}); delete it to make them again") from None


def describe_protections(report: Report) -> list[str]:
    """What differential privacy protects, a sentence or two per method; empty: none was asked for."""
    lines = []
    for method in report.methods:
        found = [trial.protection for trial in report.of(method) if trial.protection]
        if found:
            lines.append(f"{method}: {_protects(found)}")
    return lines


def describe_exposure(report: Report) -> Sequence[str]:
    """What that protection does not cover."""
    return EXPOSED[report.protected or "example"]


def _protects(found: Sequence[PrivacyGuarantee]) -> str:
    first, least = found[0], min(each.noise_multiplier[0] for each in found)
    most = max(each.noise_multiplier[1] for each in found)
    noise = f"{least:.3g}" if f"{least:.3g}" == f"{most:.3g}" else f"{least:.3g} to {most:.3g}"
    spent = [each.epsilon for each in found if each.epsilon is not None]
    of_clients = first.level == "client"
    if of_clients and not first.steps:
        return "no client uploads anything, so nothing of a client leaves it."
    what, steps = ("updates", "rounds") if of_clients else ("gradients", "steps")
    how = (
        f"{first.mechanism}; noise multiplier {noise}, {what} cut to {first.max_grad_norm:g}, up to "
        f"{first.steps:,} {steps}, {first.accountant.upper()} accountant of Opacus."
    )
    if len(spent) < len(found):
        return f"{what} were cut to {first.max_grad_norm:g}, and no noise was added: ε = ∞, nothing is protected."
    if any(each.reproducible_noise for each in found):
        return (
            f"not private. Its noise can be drawn again from the run's seed; from the operating system it would be "
            f"ε = {max(spent):.2f} at δ = {first.delta:g}. {how}"
        )
    whose = (
        "each of its models by itself, which all hold the same examples"
        if first.pooled
        else "the client that spent most, over all phases and rounds of one seed"
    )
    budget = "" if first.target is None else f" The budget was {first.target:g}."
    protected = (
        "every client with all its examples, against whoever sees what the server sends and holds in the end and knows "
        "all other clients; "
        + (
            "the server too, which sees sums alone, as far as it follows the protocol and enough clients are honest"
            if first.distributed
            else "the server itself sees each upload, and is trusted"
        )
        if of_clients
        else "every single training example, against whoever sees all that the client sends and knows all other "
        "examples"
    )
    return f"ε = {max(spent):.2f} at δ = {first.delta:g} ({whose}) for {protected}.{budget} {how}"


EXPOSED: dict[Level, Sequence[str]] = {
    "example": (
        "Numbers of examples are taken to be public: they weigh means and set how batches are drawn. Losses, scores on "
        "data like a client's own and counts of arithmetic do not leave clients; timing does.",
        "A person with k examples has k times the ε, and more δ. Methods and seeds of a run are there to be compared: "
        "whoever published all of them would add up their ε.",
        "What was made here by somebody who holds all the data is outside of it: who has what, real pictures, measures "
        "of generators, and audits.",
    ),
    "client": (
        "Who takes part in which round follows from the seed and is taken to be known, unless clients are drawn in "
        "secret: then ε holds against those who do not learn who was asked, which this report, the run's log and its "
        "metrics tell. Architectures and numbers of examples are taken to be known.",
        "Methods and seeds of a run are there to be compared: whoever published all of them would add up their ε.",
        "What the server knows of clients is outside of it: this report with its losses, scores, failures and times, "
        "who has what, real pictures, measures of generators, and audits.",
    ),
}


def build_privacy_section(audits: Audits) -> PrivacySection:
    """What the page shows."""
    lines = [line for result in audits.results for line in _lines(result)]
    made = [_audit(result) for result in audits.results]
    return PrivacySection(_verdict(audits), lines, _shared(audits), _protection(audits), made, UNCOVERED)


def _verdict(audits: Audits) -> str:
    found = Counter(reading.verdict for result in audits.results for reading in result.readings)
    left = sum(bool(result.not_possible) for result in audits.results)
    counts = ", ".join(f"{verdict}: {found[verdict]}" for verdict in VERDICTS)
    return f"Attacks by verdict: {counts}. Audits that could not be run: {left}."


def privacy_tables(audits: Audits) -> list[Table]:
    """The same for a terminal: a table per audit."""
    tables = []
    for label in dict.fromkeys(result.audit for result in audits.results):
        rows: list[tuple[str, ...]] = []
        for result in (r for r in audits.results if r.audit == label):
            if result.not_possible:
                rows.append((result.method, result.not_possible, NONE, NONE, NONE, "not made"))
            for reading in result.readings:
                judged = (_number(part[reading.judged_by]) for part in (reading.run, reading.control, reading.null))
                rows.append(
                    (result.method, f"{reading.attack}: {reading.judged_by}", *judged, VERDICTS[reading.verdict])
                )
        head = ("method", "attack and number", "this run", "planted leak", "nothing to find", "verdict")
        tables.append(rich_table(f"Privacy: {label}", TextTable(head, rows)))
    return tables


def _shared(audits: Audits) -> TextTable:
    rows = [(s.method, s.phase, s.down or "nothing", s.up or "nothing") for s in audits.shared]
    return TextTable(("method", "phase", "the server sends", "a client sends"), rows)


def _protection(audits: Audits) -> list[str]:
    """What protects the uploads of each method, as its phases say."""
    found = []
    for method in dict.fromkeys(s.method for s in audits.shared):
        sent = [s for s in audits.shared if s.method == method and s.up]
        bare = ", ".join(s.phase for s in sent if not s.protection)
        told = [f"{s.phase}: {s.protection}" for s in sent if s.protection]
        if bare:
            told.append(f"{bare}: no noise is added (ε = ∞), and the server can read every upload")
        found.append(f"{method}. {'; '.join(told) if told else 'No client sends anything'}.")
    return found


def _audit(result: AuditResult) -> ShownAudit:
    rows = [
        (
            reading.attack,
            name,
            _number(number),
            _number(reading.control[name]),
            _number(reading.null[name]),
            VERDICTS[reading.verdict] if name == reading.judged_by else "",
        )
        for reading in result.readings
        for name, number in reading.run.items()
    ]
    head = ("attack", "number", "this run", "planted leak", "nothing to find", "verdict")
    sizes = ", ".join(f"{count:,} {name}" for name, count in result.sizes.items())
    title = f"{result.audit} on {result.method}"
    return ShownAudit(title, result, TextTable(head, rows) if rows else None, sizes, result.images)


def _lines(result: AuditResult) -> list[str]:
    where = f"{result.method}, {result.audit}"
    if result.not_possible:
        return [f"{where}: not made ({result.not_possible})."]  # it may begin with a label, which has no capital
    return [f"{where}, {reading.attack}: {_sentence(reading)}" for reading in result.readings]


def _sentence(reading: Reading) -> str:
    number, chance = reading.run[reading.judged_by], f"{reading.chance:g}"
    told = f"{reading.judged_by} {_number(number)}, where {chance} is no leak"
    return f"{VERDICTS[reading.verdict]} ({told})."


def _number(number: Estimate) -> str:
    if number.unreadable:
        return "cannot be read"
    return f"{_digits(number.value)} [{_digits(number.low)}, {_digits(number.high)}]"


def _digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
