"""The audit log of a site: a line for every message that left it."""

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genfed.core.errors import RecordError
from genfed.core.files import make_folder, open_file
from genfed.core.json_text import read_json
from genfed.core.text import one_line
from genfed.deployment.site_settings import LocatedSite
from genfed.deployment.trial_description import LONGEST_TRIAL

AUDIT = "audit.jsonl"
"""File name of the audit log, in the folder of the site."""
WORDS = ("at", "run", "method", "seed", "phase", "round")
"""Names of the texts of its lines."""


@dataclass(frozen=True)
class AuditEntry:
    """A line of the audit log: one message that left the site."""

    at: str
    """Time in ISO 8601, UTC."""
    run: str
    method: str
    seed: str
    phase: str
    round: str
    bytes: int
    says: tuple[str, ...]
    """Names of the values in the message beside the uploaded record."""
    fields: tuple[str, ...]
    """Field names of the uploaded record."""


def describe_request(head: Mapping[str, Any]) -> dict[str, Any]:
    """Returns run, method, seed, phase and round of a request, as text; empty text for what it does not say."""
    try:
        text = head.get("open")
        trial = read_json(text, longest=LONGEST_TRIAL) if isinstance(text, str) else {}
        step = head.get("step") or {}
        phase = step.get("phase", head.get("ask", "?"))
        said = {"run": trial.get("run", ""), "method": trial.get("label", ""), "seed": trial.get("seed", "")}
        said |= {"phase": phase, "round": step.get("round", "")}
        return {name: one_line(value, 64) for name, value in said.items()}
    except (RecordError, TypeError, AttributeError):
        return {"run": "", "method": "", "seed": "", "phase": "?", "round": ""}


def write_audit(site: LocatedSite, head: Mapping[str, Any], size: int, says: list[str], fields: list[str]) -> None:
    """Adds a line to the audit log; it is on the disk when this returns.

    Args:
        site: the site.
        head: the header of the request.
        size: bytes that leave.
        says: names of the values in the answer.
        fields: field names of the uploaded record.
    """
    line = {"at": utc_now()} | describe_request(head) | {"bytes": size, "says": says, "fields": fields}
    make_folder(site.folder)
    with open_file(site.folder / AUDIT, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_audit(site: LocatedSite) -> list[AuditEntry]:
    """Returns the lines of the audit log, the oldest first. A line that was half written at a power cut is skipped."""
    file, left = site.folder / AUDIT, []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            shown: dict[str, Any] = {name: one_line(row[name]) for name in WORDS}
            shown |= {name: tuple(one_line(each) for each in row[name]) for name in ("says", "fields")}
            left.append(AuditEntry(bytes=int(row["bytes"]), **shown))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return left


def utc_now() -> str:
    """Returns the time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
