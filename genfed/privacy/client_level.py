"""Client-level differential privacy of a trial: what is refused, the noise that its rounds need, what was released.

The server adds the noise (`NoisyClippedMean`), or under secure aggregation the clients do (`distributed`).
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo, list_groups, select_means
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase
from genfed.core.record import load, save
from genfed.core.schedule import Schedule, list_upload_phases
from genfed.engines.messages import RoundId
from genfed.privacy.accounting import epsilon, fits_budget, noise_for, warn_of_weak_privacy
from genfed.privacy.distributed_noise import add_client_noise
from genfed.privacy.dp_fedavg import NoisyClippedMean
from genfed.privacy.guarantee import PrivacyGuarantee
from genfed.privacy.randomness import os_randomness, seeded_randomness
from genfed.privacy.settings import ClientPrivacy

if TYPE_CHECKING:
    from genfed.experiment.trial import Trial

log = logging.getLogger(__name__)
ACCOUNT = "releases.safetensors"


@dataclass(frozen=True)
class Release:
    """The means of one round that the server gave away, or was about to."""

    step: int
    """Of the trial: rounds over all phases."""
    phase: str
    clients: tuple[int, ...]
    """Those asked: each is charged, whether or not it answered. Empty where that is secret, and all are charged."""
    clip: float
    """That of the phase's next round."""


@dataclass(frozen=True)
class ReleaseLedger:
    """All that was ever released; kept by the server, and only added to."""

    noise_multiplier: float
    """Of updates and counts together (z); settled before the first round."""
    releases: tuple[Release, ...] = ()

    def rounds(self) -> Counter[int]:
        """By client, how often it was asked for what was released."""
        return Counter(client for release in self.releases for client in release.clients)

    def most(self, how: ClientPrivacy, more: Sequence[ClientInfo] | None = None) -> int:
        """Rounds that the client which is charged most has to pay for; with another one in which these are asked."""
        if how.secret_sampling:
            return len(self.releases) + (more is not None)
        return max((self.rounds() + Counter(info.id for info in more or ())).values(), default=0)


def sampling_rate(how: ClientPrivacy, sample: float) -> float:
    """Of the subsampled Gaussian mechanism that a round is for a client that is charged for it."""
    # differs from the paper, but with secret_sampling: nothing is gained by sampling. Who takes part follows from the
    # seed, which clients know; so a round in which a client is asked is a whole Gaussian mechanism for it, and the
    # others are none.
    return sample if how.secret_sampling else 1.0


def expected_participants(how: ClientPrivacy, sample: float, clients: int, asked: int) -> float:
    """How many of so many clients are asked in a round, as far as it is known to all."""
    return sample * clients if how.secret_sampling else asked


def count_charged_rounds(how: ClientPrivacy, schedule: Schedule) -> int | None:
    """Returns the rounds that the client which is charged most pays for. None: it is not known in advance."""
    if any(phase.aggregate for phase in schedule.open_ended_phases()):
        return None
    uploads = [clients for _, clients in schedule.uploads()]
    if how.secret_sampling:
        return len(uploads)
    return max(Counter(info.id for clients in uploads for info in clients).values(), default=0)


def noise_multiplier(how: ClientPrivacy, rounds: int | None, sample: float) -> float:
    """What is set, or the least that suffices for a client that pays for so many rounds.

    Raises:
        GenfedError: it is not known how many these are, or the budget does not hold what is set.
    """
    if how.noise_multiplier is None:
        if rounds is None:
            raise GenfedError(
                "how many rounds there will be is not known in advance, so client_privacy.epsilon cannot be planned "
                "for; set client_privacy.noise_multiplier"
            )
        return noise_for([(sampling_rate(how, sample), rounds)], how)
    if rounds and not fits_budget(spent := [(how.noise_multiplier, sampling_rate(how, sample), rounds)], how):
        came = epsilon(spent, how.delta, how.accountant)
        raise GenfedError(
            f"client_privacy.epsilon = {how.epsilon:g}: with noise_multiplier = {how.noise_multiplier:g}, {rounds} "
            f"rounds of a client come to ε = {came:.2f}; have fewer rounds or more noise"
        )
    return how.noise_multiplier


def check_opacus() -> None:
    """Refuses client-level privacy where Opacus is missing.

    Raises:
        GenfedError: it is.
    """
    if find_spec("opacus") is None:
        raise GenfedError("""[client_privacy] needs the extra "privacy": pip install 'genfed[privacy]'""")


