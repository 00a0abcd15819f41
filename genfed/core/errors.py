"""Errors that a person can mend: raised at the boundary, shown as one line, exit code 2."""

from importlib import import_module
from importlib.util import find_spec


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


class RecordError(GenfedError):
    """Bytes, a file or a value that is not the expected record."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not blank; the error's type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
