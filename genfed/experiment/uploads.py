"""How uploads travel in each phase of a trial: plainly, with noise, or under secure aggregation."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from genfed.core.phase import Phase
from genfed.engines.round import PlainUploads, Uploads
from genfed.experiment.trial import Trial
from genfed.privacy.client_level import NoisyUploads
from genfed.privacy.distributed_noise import add_client_noise, client_randomness
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
    return {phase.name: scoring if phase.scores else protected if phase.aggregate else plain for phase in phases}


def with_client_noise(phase: Phase[Any], trial: Trial, charge: Callable[[], None] | None = None) -> Phase[Any]:
    """Returns the phase with clients that add the noise, if the trial has client-level privacy and secure aggregation.
    Otherwise returns the phase as it is. `charge`: as in `add_client_noise`.
    """
    if (how := trial.client_privacy) is None or trial.secure is None or not phase.aggregate:
        return phase
    std = trial.settle_plan().client_std(how.clip_norm, trial.secure.minimum_group)
    draws = client_randomness(trial.seed if how.reproducible_noise else None, phase.name)
    limit = largest_number(len(trial.shards.clients))
    return add_client_noise(phase, clip=how.clip_norm, std=std, draws=draws, step=1 / SCALE, limit=limit, charge=charge)
