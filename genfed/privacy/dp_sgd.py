"""DP-SGD: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, Deep Learning with Differential Privacy, CCS 2016,
arXiv 1607.00133, Algorithm 1. Opacus's hooks give every example's gradient; here it is cut, added up and noised.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.privacy import DeclaredTraining, PrivateTrainer
from genfed.core.rng import seeded
from genfed.core.task import Data
from genfed.privacy.per_example_gradients import _hooks_disabled, example_gradients, hook_per_example, parameters_of
from genfed.training.fit import Objective, train_step
from genfed.training.pixels import normalize_pixels

AT_ONCE = 2**26
"""Numbers in the gradients of examples that are held at once (256 MB); a batch with more is taken in parts."""


def fit_privately(
    players: Sequence[Objective], data: Data, *, epochs: int, batch_size: int, privacy: PrivateTrainer
) -> None:
    """`training.fit.fit` by DP-SGD: batches are Poisson samples, and the mean gradient is one over the expected batch.

    Raises:
        GenfedError: a network that cannot be trained per example, or a training that was not declared.
    """
    use, device = DeclaredTraining(epochs, batch_size), data.y.device
    privacy.begin(use)
    rate = use.rate(len(data))
    expected = rate * len(data)
    # The losses' own draws are not foreseen either: then it does not matter to which example of a batch they go.
    rng = torch.Generator().manual_seed(int(privacy.draws.integers(2**62)))
    with seeded(rng), ExitStack() as stack:  # dropout
        hooks = {id(p): stack.enter_context(hook_per_example(p)) for p in players if p.sees_data}
        for _ in range(use.steps(len(data))):
            chosen = torch.from_numpy(np.flatnonzero(privacy.draws.random(len(data)) < rate)).to(device)
            for player in players:
                if player.sees_data:
                    _private_step(player, hooks[id(player)], data, chosen, expected, rng, privacy)
                else:  # the size of the batch, too, tells of examples
                    size = max(1, round(expected))
                    blank = torch.zeros(size, *data.x.shape[1:], device=device)
                    with _hooks_disabled(list(hooks.values())):
                        train_step(player, blank, torch.zeros(size, dtype=torch.int64, device=device), rng)


def _private_step(
    player: Objective,
    hooks: Any,
    data: Data,
    rows: Tensor,
    expected: float,
    rng: torch.Generator,
    privacy: PrivateTrainer,
) -> None:
    parameters = parameters_of(player)
    total = [torch.zeros_like(p) for p in parameters]
    for part in torch.split(rows, max(1, AT_ONCE // sum(p.numel() for p in parameters))) if len(rows) else ():
        gradients = example_gradients(player, normalize_pixels(data.x[part]), data.y[part], rng)
        for place, cut in enumerate(clip_and_sum(gradients, privacy.clip)):
            total[place] += cut
    scale = privacy.noise_multiplier * privacy.clip
    for p, gradient in zip(parameters, total, strict=True):
        p.grad = (gradient + scale * _noise(p, privacy.draws) if scale else gradient) / expected
    if player.penalty is not None:
        with _hooks_disabled([hooks]):
            extra = torch.autograd.grad(player.penalty(), parameters, allow_unused=True)
        for p, more in zip(parameters, extra, strict=True):
            if more is not None:
                assert p.grad is not None
                p.grad += more
    player.optimiser.step()


def _noise(like: Tensor, draws: np.random.Generator) -> Tensor:
    return torch.from_numpy(draws.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.device)


def clip_and_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The sum over examples of their gradients, each cut to the norm `clip` over all parameters: of [n, *shape] per
    parameter, [*shape] each. One that is not finite counts as 0: what fails because of an example tells of it.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    if not bool((finite := torch.isfinite(norms)).all()):
        gradients, norms = [g[finite] for g in gradients], norms[finite]
    factors = (clip / norms.clamp_min(1e-12)).clamp_max(1)
    return [torch.tensordot(factors, g, dims=1) for g in gradients]
