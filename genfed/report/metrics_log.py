"""metrics.jsonl: one JSON object per line, appended as a run goes on and cut back to its checkpoint on resume."""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from genfed.core.errors import GenfedError
from genfed.core.files import atomic_write
from genfed.report.results import Row


class MetricsLog:
    """Appends rows to `path`, which is made if need be. A line counts once its newline is on disk: one that was
    torn by a kill is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        self._file = path.open("ab")

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows, not yet durably; numbers that are not finite become null, since JSON has none."""
        for row in rows:
            self._file.write(json.dumps(_finite(dict(row)), allow_nan=False, ensure_ascii=False).encode() + b"\n")

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
            raise GenfedError(f"{path}, line {number}: not a row of metrics")
        rows.append(row)
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def retain_metrics(path: Path, counts: Callable[[dict[str, Any]], bool]) -> None:
    """Keeps the rows that count and drops the others, atomically; a file that is not there is made empty."""
    rows = [row for row in read_metrics(path) if counts(row)] if path.exists() else []
    with atomic_write(path) as part, MetricsLog(part) as kept:
        kept.write(rows)
