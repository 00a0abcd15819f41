"""A worker process: `python -P -m genfed.experiment.worker THREADS PARENT FD`."""

import os
import signal
import sys

import torch

from genfed.engines.worker_pool import serve_worker
from genfed.experiment.environment import send_at_parents_end
from genfed.experiment.local_clients import open_runner


def end_with(parent: int) -> None:
    """Ends this process when its parent ends, so that no worker of a killed run still writes. On systems other than
    Linux a worker finishes its client first.
    """
    send_at_parents_end(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the run ended before its worker began")


if __name__ == "__main__":
    threads, parent, descriptor = map(int, sys.argv[1:])
    end_with(parent)
    torch.set_num_threads(threads)
    serve_worker(descriptor, open_runner)
