"""DP-FedAvg in which clients add the noise: each clips its update and adds a part of the noise, so that under secure
aggregation the server sees only a noisy sum. Kairouz, Liu, Steinke, The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation, ICML 2021, arXiv 2102.06387.
"""

import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from genfed.core.aggregate import Mean, map_tree, select_means
from genfed.core.client import Client, ClientStorage, Server, Slot
from genfed.core.errors import GenfedError, StorageError, WithheldError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.text import indent_lines
from genfed.privacy.clipping import clip_factor, norm_of, subtract, zeros_like
from genfed.privacy.noise import check_noise, draw_noise, step_of
from genfed.privacy.randomness import os_randomness, seeded_randomness

R = TypeVar("R")

log = logging.getLogger(__name__)

RESERVE = 20.0
"""Bound on the noise in standard deviations: no draw of double precision exceeds it."""

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
    limit: float = math.inf,
    charge: Callable[[], None] | None = None,
) -> Phase[Any]:
    """Returns the phase with clients that clip their updates and add noise to them. All clients have the same weight,
    also if the method gives them others. A client uploads what it was sent plus the clipped, noisy update; integers
    (BatchNorm's counters) stay as they were sent, or are 0.

    Whoever sends can make a failure depend on an example. So all that could fail because of what was sent is checked
    before any example is used, then the upload is charged, and then the work begins. An update that is not finite
    counts as 0, and nothing of such a round is stored. Any other failure has the same text.

    Args:
        phase: a phase whose uploads are all reduced by means.
        clip: the L2 norm to which a client's update (all fields together) is clipped.
        std: standard deviation of the noise that each client adds.
        draws: gives a client the randomness of its noise.
        step: distance of the numbers that uploads are rounded to before they are added up. 0: they are not rounded.
        limit: bound on the numbers that can be added up.
        charge: called before any example is used; raises to refuse the work. None: nothing is charged.

    Raises:
        GenfedError: an upload field is not reduced by a mean; in `work`, the numbers that were sent are not finite, or
            so large that the noise is too small for them or that they cannot be added up.
        WithheldError: in `work`, the phase's own work failed.
    """
    means = select_means(phase.aggregate)
    if means.keys() != phase.aggregate.keys():
        raise GenfedError(f"phase {phase.name}: only means of clipped updates get noise")

    work = _NoisyWork(phase, means, clip, std, draws, step, limit, charge)

    def update(server: Server, state: Any, reduced: Reduced) -> Any:
        values = {name: _clamp_variances("", value) for name, value in reduced.values.items()}
        return phase.update(server, state, Reduced(values, reduced.clients))

    plain = {name: Mean(by=mean.by) for name, mean in means.items()}  # `work` has already called `extract`
    return replace(phase, work=work.work, update=update, aggregate=plain, wire=phase.wire_types)


@dataclass(frozen=True)
class _NoisyWork:
    """The work of clients that add noise; see `add_client_noise`."""

    phase: Phase[Any]
    means: Mapping[str, Mean]
    clip: float
    std: float
    draws: Callable[[Client], np.random.Generator]
    step: float
    limit: float
    charge: Callable[[], None] | None

    def work(self, client: Client, sent: Any) -> Reply[Any]:
        """Does the phase's work, and adds noise to what it would upload."""
        for name, mean in self.means.items():
            before = getattr(sent, name, None)
            map_tree(self._check_sent, 0.0 if before is None else mean.extract(before))
        if self.charge is not None:
            self.charge()
        try:
            return Reply(self._upload(client, sent))
        except (KeyboardInterrupt, StorageError):
            raise
        except BaseException as error:  # its text, or its type, could depend on an example
            where = f"client {client.info.id} failed in {self.phase.name}"
            log.warning("%s\n%s", where, indent_lines(traceback.format_exc()))
            raise WithheldError from error

    def _upload(self, client: Client, sent: Any) -> Any:
        assert self.phase.work is not None
        storage, origins, updates = _HeldStorage(client.storage), {}, {}
        upload = self.phase.work(replace(client, storage=storage), sent).upload
        for name, mean in self.means.items():
            value, before = mean.extract(getattr(upload, name)), getattr(sent, name, None)
            before = zeros_like(value) if before is None else mean.extract(before)
            origins[name], updates[name] = before, map_tree(subtract, before, value)
        if math.isfinite(length := norm_of(updates)):
            storage.release()
        else:
            length, updates = 0.0, {name: zeros_like(each) for name, each in updates.items()}
        factor, random = clip_factor(length, self.clip), self.draws(client)

        def add_noise(before: Any, update: Any) -> Any:
            rounding = self._step_of(before) if isinstance(before, Tensor) and before.is_floating_point() else 0.0
            step = max(rounding, self.step)
            return _add_noise(before, update * factor, self.std, random, clip=self.clip, step=step)

        return replace(upload, **{name: map_tree(add_noise, origins[name], updates[name]) for name in self.means})

    def _step_of(self, sent: Tensor) -> float:
        """Returns the distance of the numbers to which an upload made of this tensor is rounded, in its format. It is
        that at the largest number which the update and the noise can make: a server that sends zeros of few digits
        would else have the noise rounded away.
        """
        return step_of(sent, self.clip + RESERVE * self.std)

    def _check_sent(self, leaf: Any) -> None:
        """Refuses a leaf that was sent (0: nothing was sent), if an upload made of it could not be added up, or needs
        more noise.

        Raises:
            GenfedError: it is not finite, or too large.
        """
        if isinstance(leaf, Tensor) and not leaf.is_floating_point():
            return  # it is uploaded as it is
        step, limit = self.step, self.limit
        if isinstance(leaf, Tensor):
            largest = float(leaf.double().abs().max()) if leaf.numel() else 0.0
            step, limit = max(self._step_of(leaf), step), min(limit, torch.finfo(leaf.dtype).max)
        else:
            largest = float(abs(leaf))
        if not largest + self.clip + RESERVE * self.std < limit:  # NaN too
            raise GenfedError(f"it was sent a number of {largest:.2g}, which with its update could not be added up")
        if self.std:
            check_noise(self.std, largest + self.clip, step)


class _HeldStorage:
    """A client's private records, which keeps new ones back until they are released."""

    def __init__(self, storage: ClientStorage) -> None:
        self._storage = storage
        self._held: dict[str, tuple[Slot[Any], Any]] = {}

    def get(self, slot: Slot[R]) -> R | None:
        """See `ClientStorage`."""
        return self._storage.get(slot)

    def put(self, slot: Slot[R], record: R) -> None:
        """See `ClientStorage`."""
        self._held[slot.name] = (slot, record)

    def release(self) -> None:
        """Stores the new records."""
        for slot, record in self._held.values():
            self._storage.put(slot, record)


def _add_noise(before: Any, update: Any, std: float, random: np.random.Generator, *, clip: float, step: float) -> Any:
    """Returns what was sent plus a clipped update and noise, for one leaf.

    Args:
        before: the leaf as it was sent.
        update: the clipped update.
        std: standard deviation of the noise. 0: no noise.
        random: the randomness of the noise.
        clip: bound on the update.
        step: distance of the numbers that the result is rounded to.

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
        extra = draw_noise(std, before.shape, random, largest=largest, step=step)
        noisy = noisy + extra.to(before.device)
    return noisy.to(before.dtype)


def _clamp_variances(key: str, value: Any) -> Any:
    """Returns a mean with running variances at 0 or above, which noise can push below."""
    if isinstance(value, dict):
        return {k: _clamp_variances(k, v) for k, v in value.items()}
    return value.clamp_min(0) if key.endswith("running_var") else value
