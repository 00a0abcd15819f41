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


def read_checkpoint(method: Method[Any], folder: Path) -> Checkpoint[Any] | None:
    """Returns the last checkpoint of the trial in `folder`. None: there is none.

    Raises:
        GenfedError: the checkpoint is damaged.
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
    """Returns whether a row of metrics belongs to the rounds that the checkpoint holds."""
    if at is None:
        return False
    return bool(row["step"] <= at.scored if row["phase"] in (EVALUATE, QUALITY) else row["step"] < at.step)
