"""Checks of names, paths and shapes that a user gives."""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.task import Task
from genfed.preprocessing.source_summary import list_some, show

_SHOWN = 50
"""Names that a message lists."""
_LONG = 200
"""Characters of a name above which it is not compared with another."""


def require_path(path: str) -> Path:
    """Returns the path, which must exist.

    Raises:
        GenfedError: there is no such file or folder.
    """
    if not (found := Path(path)).exists():
        where = "" if found.is_absolute() else f" in {Path.cwd()}; a relative path starts there, or from --data-root"
        raise GenfedError(f"{path}: no such file or folder{where}")
    return found


def require_known(name: str, names: Collection[str], where: str) -> str:
    """Returns `name`, which must be one of `names`.

    Args:
        name: The name that was given.
        names: The names that exist.
        where: Text that begins the error message, such as "data.csv: column".

    Raises:
        GenfedError: the name does not exist; the message gives the most similar name, or all names.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, [known for known in names if len(known) <= _LONG], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {list_some(map(show, names), _SHOWN) or 'none'}"
    raise GenfedError(f"{where} {name!r} is not there; {hint}")


def require_distinct(names: Sequence[str], where: str = "") -> None:
    """Refuses names of columns of which one stands twice; `where` begins the error message."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise GenfedError(f"{where}column {min(twice)!r} appears twice")


def check_fit(shape: tuple[int, ...], task: Task, name: str) -> None:
    """Checks that an example has the shape of the task's examples; `name` begins the error message.

    Raises:
        GenfedError: the shapes differ.
    """
    if shape != task.shape:
        raise GenfedError(f"{name}: {_describe_shape(shape)}; the model takes {_describe_shape(task.shape)}")


def _describe_shape(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"{' × '.join(map(str, shape))} features"
    return f"{shape[0]} channel{'' if shape[0] == 1 else 's'} of {shape[2]} × {shape[1]} pixels"
