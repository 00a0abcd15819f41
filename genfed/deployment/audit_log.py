"""A line for all that left a site, in its own folder."""

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genfed.deployment.site_settings import LocatedSite

AUDIT = "audit.jsonl"
"""In a site's folder: a line for all that left."""


@dataclass(frozen=True)
class AuditEntry:
    """A line of the audit log: something that left the site."""

    at: str
    """ISO 8601, UTC."""
    run: str
    method: str
    seed: str
    phase: str
    round: str
    bytes: int
    says: tuple[str, ...]
    """Names of what was said beside the record."""
    fields: tuple[str, ...]
    """Of the record that was uploaded."""


def describe_request(head: Mapping[str, Any]) -> dict[str, Any]:
    """What a letter asks for."""
    try:
        trial = json.loads(head["open"]) if isinstance(head.get("open"), str) else {}
        step = head.get("step") or {}
        phase = step.get("phase", head.get("ask", "?"))
        said = {"run": trial.get("run", ""), "method": trial.get("label", ""), "seed": trial.get("seed", "")}
        return {
            name: str(value)[:64] for name, value in (said | {"phase": phase, "round": step.get("round", "")}).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {"run": "", "method": "", "seed": "", "phase": "?", "round": ""}


def write_audit(site: LocatedSite, head: Mapping[str, Any], size: int, says: list[str], fields: list[str]) -> None:
    """Adds a line; it is on the disk when this returns."""
    line = {"at": utc_now()} | describe_request(head) | {"bytes": size, "says": says, "fields": fields}
    site.folder.mkdir(parents=True, exist_ok=True)
    with (site.folder / AUDIT).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_audit(site: LocatedSite) -> list[AuditEntry]:
    """All that left the site, the oldest first; a line that a power cut left half written is left out."""
    file, left = site.folder / AUDIT, []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            left.append(AuditEntry(**row | {"says": tuple(row["says"]), "fields": tuple(row["fields"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return left


def utc_now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
