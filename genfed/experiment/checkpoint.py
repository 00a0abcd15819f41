"""The checkpoint of a trial: its state, and what it counts on in other files."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from genfed.core.errors import GenfedError, RecordError
from genfed.core.method import Method
from genfed.core.record import load
from genfed.core.task import Task
from genfed.report.metrics_log import digest_rows
from genfed.report.results import QUALITY

S = TypeVar("S")
STATE = "state.safetensors"
"""File name of the checkpoint, in the folder of the trial."""


@dataclass(frozen=True)
class Checkpoint(Generic[S]):
    """The state of a trial after a round."""

    trial: str
    """Identity of the trial; a checkpoint of another trial is refused."""
    task: Task
    step: int
    """Number of finished rounds, over all phases."""
    rounds: tuple[int, ...]
    """Number of rounds of each phase that has begun, in the order of the phases."""
    evaluations: int
    """Number of evaluations so far."""
    scored: int
    """Number of finished rounds at the last evaluation. −1: there was none."""
    state: S
    """State of the server."""
    stored: dict[int, int] = field(default_factory=dict)
    """The last round in which each client stored something, as `RoundId.since`; without clients that stored nothing."""
    released: int = -1
    """The last round in the ledger of releases of client-level privacy. −1: there is none."""
    rows: int = 0
    """Number of rows of metrics of this trial, without that of generator quality."""
    rows_digest: str = ""
    """Fingerprint of these rows (`digest_rows`)."""
    quality_digest: str = ""
    """Fingerprint of the row of generator quality. Empty: there is none."""


def read_checkpoint(method: Method[Any], folder: Path) -> Checkpoint[Any] | None:
    """Returns the last checkpoint of the trial in `folder`. None: there is none.

    Raises:
        GenfedError: the checkpoint is damaged.
    """
    file = folder / STATE
    if not file.exists():
        return None
    try:
        at: Checkpoint[Any] = load(Checkpoint[method.state], file)  # type: ignore[name-defined]
    except RecordError as error:
        if f"{Checkpoint.__name__} lacks" in str(error):
            raise GenfedError(
                f"{file} is of an older genfed, whose checkpoints do not name the files that they count on; "
                f"delete {folder} to do this trial again from its start"
            ) from None
        raise GenfedError(f"{error}; delete {folder} to do this trial again from its start") from None
    return at


def counted_rows(
    rows: Iterable[dict[str, Any]], label: str, seed: int, at: Checkpoint[Any] | None, file: Path, folder: Path
) -> list[dict[str, Any]]:
    """Returns the rows of metrics of a trial that its checkpoint counts on. Rows after these are of rounds that have to
    be repeated, and are excluded.

    Args:
        rows: all rows of the run.
        label: label of the method.
        seed: seed of the trial.
        at: the checkpoint. None: the trial has none.
        file: where the rows were read from, for the error.
        folder: the folder of the trial, for the error.

    Raises:
        GenfedError: the rows are not those that the checkpoint counts on.
    """
    if at is None:
        return []
    own = [row for row in rows if (row.get("method"), row.get("seed")) == (label, seed)]
    counted = [row for row in own if row.get("phase") != QUALITY][: at.rows]
    if len(counted) < at.rows or digest_rows(counted) != at.rows_digest:
        raise GenfedError(
            f"{file}: the rows of {label}, seed {seed} are not those that its checkpoint counts on; put the file back "
            f"as it was, or delete {folder} to do this trial again from its start"
        )
    quality = [row for row in own if row.get("phase") == QUALITY and digest_rows([row]) == at.quality_digest]
    return [*counted, *quality[:1]]
