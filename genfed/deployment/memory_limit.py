"""A limit of the memory of a process, so that a request fails rather than the machine."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from genfed.core.errors import GenfedError


class MemoryShortageError(GenfedError):
    """A request that needs more memory than is free; its text says no more."""

    def __init__(self) -> None:
        super().__init__("it needs more memory than is free")


@contextlib.contextmanager
def limit_memory(device: str, mapped: int = 0) -> Iterator[None]:
    """Lets the block allocate no more memory than is free when it begins. Not on a GPU, whose driver reserves far more
    than it uses, nor where the free memory is unknown.

    Args:
        device: the device to compute on.
        mapped: bytes of the files that the block maps into memory, which count too, though they need none.

    Raises:
        MemoryShortageError: the block needs more.
    """
    free, before = free_memory(), resource.getrlimit(resource.RLIMIT_DATA)
    used = _read_kilobytes("/proc/self/status", "VmData:")
    if device == "cpu" and free and used and before[0] == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (used + free + mapped, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MemoryShortageError from None
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_memory() -> int:
    """Returns the free memory in bytes. 0: unknown."""
    return _read_kilobytes("/proc/meminfo", "MemAvailable:")


def _read_kilobytes(file: str, name: str) -> int:
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
