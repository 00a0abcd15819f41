"""What all networks for series check of their task."""

from genfed.core.errors import GenfedError
from genfed.core.task import Task


def check_series(name: str, task: Task) -> None:
    """Refuses a task whose examples are no series; `name` is the architecture's.

    Raises:
        GenfedError: they are not.
    """
    if task.kind != "series":
        raise GenfedError(f"architecture {name}: examples of shape {task.shape}, {task.noun}; allowed are series")