def check(config: Config, clients: Sequence[ClientInfo], seed: int) -> None:
    """Refuses before training what client-level privacy does not cover, or a budget that would be passed.

    Raises:
        GenfedError: Opacus is missing, or a method or setting that does not go with it.
    """
    if (how := config.client_privacy) is None:
        return
    check_opacus()
    for name, why in (
        ("aggregation", "stands in the place of the means that get the noise"),
        ("privacy", "protects examples; both together are not built"),
    ):
        if getattr(config, name) is not None:
            raise GenfedError(f"[client_privacy] with [{name}], which {why}: leave one of them out")
    if config.secure and how.adaptive:
        raise GenfedError("client_privacy.adaptive with [secure]: nobody can count the updates that are short enough")
    if config.secure and how.secret_sampling:
        raise GenfedError("client_privacy.secret_sampling with [secure]: clients must know whose masks are in a sum")
    if how.secret_sampling and config.federation.sample == 1:
        raise GenfedError("client_privacy.secret_sampling: with federation.sample = 1 everybody is asked; set it lower")
    if seed == config.seeds[0]:
        warn_of_weak_privacy(how, len(clients), f"there are {len(clients)} clients", "a client")
    for label, method in config.method.items():
        if method.pooled:
            continue
        schedule = Schedule(method, tuple(clients), config.federation.sample, seed)
        for phase in list_upload_phases(method):
            if (reason := reason_to_refuse(phase, how)) is not None:
                raise GenfedError(f"{label} cannot be run under [client_privacy]: in phase {phase.name} {reason}")
        try:
            sample = config.federation.sample
            rounds = count_charged_rounds(how, schedule)
            noise = noise_multiplier(how, rounds, sample)
            if config.secure and seed == config.seeds[0]:
                _warn_of_noise(label, config.secure.minimum_group, schedule)
            if how.adaptive and (rounds is None or rounds):
                asked = len(schedule.participants("", 0))
                how.adaptive.on_updates(noise, expected_participants(how, sample, len(clients), asked))
        except GenfedError as error:
            raise GenfedError(f"{label}: {error}") from None


def _warn_of_noise(label: str, least: int, schedule: Schedule) -> None:
    """Says where clients add much more noise than is needed, though none of a method's sums is small."""
    sums = [
        Counter(name for info in clients for name in list_groups(phase.aggregate, info))
        for phase, clients in schedule.different_uploads()
    ]
    smallest = min((count for each in sums for count in each.values()), default=0)
    if (times := math.sqrt(smallest / least)) > 1.5:
        log.warning(
            "secure.minimum_group = %d: the noise of so few must do, so the %d of %s add up to %.1f times what is "
            "needed; raise it as far as clients can be counted on to answer",
            least, smallest, label, times,
        )  # fmt: skip


def reason_to_refuse(phase: Phase[Any], how: ClientPrivacy) -> str | None:
    """Why the uploads of a phase cannot be protected; None: they can, or there are none."""
    means = select_means(phase.aggregate)
    for name, aggregate in phase.aggregate.items():
        if name not in means and aggregate.linear:
            return f"the server adds up {name}, of which a client's part has no bound"
        if name not in means:
            return f"the server uses every single {name}, and only means of clipped updates get noise"
        if how.secret_sampling and name not in (field.name for field in fields(phase.wire_types.sent)):
            return f"{name} is not sent, so that secret_sampling has nothing to release where nobody is asked for it"
    return None


def settle_noise(trial: "Trial") -> float:
    """The noise multiplier of a trial, found once and written down with its account."""
    file = trial.folder / ACCOUNT
    if not file.exists():
        assert trial.client_privacy is not None
        how, sample = trial.client_privacy, trial.federation.sample
        rounds = count_charged_rounds(how, trial.schedule)
        trial.folder.mkdir(parents=True, exist_ok=True)
        save(ReleaseLedger(noise_multiplier(how, rounds, sample)), file)
    return load(ReleaseLedger, file).noise_multiplier


def distribute_noise(phase: Phase[Any], trial: "Trial") -> Phase[Any]:
    """The phase with clients that clip their updates and add the noise themselves: so much each that those of the
    smallest sum allowed suffice.
    """
    how, secure = trial.client_privacy, trial.secure
    assert how is not None
    assert secure is not None
    fixed = how.reproducible_noise

    def draws(client: Client) -> np.random.Generator:
        if not fixed:
            return os_randomness()
        return seeded_randomness(
            trial.seed, phase.name, client.info.id, int(torch.randint(2**62, (), generator=client.rng))
        )

    return add_client_noise(phase, how.clip, settle_noise(trial) / math.sqrt(secure.minimum_group), draws)


