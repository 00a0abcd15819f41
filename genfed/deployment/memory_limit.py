"""A limit of the memory of a process, so that a request fails rather than the machine."""

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from genfed.core.errors import GenfedError


class MemoryShortageError(GenfedError):
    """A request that needs more memory than is free; its text says no more."""

    def __init__(self) -> None:
        super().__init__("it needs more memory than is free")


_lock = threading.Lock()
_blocks = 0
"""Number of blocks that run under the limit."""


@contextlib.contextmanager
def limit_memory(device: str, mapped: int = 0) -> Iterator[None]:
    """Lets the block allocate no more memory than is free when it begins. Not on a GPU, whose driver reserves far more
    than it uses, nor where the free memory is unknown. Blocks in several threads share the limit of the first.

    Args:
        device: the device to compute on.
        mapped: bytes of the files that the block maps into memory, which count too, though they need none.

    Raises:
        MemoryShortageError: the block needs more.
    """
    limited = device == "cpu" and _begin(mapped)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MemoryShortageError from None
        raise
    finally:
        if limited:
            _end()


def _begin(mapped: int) -> bool:
    """Sets the limit unless another thread's block has, and returns whether there is one to take away."""
    global _blocks
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if not _blocks:
            free, used = free_memory(), _read_kilobytes("/proc/self/status", "VmData:")
            if not (free and used) or soft != resource.RLIM_INFINITY:
                return False
            resource.setrlimit(resource.RLIMIT_DATA, (used + free + mapped, hard))
        _blocks += 1
        return True


def _end() -> None:
    """Takes the limit away when the last block ends."""
    global _blocks
    with _lock:
        _blocks -= 1
        if not _blocks:
            resource.setrlimit(
                resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_DATA)[1])
            )


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
