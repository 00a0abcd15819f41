"""Differential privacy of every example in sums over examples: the Gaussian mechanism of Dwork, Kenthapadi, McSherry,
Mironov, Naor ("Our Data, Ourselves", EUROCRYPT 2006) on the statistics of all clients together, as in "Analyze Gauss"
(Dwork, Talwar, Thakurta, Zhang, STOC 2014). The server adds the noise, or each client adds a part of it under masks.
"""

import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Fold, Sum, map_tree
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError, StorageError, WithheldError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.privacy import SumNoise
from genfed.core.schedule import Schedule, list_upload_phases
from genfed.core.text import indent_lines
from genfed.engines.messages import RoundId
from genfed.engines.round import Round, RoundRequest
from genfed.privacy.client_level import ClientLevelPrivacy, Release
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.noise import draw_noise
from genfed.privacy.plan import check_client_plan
from genfed.privacy.randomness import require_privacy
from genfed.privacy.settings import DPSum

log = logging.getLogger(__name__)

FINE = 2**16
"""Steps into which clients that add noise divide each whole number, so that rounding does not change their noise."""


def check_sum_level(how: DPSum, schedules: Mapping[str, Schedule]) -> None:
    """Refuses methods whose clients upload something else than sums of bounded parts, and runs that would exceed the
    budget.

    Args:
        how: settings of the mechanism.
        schedules: the schedule of each federated method, by label.

    Raises:
        GenfedError: Opacus is missing, a method is not supported, or a run would exceed the budget.
    """
    require_privacy('[privacy] kind = "dp_sum"')
    for label, schedule in schedules.items():
        for phase in list_upload_phases(schedule.method):
            if phase.smallest_class:
                raise GenfedError(
                    f'{label} cannot be run under privacy.kind = "dp_sum" with minimum_class_count = '
                    f"{phase.smallest_class}: one example more can bring several into the sums, and ε covers one; set "
                    "0, since noise hides each example in classes of any size"
                )
            if phase.noise_scales is None:
                raise GenfedError(
                    f'{label} cannot be run under privacy.kind = "dp_sum": what clients upload in phase {phase.name} '
                    "is no sum over their examples with bounded parts; fedcgs uploads one, unless its shrinkage is "
                    "held_out"
                )
        try:
            check_client_plan(label, how, schedule)
        except GenfedError as error:
            raise GenfedError(f"{label}: {error}") from None


def with_bounds(phase: Phase[Any], noise: SumNoise) -> Phase[Any]:
    """Returns the phase with clients that bound each example's part, and a server that knows the noise of the sums."""
    if phase.noise_scales is None or phase.work is None:
        return phase
    work = phase.work

    def bounded(client: Client, sent: Any) -> Reply[Any]:
        return work(replace(client, sums=noise), sent)

    def update(server: Server, state: Any, reduced: Reduced) -> Any:
        return phase.update(replace(server, sums=noise), state, reduced)

    return replace(phase, work=bounded, update=update, wire=phase.wire_types)


def add_share_of_noise(
    phase: Phase[Any],
    noise: SumNoise,
    *,
    parts: int,
    draws: Callable[[Client], np.random.Generator],
    charge: Callable[[], None] | None = None,
) -> Phase[Any]:
    """Returns the phase, as `with_bounds` gives it, with clients that add a part of the noise to their sums. The noise
    of `parts` clients together is enough. Sums travel in steps of 1/65,536, and are whole again after they are added
    up. A failure has the same text whatever its reason, which could depend on an example.

    Args:
        phase: a phase whose uploads are whole numbers that are added up.
        noise: the noise of the sums.
        parts: the smallest number of clients whose noise together is enough.
        draws: gives a client the randomness of its noise.
        charge: called before any example is used; raises to refuse the work. None: nothing is charged.

    Raises:
        GenfedError: an upload field is not added up.
    """
    if any(type(aggregate) is not Sum for aggregate in phase.aggregate.values()):
        raise GenfedError(f"phase {phase.name}: only sums over examples get noise")
    assert phase.work is not None
    work, part = phase.work, noise.multiplier / math.sqrt(parts)

    def noisy(client: Client, sent: Any) -> Reply[Any]:
        if charge is not None:
            charge()
        try:
            upload = work(client, sent).upload
            values = {name: getattr(upload, name) for name in phase.aggregate}
            fine = _add_noise(phase, noise, values, part, draws(client), FINE)
            return Reply(replace(upload, **fine))
        except (KeyboardInterrupt, StorageError):
            raise
        except BaseException as error:  # its text, or its type, could depend on an example
            log.warning("client %d failed in %s\n%s", client.info.id, phase.name, indent_lines(traceback.format_exc()))
            raise WithheldError from error

    def update(server: Server, state: Any, reduced: Reduced) -> Any:
        values = {name: map_tree(_whole, value) for name, value in reduced.values.items()}
        return phase.update(server, state, Reduced(values, reduced.clients))

    return replace(phase, work=noisy, update=update, wire=phase.wire_types, expected=None)


