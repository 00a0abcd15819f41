"""Randomness of privacy mechanisms: the operating system's, or a reproducible one for tests."""

import secrets

import numpy as np
import torch
from torch import Tensor

from genfed.core.errors import require
from genfed.core.rng import derive

_STATE_BYTES, _WORDS_BEGIN, _WORDS = 5056, 24, 624  # of the Mersenne Twister, as torch.Generator.get_state gives it


def require_privacy(what: str) -> None:
    """Refuses `what` where the extra "privacy" is missing.

    Raises:
        GenfedError: it is.
    """
    for module in ("opacus", "randomgen"):
        require(module, extra="privacy", what=what)


def os_randomness() -> np.random.Generator:
    """Returns a cryptographic generator that no other party can repeat or continue: AES-128 in counter mode, with a key
    of the operating system.
    """
    require_privacy("[privacy]")
    from randomgen import AESCounter

    return np.random.Generator(AESCounter(key=secrets.randbits(128)))


def seeded_randomness(seed: int, *path: str | int) -> np.random.Generator:
    """Returns a generator that tests can repeat, as can any party that knows the run's seed: it protects nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(derive(seed, "noise", *path))))


def draw_gaussian(draws: np.random.Generator, shape: tuple[int, ...] = ()) -> Tensor:
    """Returns noise from N(0, 1), float64 [*shape], on the CPU.

    A generator's normal numbers have gaps between them, from which the number without noise can be read (Mironov, CCS
    2012). So each is the sum of four divided by 2: Holohan and Braghin, Secure Random Sampling in Differential Privacy,
    ESORICS 2021, arXiv 2107.10138, with n = 2, as Opacus's secure mode has it. Add it in float64; rounding the sum to
    float32 then hides the last 29 bits.
    """
    total = np.zeros(shape)
    for _ in range(4):
        total += draws.standard_normal(shape)
    return torch.from_numpy(total / 2) if shape else torch.tensor(float(total) / 2, dtype=torch.float64)


def fill_state(rng: torch.Generator, draws: np.random.Generator) -> None:
    """Gives a torch generator on the CPU a new state, all 19,937 bits of it. (`manual_seed` would use 32 bits, and all
    of these can be tried.)
    """
    state = rng.manual_seed(0).get_state()
    assert len(state) == _STATE_BYTES, "torch has another layout of its generator"
    words = state.numpy()[_WORDS_BEGIN : _WORDS_BEGIN + 8 * _WORDS].view(np.uint64)
    words[:] = draws.integers(2**32, size=_WORDS, dtype=np.uint64)
    rng.set_state(state)
