"""A worker process: `python -m genfed.experiment.worker THREADS PARENT FD`."""

import contextlib
import ctypes
import os
import signal
import sys

import torch

from genfed.engines.worker_pool import serve_worker
from genfed.experiment.local_clients import open_runner

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, so that a killed run leaves nobody who still writes;
    where there is no such call (not Linux) a worker ends after the client at work.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the run ended before its worker began")


if __name__ == "__main__":
    threads, parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    torch.set_num_threads(threads)
    serve_worker(descriptor, open_runner)
