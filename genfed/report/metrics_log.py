"""metrics.jsonl: one JSON object per line, appended as a run goes on and cut back to its checkpoint on resume."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from genfed.core.errors import GenfedError
from genfed.core.files import atomic_write, open_file
from genfed.report.results import Row

MACHINE = ("seconds", "lost")
"""Columns that depend on the machine: times, and workers that were lost."""


class MetricsLog:
    """Appends rows to `path`, which is made if need be. A line counts once its newline is on disk: one that was
    torn by a kill is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        self._file = open_file(path, "ab")

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows, not yet durably; numbers that are not finite become null, since JSON has none."""
        for row in rows:
            self._file.write(_encode(row) + b"\n")

    def flush(self) -> None:
        """Returns when every row written is on disk: to be called before a checkpoint that counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns every row. A last line without a newline was cut off when the process was killed, and is excluded.

    Raises:
        GenfedError: there is no such file, or the line that is named is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise GenfedError(f"{path}: no such file") from None
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise GenfedError(
                f"{path}, line {number}: not a row of metrics; put the file back as it was, or start anew with --fresh"
            )
        rows.append(row)
    return rows


def digest_rows(rows: Iterable[Row], before: str = "") -> str:
    """Returns a fingerprint of rows in their order, which is the same in every run of one config: columns that depend
    on the machine (`MACHINE`) do not count.

    Args:
        rows: the rows.
        before: the fingerprint of the rows before them. Empty: there are none.
    """
    for row in rows:
        same = {name: value for name, value in row.items() if name not in MACHINE}
        before = hashlib.blake2b(before.encode() + _encode(same), digest_size=16).hexdigest()
    return before


def _encode(row: Row) -> bytes:
    return json.dumps(_finite(dict(row)), allow_nan=False, ensure_ascii=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def retain_metrics(path: Path, select: Callable[[list[dict[str, Any]]], Iterable[Row]]) -> None:
    """Keeps the rows that `select` returns of all rows, atomically; a file that is not there is made empty."""
    kept = select(read_metrics(path) if path.exists() else [])
    with atomic_write(path, durable=True) as part, MetricsLog(part) as file:
        file.write(kept)
