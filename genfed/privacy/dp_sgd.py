"""DP-SGD: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, Deep Learning with Differential Privacy, CCS 2016,
arXiv 1607.00133, Algorithm 1. Opacus's hooks compute every example's gradient; this file clips the gradients, adds them
up and adds noise.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.privacy import DeclaredTraining, refuse_undeclared
from genfed.core.record import Packed, digest
from genfed.core.rng import seeded
from genfed.core.task import Data
from genfed.privacy.noise import check_clip_norm, check_noise, draw_noise
from genfed.privacy.per_example_gradients import (
    check_trained,
    example_gradients,
    hook_per_example,
    hooks_disabled,
    parameters_of,
)
from genfed.privacy.randomness import fill_state
from genfed.training.fit import Objective, train_step
from genfed.training.pixels import normalize_pixels

AT_ONCE = 2**26
"""Maximum count of numbers in per-example gradients held at once (256 MB). A larger batch is processed in parts."""
ADDED_AT_ONCE = 2**10
"""Maximum number of examples whose clipped gradients are added up in float32. Sums of more are in double precision, so
that rounding does not let one example change a sum by more than the clipping norm."""


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
        self._released: set[str] = set()

    def fit(self, objectives: Sequence[Objective], data: Data, *, epochs: int, batch_size: int) -> None:
        """See `core.privacy.PrivateTrainer`.

        Raises:
            GenfedError: a network cannot be trained privately, the training was not declared, the noise is too small
                for the arithmetic, or the training changed something else than parameters.
        """
        training, device = DeclaredTraining(epochs, batch_size), data.y.device
        if epochs:
            if training not in self._left:
                refuse_undeclared(training)
            self._left.remove(training)
            self._check_before(objectives, data)
        kept = {id(o): _unreleased(o, objectives) for o in objectives}
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
                        self._step(objective, hooks[id(objective)], data[chosen], expected, len(data), rng)
                    else:  # the real size of the batch would reveal something about the examples
                        size = max(1, round(expected))
                        blank = torch.zeros(size, *data.x.shape[1:], device=device)
                        with hooks_disabled(list(hooks.values())):
                            train_step(objective, blank, torch.zeros(size, dtype=torch.int64, device=device), rng)
        for objective in objectives:
            self._release(objective, kept[id(objective)])

    def finish(self, upload: object, received: Iterable[Tensor]) -> None:
        """See `core.privacy.PrivateTrainer`."""
        if self._left:
            raise GenfedError(f"{self._left[0]} was declared by the method, but not trained by DP-SGD")
        tensors = dict(list_tensors(upload, "upload"))
        unknown = [path for path, tensor in tensors.items() if _fingerprint(tensor) not in self._released]
        known = {_fingerprint(tensor) for tensor in received} if unknown else set()
        for path in unknown:
            if _fingerprint(tensors[path]) not in known:
                raise GenfedError(
                    f"{path} is neither a tensor that DP-SGD released nor one that the client received, so it stays on "
                    "the client"
                )

    def _check_before(self, objectives: Sequence[Objective], data: Data) -> None:
        """Refuses networks and noise that protect nothing. No example is used: a failure reveals nothing of them."""
        if self._noise_multiplier:
            check_clip_norm(self._clip_norm)
            check_noise(self._noise_multiplier * self._clip_norm, len(data) * self._clip_norm)
        rng = torch.Generator().manual_seed(0)
        kind = data.x.dtype if data.x.is_floating_point() else torch.float32
        x = torch.rand(2, *data.x.shape[1:], generator=rng, dtype=kind).to(data.y.device)
        y = torch.zeros(2, *data.y.shape[1:], dtype=data.y.dtype, device=data.y.device)
        for objective in objectives:
            if objective.sees_data:
                check_trained(objective, x, y)

    def _release(self, objective: Objective, kept: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Notes what the objective's training released.

        Raises:
            GenfedError: something else than its parameters changed.
        """
        for name, (now, before) in kept.items():
            if _fingerprint(now) != _fingerprint(before):
                raise GenfedError(f"{name} changed in private training and gets no noise: no buffer may depend on data")
            self._released.add(_fingerprint(now))
        self._released.update(_fingerprint(p) for p in parameters_of(objective))

    def _step(
        self, objective: Objective, hooks: Any, batch: Data, expected: float, examples: int, rng: torch.Generator
    ) -> None:
        parameters = parameters_of(objective)
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        size = min(ADDED_AT_ONCE, max(1, AT_ONCE // sum(p.numel() for p in parameters)))
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            gradients = example_gradients(objective, normalize_pixels(part.x), part.y, rng)
            for place, clipped in enumerate(clip_and_sum(gradients, self._clip_norm)):
                total[place] += clipped
        scale, largest = self._noise_multiplier * self._clip_norm, examples * self._clip_norm
        # The noisy sum is what the accountant knows. All that follows, such as rounding it to float32, a penalty or a
        # learning rate of any size, is computed from it and reveals no more.
        for p, gradient in zip(parameters, total, strict=True):
            if scale:
                gradient = gradient + draw_noise(scale, p.shape, self._draws, largest=largest).to(p.device)
            p.grad = (gradient / expected).to(p.dtype)
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
    reveal something about its example. Norms and sums are in double precision: in single precision many small numbers
    are lost beside a few large ones, and a gradient of 10⁸ numbers could be 1.7 times as long as it seems.
    """
    lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients]
    norms = torch.stack(lengths).norm(dim=0)
    if not bool((finite := torch.isfinite(norms)).all()):
        gradients, norms = [g[finite] for g in gradients], norms[finite]
    factors = (clip / norms.clamp_min(1e-12)).clamp_max(1)
    return [torch.tensordot(factors, g.double(), dims=1) for g in gradients]


def _unreleased(objective: Objective, objectives: Sequence[Objective]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns all tensors in the state of an objective's network that no objective trains, by name, each with a copy:
    buffers of any class, and frozen parameters.
    """
    if objective.network is None:
        return {}
    trained = {id(p) for each in objectives for p in parameters_of(each)}
    named = [*objective.network.named_parameters(), *objective.network.named_buffers()]
    return {name: (tensor, tensor.detach().clone()) for name, tensor in named if id(tensor) not in trained}


def list_tensors(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of an upload with their paths.

    Raises:
        GenfedError: the upload holds something else, such as a number, a text or a table by numbers, which DP-SGD does
            not protect.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise GenfedError(
                    f"{path} has the key {key!r}: under DP-SGD only tensors leave a client, by their names"
                )
            yield from list_tensors(part, f"{path}[{key!r}]")
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            yield from list_tensors(part, f"{path}[{place}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from list_tensors(getattr(value, field.name), f"{path}.{field.name}")
    elif value is not None:
        raise GenfedError(f"{path} is a {type(value).__name__}: under DP-SGD only tensors leave a client")


def _fingerprint(tensor: Tensor) -> str:
    """Returns a hash of a tensor's type, shape and bits."""
    return digest(Packed({"": tensor.detach().cpu().contiguous()}, ""))
