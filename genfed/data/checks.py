"""What the sources say when something of the user's is missing."""

import difflib
from collections.abc import Collection
from pathlib import Path

from genfed.core.errors import GenfedError
from genfed.core.task import Task


def require_path(path: str) -> Path:
    """The path.

    Raises:
        GenfedError: nothing stands there.
    """
    if not (found := Path(path)).exists():
        where = "" if found.is_absolute() else f" in {Path.cwd()}; a relative path starts there, or from --data-root"
        raise GenfedError(f"{path}: no such file or folder{where}")
    return found


def require_known(name: str, names: Collection[str], where: str) -> str:
    """`name`, which must be one of `names`; `where` begins the message, e.g. "data.csv: column".

    Raises:
        GenfedError: it is not; the nearest of `names` is named, or all of them where none is near.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise GenfedError(f"{where} {name!r} is not there; {hint}")


def check_fit(shape: tuple[int, ...], task: Task, name: str) -> None:
    """Refuses an example of a shape that the task's do not have; `name` begins the message.

    Raises:
        GenfedError: the shapes differ.
    """
    if shape != task.shape:
        raise GenfedError(f"{name}: {_described(shape)}; the model takes {_described(task.shape)}")


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"{' × '.join(map(str, shape))} features"
    return f"{shape[0]} channel{'' if shape[0] == 1 else 's'} of {shape[2]} × {shape[1]} pixels"


def reason(error: BaseException) -> str:
    """The first line of what another library says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
