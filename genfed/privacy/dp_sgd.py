"""DP-SGD: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, Deep Learning with Differential Privacy, CCS 2016,
arXiv 1607.00133, Algorithm 1. Opacus's hooks compute every example's gradient; this file clips the gradients, adds them
up and adds noise.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.privacy import DeclaredTraining, refuse_undeclared
from genfed.core.rng import seeded
from genfed.core.task import Data
from genfed.privacy.per_example_gradients import example_gradients, hook_per_example, hooks_disabled, parameters_of
from genfed.privacy.randomness import draw_gaussian, fill_state
from genfed.training.fit import Objective, train_step
from genfed.training.pixels import normalize_pixels

AT_ONCE = 2**26
"""Maximum count of numbers in per-example gradients held at once (256 MB). A larger batch is processed in parts."""


def plan_batches(training: DeclaredTraining, examples: int) -> tuple[float, int]:
    """Returns the probability that an example is in a batch (1 / batches per epoch), and the number of batches of the
    whole training.
    """
    epoch = max(1, math.ceil(examples / training.batch_size))
    return 1 / epoch, training.epochs * epoch


class DPSGDTrainer:
    """A `core.privacy.PrivateTrainer` for one client in one round. Batches are Poisson samples. The mean gradient is
    the noisy sum of clipped gradients divided by the expected batch size.
    """

    def __init__(
        self,
        clip_norm: float,
        noise_multiplier: float,
        draws: np.random.Generator,
        declared: Iterable[DeclaredTraining],
    ) -> None:
        """Prepares one round.

        Args:
            clip_norm: the L2 norm to which the gradient of each example is clipped.
            noise_multiplier: standard deviation of the noise divided by `clip_norm`. 0: no noise.
            draws: the randomness of batches and noise.
            declared: the trainings that the phase declared; each may be done once.
        """
        self._clip_norm, self._noise_multiplier, self._draws = clip_norm, noise_multiplier, draws
        self._left = [training for training in declared if training.epochs]

    def fit(self, objectives: Sequence[Objective], data: Data, *, epochs: int, batch_size: int) -> None:
        """See `core.privacy.PrivateTrainer`.

        Raises:
            GenfedError: a network has no per-example gradients, or the training was not declared.
        """
        training, device = DeclaredTraining(epochs, batch_size), data.y.device
        if epochs:
            if training not in self._left:
                refuse_undeclared(training)
            self._left.remove(training)
        rate, steps = plan_batches(training, len(data))
        expected = rate * len(data)
        rng = torch.Generator()
        with seeded(rng), ExitStack() as stack:  # restores torch's own stream, from which dropout draws
            hooks = {id(o): stack.enter_context(hook_per_example(o)) for o in objectives if o.sees_data}
            for _ in range(steps):
                # What losses and dropout draw is secret too, so it does not matter which example of a batch gets which.
                for each in (rng, torch.default_generator):
                    fill_state(each, self._draws)
                chosen = torch.from_numpy(np.flatnonzero(self._draws.random(len(data)) < rate)).to(device)
                for objective in objectives:
                    if objective.sees_data:
                        self._step(objective, hooks[id(objective)], data[chosen], expected, rng)
                    else:  # the real size of the batch would reveal something about the examples
                        size = max(1, round(expected))
                        blank = torch.zeros(size, *data.x.shape[1:], device=device)
                        with hooks_disabled(list(hooks.values())):
                            train_step(objective, blank, torch.zeros(size, dtype=torch.int64, device=device), rng)

    def finish(self) -> None:
        """See `core.privacy.PrivateTrainer`."""
        if self._left:
            raise GenfedError(f"{self._left[0]} was declared by the method, but not trained by DP-SGD")

    def _step(self, objective: Objective, hooks: Any, batch: Data, expected: float, rng: torch.Generator) -> None:
        parameters = parameters_of(objective)
        total = [torch.zeros_like(p) for p in parameters]
        size = max(1, AT_ONCE // sum(p.numel() for p in parameters))
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            gradients = example_gradients(objective, normalize_pixels(part.x), part.y, rng)
            for place, clipped in enumerate(clip_and_sum(gradients, self._clip_norm)):
                total[place] += clipped
        scale = self._noise_multiplier * self._clip_norm
        for p, gradient in zip(parameters, total, strict=True):
            if scale:  # float64, and rounded only as a whole
                noisy = gradient.cpu().double() + scale * draw_gaussian(self._draws, tuple(p.shape))
                gradient = noisy.to(device=p.device, dtype=p.dtype)
            p.grad = gradient / expected
        if objective.penalty is not None:
            with hooks_disabled([hooks]):
                extra = torch.autograd.grad(objective.penalty(), parameters, allow_unused=True)
            for p, more in zip(parameters, extra, strict=True):
                if more is not None:
                    assert p.grad is not None
                    p.grad += more
        objective.optimizer.step()


def clip_and_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """Clips each example's gradient to the L2 norm `clip` over all parameters, and returns the sum over examples:
    [n, *shape] per parameter → [*shape] per parameter. A gradient that is not finite counts as 0, since a failure would
    reveal something about its example.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    if not bool((finite := torch.isfinite(norms)).all()):
        gradients, norms = [g[finite] for g in gradients], norms[finite]
    factors = (clip / norms.clamp_min(1e-12)).clamp_max(1)
    return [torch.tensordot(factors, g, dims=1) for g in gradients]