class ClientLevelPrivacy:
    """What the server of a trial does about what it gives away, and its account."""

    def __init__(self, trial: "Trial") -> None:
        assert trial.client_privacy is not None
        self._trial, self._how, self._file = trial, trial.client_privacy, trial.folder / ACCOUNT
        self._clients, self._sample = trial.shards.clients, trial.federation.sample
        settle_noise(trial)

    def draw_secretly(self, step: RoundId) -> list[ClientInfo] | None:
        """Who is asked to upload in a round, drawn in secret; None: it is no secret."""
        if not self._how.secret_sampling:
            return None
        coins = self._draws(step, "asked").random(len(self._clients)) < self._sample
        return [info for info, coin in zip(self._clients, coins.tolist(), strict=True) if coin]

    def _draws(self, step: RoundId, *purpose: str) -> np.random.Generator:
        fixed = self._how.reproducible_noise
        return seeded_randomness(self._trial.seed, step.phase, step.round, *purpose) if fixed else os_randomness()

    def admit(self, step: RoundId, asked: Sequence[ClientInfo]) -> ReleaseLedger:
        """The account, which can hold this round.

        Raises:
            GenfedError: the budget does not hold another round.
        """
        how, account = self._how, load(ReleaseLedger, self._file)
        rounds = account.most(how, asked)
        if not fits_budget([(account.noise_multiplier, sampling_rate(how, self._sample), rounds)], how):
            raise GenfedError(
                f"client_privacy.epsilon = {how.epsilon:g} does not hold {step.phase} round {step.round}: rounds that "
                "were done again after a stop have been paid for twice; what was saved before it stands"
            )
        return account

    def charge_sum(self, step: RoundId, asked: Sequence[ClientInfo]) -> None:
        """Puts a round on the account whose noise the clients added, before its sum is uncovered."""
        account = self.admit(step, asked)
        release = Release(step.number, step.phase, tuple(sorted(info.id for info in asked)), self._how.clip)
        save(replace(account, releases=(*account.releases, release)), self._file)

    def fold(
        self, phase: Phase[Any], step: RoundId, asked: Sequence[ClientInfo], sent_to: Callable[[ClientInfo], Any]
    ) -> "NoisyReduction":
        """The means of a round, not yet charged.

        Raises:
            GenfedError: the budget does not hold another round.
        """
        how, account = self._how, self.admit(step, asked)
        before = [r.clip for r in account.releases if r.phase == step.phase and r.step < step.number]
        clip, noise = before[-1] if before else how.clip, account.noise_multiplier
        if how.adaptive:
            noise = how.adaptive.on_updates(
                noise, expected_participants(how, self._sample, len(self._clients), len(asked))
            )
        means = select_means(phase.aggregate)
        ids = () if how.secret_sampling else tuple(sorted(info.id for info in asked))
        sampled = (self._clients, self._sample) if how.secret_sampling else None
        clipped = NoisyClippedMean(means, asked, sent_to, clip, noise, self._draws(step), sampled)
        return NoisyReduction(clipped, self, Release(step.number, step.phase, ids, clip))

    def charge(self, clipped: NoisyClippedMean, release: Release) -> None:
        """Puts a round on the account, on the disk before anything of it is given away."""
        account, adaptive = load(ReleaseLedger, self._file), self._how.adaptive
        if adaptive:
            share = clipped.share_within(adaptive.on_count(account.noise_multiplier, clipped.expected))
            release = replace(release, clip=adaptive.next_clip(release.clip, share))
        save(replace(account, releases=(*account.releases, release)), self._file)


@dataclass(frozen=True)
class NoisyReduction:
    """What `Fold` is to a round, and charges it when it ends."""

    clipped: NoisyClippedMean
    central: ClientLevelPrivacy
    release: Release

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """See `Fold`."""
        self.clipped.add(info, upload, weight, sent)

    def skip(self, info: ClientInfo) -> None:
        """See `Fold`."""
        self.clipped.skip(info)

    def finish(self) -> Mapping[str, Any]:
        """See `Fold`; charged before it is given."""
        values = self.clipped.finish()
        self.central.charge(self.clipped, self.release)
        return values


def client_level_guarantee(trial: "Trial") -> PrivacyGuarantee:
    """What protects the clients of a trial, by what was released."""
    account, how = load(ReleaseLedger, trial.folder / ACCOUNT), trial.client_privacy
    assert how is not None
    rounds = account.most(how)
    charged = [(account.noise_multiplier, sampling_rate(how, trial.federation.sample), rounds)]
    spent = epsilon(charged, how.delta, how.accountant)
    return PrivacyGuarantee(
        epsilon=spent if math.isfinite(spent) else None,
        target=how.epsilon,
        delta=how.delta,
        accountant=how.accountant,
        noise_multiplier=(account.noise_multiplier, account.noise_multiplier),
        max_grad_norm=how.clip,
        steps=rounds,
        reproducible_noise=how.reproducible_noise,
        mechanism="DP-FedAvg under secure aggregation: clients clip their updates and add Gaussian noise"
        if trial.secure
        else f"DP-FedAvg: Gaussian noise on means of updates, {'adaptively ' if how.adaptive else ''}clipped"
        + (f", of clients drawn in secret with a chance of {trial.federation.sample:g}" if how.secret_sampling else ""),
        level="client",
        distributed=trial.secure is not None,
    )
