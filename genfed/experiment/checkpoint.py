"""The checkpoint of a trial."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from genfed.core.errors import GenfedError, RecordError
from genfed.core.method import Method
from genfed.core.record import load
from genfed.core.task import Task
from genfed.report.results import EVALUATE, QUALITY, Row

S = TypeVar("S")


@dataclass(frozen=True)
class Checkpoint(Generic[S]):
    """Where a trial stands after a round."""

    trial: str
    """What it is a checkpoint of; another trial's is refused."""
    task: Task
    step: int
    """Rounds done, over all phases."""
    rounds: tuple[int, ...]
    """Of each phase entered so far, in the order in which they run."""
    evaluations: int
    """How many were made."""
    scored: int
    """Rounds that had been done at the last evaluation; −1 before the first."""
    state: S


def read_checkpoint(method: Method[Any], folder: Path) -> Checkpoint[Any] | None:
    """The last checkpoint of the trial in `folder`; None where there is none.

    Raises:
        GenfedError: it is damaged.
    """
    file = folder / "state.safetensors"
    if not file.exists():
        return None
    try:
        at: Checkpoint[Any] = load(Checkpoint[method.state], file)  # type: ignore[name-defined]
    except RecordError as error:
        raise GenfedError(f"{error}; delete {folder} to do this trial again from its start") from None
    return at


def is_in_checkpoint(row: Row, at: Checkpoint[Any] | None) -> bool:
    """Whether a row of metrics.jsonl belongs to what the checkpoint holds."""
    if at is None:
        return False
    return bool(row["step"] <= at.scored if row["phase"] in (EVALUATE, QUALITY) else row["step"] < at.step)
