"""Random streams that are named by their purpose, not by the order of the draws.

A stream is derived from the run's seed and a path such as ("generator", 3, 7), so a draw is the same on every engine,
for every number of workers and after every resume.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

Path = str | int


def derive(seed: int, *path: Path) -> int:
    """Returns a seed in [0, 2⁶³) for this path, e.g. derive(0, "generator", 3, 7); the same on every machine."""
    # Types and lengths are hashed too: ("a/b",) and ("a", "b"), or 1 and "1", must not share a stream.
    text = "".join(f"{type(part).__name__}:{len(str(part))}:{part};" for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *path: Path) -> torch.Generator:
    """Returns a CPU generator for this path; draws are made on the CPU, so they are the same for every device."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextlib.contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Seeds torch's global CPU stream (layer initialization, dropout), and those of numpy and Python for networks of
    one's own, by one draw from `rng`, and restores them after the block.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed = int(torch.randint(2**62, (), generator=rng, device="cpu"))
    # Only the CPU stream: torch.manual_seed would also queue a call for every kind of GPU, with a stack trace.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
