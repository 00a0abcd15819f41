"""A worker process: `python -m genfed.app.worker THREADS FD`."""

import sys

import torch

from genfed.app.run import site_of
from genfed.engines.embedded import serve

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve(int(sys.argv[2]), site_of)