def _whole(fine: Tensor) -> Tensor:
    """Returns sums in steps of 1/65,536 as whole numbers, rounded to the nearest."""
    return torch.div(fine + FINE // 2, FINE, rounding_mode="floor")


def _add_noise(
    phase: Phase[Any], noise: SumNoise, values: Mapping[str, Any], std: float, draws: np.random.Generator, steps: int
) -> dict[str, Any]:
    """Returns whole numbers with noise, in whole steps of 1 / `steps`.

    Args:
        phase: their phase, which knows the scale of each.
        noise: the bounds that they keep to.
        values: the numbers by field.
        std: standard deviation of the noise on a number of scale 1. 0: no noise.
        draws: the randomness of the noise.
        steps: see above. 1: rounding is of the released sum itself, and may be coarser than the noise.
    """
    assert phase.noise_scales is not None

    def add(value: Tensor, scale: Tensor) -> Tensor:
        exact = value.long().cpu() * steps
        if not std:
            return exact
        smallest = float(scale.min()) * std * steps
        extra = draw_noise(smallest, value.shape, draws, largest=0.0, step=0.0 if steps == 1 else 1.0)
        return exact + (extra * (scale / scale.min())).round().long()

    # Whole noise on whole numbers is the rounded sum of the number and the noise, so it protects as much.
    scales = phase.noise_scales(noise.bounds, values)
    return {name: map_tree(add, value, scales[name]) for name, value in values.items()}


@dataclass(frozen=True)
class NoisySums:
    """`engines.round.Uploads` to whose sums the server adds noise."""

    privacy: ClientLevelPrivacy
    """The ledger of releases."""
    noise: SumNoise
    quorum: float
    """Fraction of the participants that must answer."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """See `Uploads`."""
        return self.privacy.participants(round_id)

    def open(self, request: RoundRequest) -> Round:
        """See `Uploads`."""
        self.privacy.admit(request.round_id, request.clients)
        known = request.phase.expected
        expected = None if known is None else known(request.server)
        fold = Fold(request.phase.aggregate, request.clients, expected)
        return Round(request, self.quorum, _NoisySum(self, request, fold))


@dataclass(frozen=True)
class _NoisySum:
    """A `Fold` of sums that get noise, and whose round is charged when it is finished."""

    uploads: NoisySums
    request: RoundRequest
    fold: Fold

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """See `Fold`."""
        self.fold.add(info, upload, weight, sent)

    def skip(self, info: ClientInfo) -> None:
        """See `Fold`."""
        self.fold.skip(info)

    def settle(self) -> Mapping[int, str]:
        """See `Fold`."""
        return self.fold.settle()

    def finish(self) -> Mapping[str, Any]:
        """See `Fold`. The round is charged before this returns."""
        privacy, noise, step = self.uploads.privacy, self.uploads.noise, self.request.round_id
        draws = privacy.draws(step)
        values = _add_noise(self.request.phase, noise, self.fold.finish(), noise.multiplier, draws, 1)
        ids = tuple(sorted(info.id for info in self.request.clients))
        privacy.charge(Release(step.number, step.phase, ids, 1.0))
        return values


def describe_sums(found: PrivacyGuarantee) -> PrivacyGuarantee:
    """Returns the guarantee of every example, given that of a ledger whose rounds released noisy sums."""
    who = "each client adds a part of the Gaussian noise, under masks" if found.distributed else "Gaussian noise"
    return replace(
        found,
        level="example",
        clipped="what an example adds",
        mechanism=f"DP-SUM: {who} on sums over the examples of all clients",
    )
