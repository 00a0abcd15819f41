"""Errors that a person can mend: raised at the boundary, shown as one line, exit code 2."""

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from genfed.core.text import one_line

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class GenfedError(Exception):
    """An error in the input or its surroundings; the message names the thing, its value and what is allowed.

    >>> import genfed
    >>> try:
    ...     genfed.run("missing.toml")
    ... except genfed.GenfedError as error:
    ...     print(error)
    missing.toml: No such file or directory; give a TOML file or the folder of a run
    """


class StorageError(GenfedError):
    """A client's failure to store what it must keep. The run stops: continuing would change its result."""


class WithheldError(GenfedError):
    """A failure in work on private examples. Others may see its text, which is always the same, and not its cause."""

    def __init__(self) -> None:
        super().__init__("its work failed; the reason stays on the client, in its own log")


class RecordError(GenfedError):
    """Bytes, a file or a value that is not the expected record."""


class MissingCodeError(GenfedError):
    """A module that a config names is not found."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not blank, bounded and escaped; the error's type where there
    is none.
    """
    return one_line(next((line.strip() for line in _read(error).splitlines() if line.strip()), type(error).__name__))


def describe_error(error: BaseException) -> str:
    """Returns one line on an error of a user's own code: its type, its message, and where in that code it arose, as in
    "ValueError: no such scan; mine.py, line 12, in Scans.load".
    """
    kind, message = type(error).__name__, first_line(error)
    return "; ".join(filter(None, (kind if message == kind else f"{kind}: {message}", find_own_code(error))))


@contextlib.contextmanager
def contain_exit() -> Iterator[None]:
    """Raises an exit that a user's own code asks for as an error: only the caller of genfed may end the process.

    Raises:
        GenfedError: the block raises SystemExit.
    """
    try:
        yield
    except SystemExit as error:
        raise GenfedError(describe_error(error)) from error


def find_own_code(error: BaseException) -> str | None:
    """Returns where in a user's own code an error arose: file, line and function. None: in no file that is neither
    genfed's nor installed.
    """
    own = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own(frame)]
    if not own:
        return None
    frame, line = own[-1]
    return one_line(f"{Path(frame.f_code.co_filename).name}, line {line}, in {frame.f_code.co_qualname}")


def _is_own(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    if not file.is_absolute() or frame.f_globals.get("__name__") == "__main__":  # "<frozen …>", or who calls genfed
        return False
    return not any(file.is_relative_to(folder) for folder in (_PACKAGE, *_INSTALLED))


def _read(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's own class of errors may fail even here
        return ""


def require(module: str, *, extra: str, what: str) -> None:
    """Refuses `what` where a module that an extra of genfed installs is missing or broken.

    Raises:
        GenfedError: it is; the message names the extra.
    """
    needs = f"""{what} needs the extra "{extra}": pip install 'genfed[{extra}]'"""
    if find_spec(module) is None:
        raise GenfedError(needs)
    try:
        import_module(module)
    except ImportError as error:
        raise GenfedError(f"{needs} ({module} is installed and cannot be imported: {first_line(error)})") from None
