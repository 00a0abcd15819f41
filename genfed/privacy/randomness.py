"""Randomness of privacy mechanisms: the operating system's, or a reproducible one for tests."""

import secrets

import numpy as np

from genfed.core.rng import derive


def os_randomness() -> np.random.Generator:
    """Draws that nobody else can repeat: from 256 bits of the operating system's randomness. (A torch.Generator on a
    CPU would take 32 bits of a seed, which can be tried out.)
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def seeded_randomness(seed: int, *path: str | int) -> np.random.Generator:
    """Draws that a test can repeat, and whoever knows the run's seed: they protect nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(derive(seed, "noise", *path))))
