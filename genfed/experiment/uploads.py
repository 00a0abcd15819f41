"""How uploads travel in each phase of a trial: plainly, with noise, or under secure aggregation."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from genfed.core.phase import Phase
from genfed.core.privacy import SumNoise
from genfed.engines.round import PlainUploads, Uploads
from genfed.experiment.trial import Trial
from genfed.privacy.client_level import NoisyUploads
from genfed.privacy.distributed_noise import add_client_noise, client_randomness
from genfed.privacy.dp_sum import NoisySums, add_share_of_noise, with_bounds
from genfed.secure_aggregation.fixed_point import SCALE, largest_number
from genfed.secure_aggregation.round import SecureUploads


def uploads_by_phase(trial: Trial, phases: Iterable[Phase[Any]]) -> dict[str, Uploads]:
    """Returns by name of the phase how its uploads travel."""
    schedule, quorum = trial.schedule, trial.federation.quorum
    plain, scoring = PlainUploads(schedule, quorum), PlainUploads(replace(schedule, fraction=1.0), quorum)
    protected: Uploads = plain
    noise = trial.client_level()
    if trial.secure is not None:
        protected = SecureUploads(schedule, quorum, trial.secure, noise)
    elif noise is not None:
        protected = NoisyUploads(noise, quorum)
    if trial.secure is None and noise is not None and (known := sum_noise(trial)) is not None:
        protected = NoisySums(noise, known, quorum)
    return {phase.name: scoring if phase.scores else protected if phase.aggregate else plain for phase in phases}


def sum_noise(trial: Trial) -> SumNoise | None:
    """Returns the bounds and the noise of sums over examples. None: the trial has no privacy of sums."""
    if trial.sum_privacy is None:
        return None
    return SumNoise(trial.sum_privacy.bounds, trial.settle_plan().common_multiplier)


def with_client_noise(phase: Phase[Any], trial: Trial, charge: Callable[[], None] | None = None) -> Phase[Any]:
    """Returns the phase with clients that do their part of the protection: under privacy of sums they bound what each
    example adds, and under secure aggregation they add the noise. Without such privacy returns the phase as it is.
    `charge`: as in `add_client_noise`.
    """
    if not phase.aggregate or (how := trial.round_noise) is None:
        return phase
    draws = client_randomness(trial.seed if how.reproducible_noise else None, phase.name)
    if (known := sum_noise(trial)) is not None:
        bounded = with_bounds(phase, known)
        if trial.secure is None:
            return bounded
        return add_share_of_noise(bounded, known, parts=trial.secure.minimum_group, draws=draws, charge=charge)
    if trial.client_privacy is None or trial.secure is None:
        return phase
    clip = trial.client_privacy.clip_norm
    std = trial.settle_plan().client_std(clip, trial.secure.minimum_group)
    limit = largest_number(len(trial.shards.clients))
    return add_client_noise(phase, clip=clip, std=std, draws=draws, step=1 / SCALE, limit=limit, charge=charge)
