"""DP-FedAvg in which clients add the noise: each clips its update and adds a part of the noise, so that under secure
aggregation the server sees only a noisy sum. Kairouz, Liu, Steinke, The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation, ICML 2021, arXiv 2102.06387.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.aggregate import Mean, map_tree, select_means
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.privacy.clipping import clip_update, subtract, zeros_like
from genfed.privacy.noise import draw_noise, step_of
from genfed.privacy.randomness import os_randomness, seeded_randomness

# differs from the paper: the noise is a Gaussian rounded to the steps of secure aggregation (2⁻²⁴), not a discrete
# Gaussian, and updates are not rotated. Both save bits, which sums of 64 bits do not need.


def client_randomness(seed: int | None, phase: str) -> Callable[[Client], np.random.Generator]:
    """Returns a function that gives each client the randomness of its noise.

    Args:
        seed: seed of the run, for tests. None: the operating system's randomness.
        phase: name of the phase.
    """

    def draws(client: Client) -> np.random.Generator:
        if seed is None:
            return os_randomness()
        return seeded_randomness(seed, phase, client.info.id, int(torch.randint(2**62, (), generator=client.rng)))

    return draws


def add_client_noise(
    phase: Phase[Any],
    *,
    clip: float,
    std: float,
    draws: Callable[[Client], np.random.Generator],
    step: float = 0.0,
    charge: Callable[[], None] | None = None,
) -> Phase[Any]:
    """Returns the phase with clients that clip their updates and add noise to them. All clients have the same weight,
    also if the method gives them others. A client uploads what it was sent plus the clipped, noisy update; integers
    (BatchNorm's counters) stay as they were sent, or are 0.

    Args:
        phase: a phase whose uploads are all reduced by means.
        clip: the L2 norm to which a client's update (all fields together) is clipped.
        std: standard deviation of the noise that each client adds.
        draws: gives a client the randomness of its noise.
        step: distance of the numbers that uploads are rounded to before they are added up. 0: they are not rounded.
        charge: called before an upload is made; raises to refuse it. None: nothing is charged.

    Raises:
        GenfedError: an upload field is not reduced by a mean; in `work`, the noise is too small for the numbers.
    """
    means = select_means(phase.aggregate)
    if means.keys() != phase.aggregate.keys():
        raise GenfedError(f"phase {phase.name}: only means of clipped updates get noise")

    def work(client: Client, sent: Any) -> Reply[Any]:
        assert phase.work is not None
        upload, origins, updates = phase.work(client, sent).upload, {}, {}
        for name, mean in means.items():
            value, before = mean.extract(getattr(upload, name)), getattr(sent, name, None)
            before = zeros_like(value) if before is None else mean.extract(before)
            origins[name], updates[name] = before, map_tree(subtract, before, value)
        (_, factor), random = clip_update(updates, clip), draws(client)
        if charge is not None:
            charge()

        def add_noise(before: Any, update: Any) -> Any:
            return _add_noise(before, update * factor, std, random, clip=clip, step=step)

        return Reply(replace(upload, **{name: map_tree(add_noise, origins[name], updates[name]) for name in means}))

    def update(server: Server, state: Any, reduced: Reduced) -> Any:
        values = {name: _clamp_variances("", value) for name, value in reduced.values.items()}
        return phase.update(server, state, Reduced(values, reduced.clients))

    plain = {name: Mean(by=mean.by) for name, mean in means.items()}  # `work` has already called `extract`
    return replace(phase, work=work, update=update, aggregate=plain, wire=phase.wire_types)


def _add_noise(before: Any, update: Any, std: float, random: np.random.Generator, *, clip: float, step: float) -> Any:
    """Returns what was sent plus a clipped update and noise, for one leaf.

    Args:
        before: the leaf as it was sent.
        update: the clipped update.
        std: standard deviation of the noise. 0: no noise.
        random: the randomness of the noise.
        clip: bound on the update.
        step: see `add_client_noise`.

    Raises:
        GenfedError: the shapes differ, or the noise is too small for the numbers that it is added to. One client's
            noise is not enough by itself, so a sum of rounded uploads could reveal more than a rounded sum.
    """
    if not isinstance(before, Tensor):
        if not std:
            return before + update
        extra = draw_noise(std, (), random, largest=abs(before) + clip, step=step)
        return before + update + float(extra)
    if not before.is_floating_point():
        return before
    shape = tuple(getattr(update, "shape", ()))
    if shape != tuple(before.shape):  # else one draw could be added to many numbers
        raise GenfedError(f"it was sent a tensor of shape {tuple(before.shape)} where it uploads one of shape {shape}")
    noisy = before.double() + update
    if std:
        largest = float(before.double().abs().max()) + clip if before.numel() else clip
        extra = draw_noise(std, before.shape, random, largest=largest, step=max(step_of(before), step))
        noisy = noisy + extra.to(before.device)
    return noisy.to(before.dtype)


def _clamp_variances(key: str, value: Any) -> Any:
    """Returns a mean with running variances at 0 or above, which noise can push below."""
    if isinstance(value, dict):
        return {k: _clamp_variances(k, v) for k, v in value.items()}
    return value.clamp_min(0) if key.endswith("running_var") else value
