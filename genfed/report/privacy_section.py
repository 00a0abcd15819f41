"""What the audits of a run found: audits.json, and the tables of the page's section on privacy."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pydantic
from rich.table import Table

from genfed.audits.findings import AuditResult, Audits, Estimate, Reading, ReportImage, Verdict
from genfed.core.errors import GenfedError
from genfed.core.files import write_file
from genfed.report.formatting import NONE, TextTable, build_rich_table

FILE = "audits.json"
NOTHING = Audits((), ())
"""The record of a run without audits."""
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
    "Other attacks. A verdict speaks of one attack by one attacker, as described above. It is no proof. Only a formal "
    "guarantee (differential privacy) bounds what any attacker can learn.",
    "Attributes of persons and the class distribution of a client, unless an audit above asks for them; and malicious "
    "parties, who break the protocol to learn more.",
    "Side information: numbers of examples, timing of clients and, unless this page says that they stay at the client, "
    "losses and accuracies that clients send to the server.",
    "Anyone who can read a client's disk: what a client stores is not protected there.",
)


class ShownAudit(NamedTuple):
    """One audit of one trial, as the page shows it."""

    title: str
    result: AuditResult
    cells: TextTable | None
    """A row per attack and number; None: the audit could not be run."""
    sizes: str
    images: Sequence[ReportImage]


class PrivacySection(NamedTuple):
    """The page's section on privacy."""

    verdict: str
    """How many attacks ended with which verdict, in a sentence."""
    lines: Sequence[str]
    """A sentence per attack."""
    shared: TextTable
    protection: Sequence[str]
    """A sentence per method."""
    audits: Sequence[ShownAudit]
    uncovered: Sequence[str]


def write_audits(audits: Audits, run: Path) -> None:
    """Writes audits.json into the folder of a run, completely or not at all."""
    write_file(run / FILE, pydantic.TypeAdapter(Audits).dump_json(audits, indent=1))


def read_audits(run: Path) -> Audits | None:
    """Reads audits.json from the folder of a run; None: the run was not audited.

    Raises:
        GenfedError: the file is something else, or was written by another version.
    """
    file = run / FILE
    if not file.exists():
        return None
    try:
        return pydantic.TypeAdapter(Audits).validate_json(file.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise GenfedError(f"{file} is no record of audits ({first['msg']}); delete it to make them again") from None


def build_privacy_section(audits: Audits) -> PrivacySection:
    """Returns the section of a run with these audits."""
    lines = [line for result in audits.results for line in _describe_result(result)]
    shown = [_show_audit(result) for result in audits.results]
    return PrivacySection(
        _count_verdicts(audits), lines, _build_exchange_table(audits), _describe_protection(audits), shown, UNCOVERED
    )


def build_privacy_tables(audits: Audits) -> list[Table]:
    """Returns the findings for a terminal, a table per audit."""
    tables = []
    for label in dict.fromkeys(result.audit for result in audits.results):
        rows = [row for r in audits.results if r.audit == label for row in _build_reading_rows(r)]
        head = ("method", "attack", "this run", "planted leak", "nothing to find", "verdict")
        legend = [text for verdict, text in VERDICTS.items() if text != verdict and any(verdict in row for row in rows)]
        tables.append(build_rich_table(f"Privacy: {label}", TextTable(head, rows), "\n".join(legend) or None))
    return tables


def _build_reading_rows(result: AuditResult) -> list[tuple[str, ...]]:
    if result.not_possible:
        return [(result.method, result.not_possible, NONE, NONE, NONE, "not run")]
    rows = []
    for reading in result.readings:
        name = reading.judged_by
        numbers = [_format_estimate(part[name]) for part in (reading.run, reading.control, reading.null)]
        rows.append((result.method, f"{reading.attack} ({name})", *numbers, reading.verdict))
    return rows


def _count_verdicts(audits: Audits) -> str:
    found = Counter(reading.verdict for result in audits.results for reading in result.readings)
    counts = ", ".join(f"{verdict}: {found[verdict]}" for verdict in VERDICTS)
    failed = sum(bool(result.not_possible) for result in audits.results)
    return f"Attacks by verdict: {counts}. Audits that could not be run: {failed}."


def _build_exchange_table(audits: Audits) -> TextTable:
    rows = [(s.method, s.phase, s.down or "nothing", s.up or "nothing") for s in audits.shared]
    return TextTable(("method", "phase", "the server sends", "a client sends"), rows)


def _describe_protection(audits: Audits) -> list[str]:
    """Returns what protects the uploads of each method, as its phases declare it."""
    found = []
    for method in dict.fromkeys(s.method for s in audits.shared):
        sent = [s for s in audits.shared if s.method == method and s.up]
        bare = ", ".join(s.phase for s in sent if not s.protection)
        parts = [f"{s.phase}: {s.protection}" for s in sent if s.protection]
        if bare:
            parts.append(f"{bare}: no noise is added (ε = ∞), and the server can read every upload")
        found.append(f"{method}. {'; '.join(parts) if parts else 'No client sends anything'}.")
    return found


def _show_audit(result: AuditResult) -> ShownAudit:
    rows = [
        (
            reading.attack,
            name,
            reading.verdict if name == reading.judged_by else "",
            *(_format_estimate(part[name]) for part in (reading.run, reading.control, reading.null)),
        )
        for reading in result.readings
        for name in reading.run
    ]
    head = ("attack", "measured by", "verdict", "this run", "planted leak", "nothing to find")
    sizes = ", ".join(f"{count:,} {name}" for name, count in result.sizes.items())
    title = f"{result.audit} on {result.method}"
    return ShownAudit(title, result, TextTable(head, rows) if rows else None, sizes, result.images)


def _describe_result(result: AuditResult) -> list[str]:
    where = f"{result.method}, {result.audit}"
    if result.not_possible:
        return [f"{where}: could not be run ({result.not_possible})."]  # it may begin with a label, without a capital
    return [f"{where}, {reading.attack}: {_describe_reading(reading)}" for reading in result.readings]


def _describe_reading(reading: Reading) -> str:
    number = _format_estimate(reading.run[reading.judged_by])
    return f"{VERDICTS[reading.verdict]} ({reading.judged_by}: {number}; {reading.chance:g} means no leak)."


def _format_estimate(number: Estimate) -> str:
    if number.unreadable:
        return "too few examples"
    return f"{_format_digits(number.value)} [{_format_digits(number.low)}, {_format_digits(number.high)}]"


def _format_digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
