"""Writes the golden values anew, and says which are others than before: `python -m tests.golden`."""

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.golden.cases import FILE, Refusal, Table, cases, golden, machine, outcome


def main() -> None:
    torch.set_num_threads(1)
    before = golden()
    now: dict[str, Table | None] = {}
    why: dict[str, str] = {}
    if before["machine"] != machine():
        say(f"machine: {before['machine']} → {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (case, config) in enumerate(cases().items()):
            out = Path(folder) / str(number)
            try:
                now[case] = outcome(config(), out)
            except Refusal as error:
                if out.exists():  # it had begun
                    raise
                now[case], why[case] = None, f": {error}"
    gone = {case: value for case, value in before["cases"].items() if case not in now}
    for case, value in now.items():
        if case not in before["cases"]:
            same = [old for old, was in gone.items() if value and was == value]
            say(f"{case}: new → {shown(value)}{why.get(case, '')}" + (f" (as {same[0]} was)" if same else ""))
        elif value != before["cases"][case]:
            say(f"{case}: {shown(before['cases'][case])} → {shown(value)}{why.get(case, '')}")
    for case, value in gone.items():
        say(f"{case}: {shown(value)} → gone")
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(value)}" for case, value in now.items())
    FILE.write_text(f'{{\n "machine": {json.dumps(machine())},\n "cases": {{\n{lines}\n }}\n}}\n')


def shown(value: Table | None) -> str:
    return f"{value['sha256'][:12]} {value['summary']}" if value else "refused"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


main()
