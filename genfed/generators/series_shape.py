"""What generators of series check of their task."""

from genfed.core.errors import GenfedError
from genfed.core.task import Task

LEAST = 8
"""Least number of steps of a window."""


def check_windows(name: str, task: Task) -> None:
    """Checks that a generator of series supports the task; `name` is the generator's, for the message.

    Raises:
        GenfedError: the examples are no series, or too short.
    """
    if task.kind != "series":
        raise GenfedError(f"generator {name}: examples of shape {task.shape}, {task.noun}; allowed are series")
    if task.shape[1] < LEAST:
        raise GenfedError(f"generator {name}: windows of {task.shape[1]} steps; {LEAST} or more are allowed")
