"""Client-level differential privacy of a trial, on the server: the noise of each round, and the ledger of releases.

The server adds the noise (`NoisyClippedMean`). Under secure aggregation the clients do (`distributed_noise`).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genfed.core.aggregate import ClientInfo, select_means
from genfed.core.errors import GenfedError, RecordError
from genfed.core.phase import Phase
from genfed.core.record import load, save, unpack
from genfed.core.schedule import Schedule
from genfed.engines.messages import RoundId
from genfed.engines.round import Round, RoundRequest
from genfed.privacy.accounting import Mechanism, account, fits_budget
from genfed.privacy.dp_fedavg import NoisyClippedMean
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.plan import PrivacyPlan, expected_participants, sampling_rate
from genfed.privacy.randomness import os_randomness, seeded_randomness
from genfed.privacy.settings import DPFedAvg, RoundNoise

RELEASES = "releases.safetensors"


@dataclass(frozen=True)
class Release:
    """The means of one round that the server has released, or was about to release."""

    step: int
    """Number of the round, counted over all phases."""
    phase: str
    clients: tuple[int, ...]
    """Ids of the participating clients. Each is charged, also if it did not answer. Empty: they are secret, and all
    clients are charged."""
    clip: float
    """Norm to which updates are clipped in the phase's next round."""


@dataclass(frozen=True)
class ReleaseLedger:
    """All releases of a trial. The server stores the ledger and only adds to it."""

    releases: tuple[Release, ...] = ()

    @property
    def last(self) -> int:
        """The last round of which there is a release. −1: there is none."""
        return max((release.step for release in self.releases), default=-1)

    def rounds(self) -> Counter[int]:
        """Returns by client the number of released rounds in which it participated."""
        return Counter(client for release in self.releases for client in release.clients)

    def charged_rounds(self, how: RoundNoise, more: Sequence[ClientInfo] | None = None) -> int:
        """Returns the largest number of rounds that a client is charged for.

        Args:
            how: settings of client-level privacy.
            more: the clients of one more round, which is counted too. None: no other round.
        """
        if how.secret_sampling:
            return len(self.releases) + (more is not None)
        return max((self.rounds() + Counter(info.id for info in more or ())).values(), default=0)


def read_releases(folder: Path) -> ReleaseLedger:
    """Returns the ledger of the trial in `folder`. A missing file is an empty ledger, where nothing was released yet.

    Raises:
        GenfedError: it is damaged.
    """
    try:
        return load(ReleaseLedger, folder / RELEASES) if (folder / RELEASES).exists() else ReleaseLedger()
    except RecordError as error:
        raise GenfedError(f"{error}; put it back as it was, or start anew with --fresh") from None


