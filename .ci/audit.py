"""Looks the installed packages up in an index of known vulnerabilities, by pip-audit.

Fails (1) if one of them has a known vulnerability that is not in ACCEPTED. An index that does not answer is reported,
and is no failure: it says nothing about the packages.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 300
ACCEPTED: dict[str, str] = {}
"""Reasons why a vulnerability does not reach genfed, by its id."""


def ask_index(report: Path) -> str:
    """Writes pip-audit's answer to `report`. Returns its last line, which says why where there is no answer."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--output", str(report)],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    return (done.stderr.strip() or "no answer").splitlines()[-1]


def judge(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Returns a line for each vulnerability that is not accepted, and the number of packages that the index knew."""
    known = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in known
        for found in package["vulns"]
        if not {found["id"], *found.get("aliases", ())} & ACCEPTED.keys()
    ]
    return lines, len(known)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        why = ask_index(report)
        try:
            packages = json.loads(report.read_text("utf-8"))["dependencies"]
        except (OSError, ValueError, KeyError):
            print(f"NOT CHECKED for known vulnerabilities: the index did not answer ({why[:300]})")
            return 0
    lines, known = judge(packages)
    if not known:
        print(f"NOT CHECKED for known vulnerabilities: the index knows none of {len(packages)} packages")
        return 0
    print(f"{known} of {len(packages)} packages looked up, {len(lines)} known vulnerabilities")
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
