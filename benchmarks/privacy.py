"""The tables of docs/privacy.md: `python -m benchmarks.privacy table RUN`, or `python -m benchmarks.privacy curves FOLDER`.

table RUN: what every method of a run that was audited comes to, as Markdown; configs/privacy/table.toml says how it is made.
curves FOLDER: configs/privacy/curves.toml for ε of 1, 3, 8 and ∞, under runs/; FOLDER has mnist.npz.
"""

import math
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import genfed
from genfed.audits.findings import AuditResult, Estimate, Reading
from genfed.report.privacy_section import read_audits
from genfed.report.results import Report, TrialResult, from_json

CONFIG = Path(__file__).parent.parent / "configs" / "privacy" / "curves.toml"
BUDGETS = (1.0, 3.0, 8.0, None)
UTILITY = "| accuracy % | Fréchet (of real ones) | right class % | trained on samples % | MND | up | down |"
CANNOT_TELL = {"underpowered": " (underpowered)", "false positive": " (false positive)"}


def table(run: str) -> None:
    """Prints utility, samples and bytes of each method, then what each attack got."""
    report, audits = from_json((Path(run) / "report.json").read_text("utf-8")), read_audits(Path(run))
    print(_utility(report), end="\n\n")
    print("| attack | method | judged by | run | planted | nothing to find | TPR at 0.1 % | TPR at 1 % |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for done in sorted(audits.results if audits else (), key=lambda done: done.audit):
        print(*_attacks(done), sep="\n")


def _utility(report: Report) -> str:
    rows = [f"| method {UTILITY}", "|---" + "|---:" * 7 + "|"]
    for trial in report.trials:
        sent = [f"{way / 1e6:.2f} MB" for way in (trial.up_bytes, trial.down_bytes)]
        cells = [trial.method, f"{100 * trial.accuracy:.1f}", *_samples(trial), *sent]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _samples(trial: TrialResult) -> Sequence[str]:
    if (q := trial.quality) is None:
        return ("–",) * 4
    frechet = f"{q.frechet:.1f} ({q.frechet_real:.1f})"
    return frechet, f"{100 * q.right_class:.1f}", f"{100 * q.train_on_synthetic:.1f}", f"{q.memorisation:.2f}"


def _attacks(done: AuditResult) -> Sequence[str]:
    if done.not_possible:
        return [f"| {done.audit} | {done.method} | not made: {done.not_possible} | | | | | |"]
    return [_attack(done, reading) for reading in done.readings]


def _attack(done: AuditResult, reading: Reading) -> str:
    numbers = [told[reading.judged_by] for told in (reading.run, reading.control, reading.null)]
    rates = [_rate(reading.run.get(f"TPR at {rate} % FPR")) for rate in ("0.1", "1")]
    told = [f"**{_words(numbers[0])}**" if reading.verdict == "leak" else _words(numbers[0]), *map(_words, numbers[1:])]
    told[0] += CANNOT_TELL.get(reading.verdict, "")
    return "| " + " | ".join([f"{done.audit}: {reading.attack}", done.method, reading.judged_by, *told, *rates]) + " |"


def _words(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _rate(found: Estimate | None) -> str:
    if found is None or found.unreadable:
        return "–"
    return f"{100 * found.value:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def curves(folder: str) -> None:
    """Runs all four and prints a row per method and ε."""
    print(f"| method | ε {UTILITY}", "|---" + "|---:" * 8 + "|", sep="\n")
    for epsilon in BUDGETS:
        config = tomllib.loads(CONFIG.read_text("utf-8"))
        config["data"]["path"] = str(Path(folder) / "mnist.npz")
        if epsilon is None:
            del config["privacy"]["epsilon"]
        config["privacy"] |= {"noise_multiplier": 0.0} if epsilon is None else {"epsilon": epsilon}
        report = genfed.run(config, out=Path("runs") / f"curves-{epsilon or math.inf:g}", on_existing="resume")
        for row in _utility(report).splitlines()[2:]:
            _, method, rest = row.split(" ", 2)
            print(f"| {method} | {epsilon or '∞'} {rest}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("table", "curves"):
        sys.exit(__doc__)
    (table if sys.argv[1] == "table" else curves)(sys.argv[2])