class ClientLevelPrivacy:
    """The noise that protects a trial's clients, and the ledger of what was released."""

    def __init__(
        self, how: RoundNoise, plan: PrivacyPlan, schedule: Schedule, folder: Path, released: int = -1
    ) -> None:
        """Prepares the noise.

        Args:
            how: settings of the mechanism.
            plan: the noise of the trial.
            schedule: the clients of every round.
            folder: the trial's folder.
            released: the last round that the ledger must have. −1: it may be empty.
        """
        self._how, self._schedule, self._folder, self._released = how, schedule, folder, released
        self._noise = plan.common_multiplier
        self._clip = how.clip_norm if isinstance(how, DPFedAvg) else 1.0  # sums are in units of their bound

    def _read_releases(self) -> ReleaseLedger:
        """Returns the ledger of the trial.

        Raises:
            GenfedError: releases are lost.
        """
        ledger = read_releases(self._folder)
        if ledger.last < self._released:
            raise GenfedError(
                f"{self._folder / RELEASES} lacks the release of round {self._released}, for which the privacy budget "
                "was charged; put it back as it was, or start anew with --fresh"
            )
        self._released = ledger.last
        return ledger

    @property
    def secret(self) -> bool:
        """Whether the participants of a round are secret."""
        return self._how.secret_sampling

    def participants(self, step: RoundId) -> list[ClientInfo]:
        """Returns the clients of a round, by id. Where they are secret, every call draws them anew."""
        if not self.secret:
            return self._schedule.participants(step.phase, step.round)
        clients = self._schedule.clients
        coins = self.draws(step, "asked").random(len(clients)) < self._schedule.fraction
        return [info for info, coin in zip(clients, coins.tolist(), strict=True) if coin]

    def draws(self, step: RoundId, *purpose: str) -> np.random.Generator:
        """Returns the randomness of a round's noise, or of what `purpose` names."""
        fixed = self._how.reproducible_noise
        return seeded_randomness(self._schedule.seed, step.phase, step.round, *purpose) if fixed else os_randomness()

    def admit(self, step: RoundId, clients: Sequence[ClientInfo]) -> ReleaseLedger:
        """Returns the ledger, after a check that the budget allows this round.

        Raises:
            GenfedError: the round would exceed the budget.
        """
        how, ledger = self._how, self._read_releases()
        if not fits_budget(self._mechanisms(ledger.charged_rounds(how, clients)), how):
            raise GenfedError(
                f"{step} would exceed privacy.epsilon = {how.epsilon:g}: rounds that were "
                "repeated after a stop are charged twice; what was saved before remains"
            )
        return ledger

    def charge_sum(self, step: RoundId, clients: Sequence[ClientInfo]) -> None:
        """Charges a round in which clients added the noise, before its sum is revealed."""
        self.admit(step, clients)
        self.charge(Release(step.number, step.phase, tuple(sorted(info.id for info in clients)), self._clip))

    def fold(
        self, phase: Phase[Any], step: RoundId, clients: Sequence[ClientInfo], sent_to: Callable[[ClientInfo], Any]
    ) -> "NoisyReduction":
        """Returns the noisy reduction of a round, which is not yet charged.

        Args:
            phase: the phase.
            step: the round.
            clients: the participating clients.
            sent_to: returns the record that a client is sent.

        Raises:
            GenfedError: the round would exceed the budget.
        """
        how, ledger = self._how, self.admit(step, clients)
        assert isinstance(how, DPFedAvg)
        before = [r.clip for r in ledger.releases if r.phase == step.phase and r.step < step.number]
        clip, noise = before[-1] if before else how.clip_norm, self._noise
        if how.adaptive:
            noise = how.adaptive.on_updates(noise, expected_participants(how, self._schedule, len(clients)))
        means = select_means(phase.aggregate)
        ids = () if how.secret_sampling else tuple(sorted(info.id for info in clients))
        sampled = (self._schedule.clients, self._schedule.fraction) if how.secret_sampling else None
        clipped = NoisyClippedMean(means, clients, sent_to, clip, noise, self.draws(step), sampled)
        return NoisyReduction(clipped, self, Release(step.number, step.phase, ids, clip))

    def next_clip(self, clipped: NoisyClippedMean, clip: float) -> float:
        """Returns the clipping norm of the next round.

        Args:
            clipped: the finished round.
            clip: its clipping norm.
        """
        if not isinstance(self._how, DPFedAvg) or (adaptive := self._how.adaptive) is None:
            return clip
        return adaptive.next_clip(clip, clipped.share_within(adaptive.on_count(self._noise, clipped.expected)))

    def charge(self, release: Release) -> None:
        """Charges a round; the charge is on disk before anything of the round is released."""
        ledger = self._read_releases()
        save(ReleaseLedger((*ledger.releases, release)), self._folder / RELEASES)
        self._released = max(self._released, release.step)

    def guarantee(self, *, distributed: bool) -> PrivacyGuarantee:
        """Returns the guarantee for the clients of a trial. `distributed`: whether the clients added the noise."""
        how, rounds = self._how, self._read_releases().charged_rounds(self._how)
        spent = account(self._mechanisms(rounds), how.delta, how.accountant)
        return PrivacyGuarantee(
            epsilon=spent.epsilon if math.isfinite(spent.epsilon) else None,
            target=how.epsilon,
            delta=how.delta,
            accountant=spent.accountant,
            noise_multiplier=(self._noise, self._noise),
            max_grad_norm=self._clip,
            steps=rounds,
            reproducible_noise=how.reproducible_noise,
            mechanism=self._mechanism(distributed),
            level="client",
            distributed=distributed,
            accountant_note=spent.note,
        )

    def _mechanisms(self, rounds: int) -> list[Mechanism]:
        return [(self._noise, sampling_rate(self._how, self._schedule.fraction), rounds)]

    def _mechanism(self, distributed: bool) -> str:
        if distributed:
            return "DP-FedAvg under secure aggregation: clients clip their updates and add Gaussian noise"
        adaptively = "adaptively " if isinstance(self._how, DPFedAvg) and self._how.adaptive else ""
        text = f"DP-FedAvg: Gaussian noise on means of updates, {adaptively}clipped"
        chance = f", of clients that are selected in secret, each with probability {self._schedule.fraction:g}"
        return text + chance if self._how.secret_sampling else text


@dataclass(frozen=True)
class NoisyReduction:
    """A `Fold` with noise that charges its round when it is finished."""

    clipped: NoisyClippedMean
    privacy: ClientLevelPrivacy
    release: Release

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """See `Fold`."""
        self.clipped.add(info, upload, weight, sent)

    def skip(self, info: ClientInfo) -> None:
        """See `Fold`."""
        self.clipped.skip(info)

    def settle(self) -> dict[int, str]:
        """See `Fold`."""
        return self.clipped.settle()

    def finish(self) -> Mapping[str, Any]:
        """See `Fold`. The round is charged before this returns."""
        values = self.clipped.finish()
        self.privacy.charge(replace(self.release, clip=self.privacy.next_clip(self.clipped, self.release.clip)))
        return values


@dataclass(frozen=True)
class NoisyUploads:
    """`engines.round.Uploads` to whose means the server adds noise."""

    privacy: ClientLevelPrivacy
    quorum: float
    """Fraction of the participants that must answer. Not used where participants are secret."""

    def participants(self, round_id: RoundId) -> list[ClientInfo]:
        """See `Uploads`."""
        return self.privacy.participants(round_id)

    def open(self, request: RoundRequest) -> Round:
        """See `Uploads`."""
        sent = request.phase.wire_types.sent
        fold = self.privacy.fold(
            request.phase, request.round_id, request.clients, lambda info: unpack(sent, request.send(info))
        )
        return Round(request, None if self.privacy.secret else self.quorum, fold)
