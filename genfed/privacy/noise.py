"""Gaussian noise in double precision, drawn only where rounding leaves it as it is accounted for."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.privacy.randomness import draw_gaussian

SHORTEST, LONGEST = 1e-6, 1e9
"""Bounds of clipping norms. Far below, float32 numbers lose digits, so that clipped values could be longer than the
norm."""
ClipNorm = Annotated[float, Field(ge=SHORTEST, le=LONGEST)]
"""An L2 norm to which gradients or updates are clipped."""
STEPS = 2.0**8
"""Minimum standard deviation of noise, in steps of the numbers that the noisy value is rounded to. With steps of σ/2⁸
rounding changes the probability of no outcome within 6σ by more than 1 in 40,000 ((step/σ)²·6²/24, the error of the
midpoint rule), so a rounded sum is as private as the exact one. With steps near σ outcomes appear that only one of two
neighboring data sets can have."""


def check_clip_norm(clip: float) -> None:
    """Refuses a clipping norm out of bounds.

    Raises:
        GenfedError: it is below `SHORTEST`, above `LONGEST` or not a number.
    """
    if not SHORTEST <= clip <= LONGEST:
        raise GenfedError(f"a clipping norm of {clip:g}: {SHORTEST:g} to {LONGEST:g} is allowed")


def check_noise(std: float, largest: float, step: float = 0.0) -> None:
    """Refuses noise that rounding would change or remove.

    Args:
        std: standard deviation of the noise.
        largest: bound on the absolute values that it is added to, in double precision.
        step: distance of neighboring numbers of the format to which the result is rounded next, where that rounding is
            not of the whole released value. 0: there is no such rounding.

    Raises:
        GenfedError: the standard deviation is not above 0, not finite, or below `STEPS` steps.
    """
    steps = (math.ulp(largest), step)
    if not (0 < std < math.inf and all(std >= STEPS * each for each in steps)):  # so that NaN is refused too
        raise GenfedError(
            f"noise of standard deviation {std:g} on numbers with steps of {max(steps):.2g}: at least {STEPS:g} steps "
            "are needed, or rounding would remove it"
        )


def draw_noise(
    std: float, shape: Sequence[int], draws: np.random.Generator, *, largest: float, step: float = 0.0
) -> Tensor:
    """Returns Gaussian noise, float64 [*shape], on the CPU.

    Args:
        std: its standard deviation.
        shape: its shape.
        draws: the randomness.
        largest: see `check_noise`.
        step: see `check_noise`.

    Raises:
        GenfedError: see `check_noise`.
    """
    check_noise(std, largest, step)
    return std * draw_gaussian(draws, tuple(shape))


def step_of(values: Tensor, added: float = 0.0) -> float:
    """Returns the distance of neighboring numbers at the largest that these values can become, in their own format.
    NaN: one of them is not finite.

    Args:
        values: floating-point numbers.
        added: bound on the absolute value of what is added to them.
    """
    largest = (float(values.double().abs().max()) if values.numel() else 0.0) + added
    if not math.isfinite(largest):
        return math.nan
    return torch.finfo(values.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
