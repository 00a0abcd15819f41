"""Randomness of privacy mechanisms: the operating system's, or a reproducible one for tests."""

import secrets

import numpy as np

from genfed.core.rng import derive


def os_randomness() -> np.random.Generator:
    """Returns a generator that no other party can repeat: its seed is 256 bits of the operating system's randomness.
    (A torch.Generator on a CPU uses 32 bits of a seed, and all of these can be tried.)
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def seeded_randomness(seed: int, *path: str | int) -> np.random.Generator:
    """Returns a generator that tests can repeat, as can any party that knows the run's seed: it protects nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(derive(seed, "noise", *path))))
