"""DP-FedAvg. McMahan, Ramage, Talwar, Zhang, Learning Differentially Private Recurrent Language Models, ICLR 2018,
arXiv 1710.06963, Algorithm 1: flat clipping, the estimator with a fixed denominator, equal weights. Adaptive clipping:
Andrew, Thakkar, McMahan, Ramaswamy, Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, arXiv
1905.03871, Algorithm 1. The server clips and adds the noise, and is trusted. (In `privacy.distributed_noise` the
clients do both.)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Fold, Mean, map_tree, refuse_unequal
from genfed.core.errors import GenfedError
from genfed.privacy.clipping import clip_update, subtract, zeros_like
from genfed.privacy.noise import draw_noise


@dataclass(frozen=True)
class UpdateSum(Aggregate):
    """Σ weight·update of each group, in double precision."""

    mean: Mean

    def group(self, info: ClientInfo) -> str:
        return self.mean.group(info)

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {self.mean.group(info): map_tree(lambda leaf: str(getattr(leaf, "shape", "a number")), value)}

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return {self.mean.group(info): map_tree(lambda leaf: leaf * weight, value)}

    def add(self, left: Any, right: Any) -> Any:
        both = {group: map_tree(lambda a, b: a + b, left[group], right[group]) for group in left.keys() & right.keys()}
        return left | right | both

    def finish(self, total: Any) -> Any:
        return total or {}


class NoisyClippedMean:
    """A `Fold` of clients' updates: the difference between what a client uploads and what it was sent. Each client's
    whole update (all fields together) is clipped to an L2 norm, and noise is added once to each group's sum. The sum is
    divided by the expected number of participating clients in the group, also if some of them do not answer. A client
    that does not answer adds nothing. Every group is released with noise.

    Floating-point tensors and numbers count, including BatchNorm's statistics; a running variance stays at 0 or above.
    Integers (BatchNorm's counters) are not released: they stay as they were sent, or are 0.
    """

    def __init__(
        self,
        means: Mapping[str, Mean],
        participants: Sequence[ClientInfo],
        sent_to: Callable[[ClientInfo], Any],
        clip: float,
        noise: float,
        draws: np.random.Generator,
        sampled: tuple[Sequence[ClientInfo], float] | None = None,
    ) -> None:
        """Prepares the reduction of one round.

        Args:
            means: the means of the phase, by upload field.
            participants: the clients of the round.
            sent_to: returns the record that a client is sent. It is the same for all clients of a group.
            clip: the L2 norm to which updates are clipped.
            noise: standard deviation of the noise on the sums, divided by `clip` (z_Δ).
            draws: the randomness of the noise.
            sampled: the clients from which `participants` were drawn independently, and the probability of each. Sums
                are divided by the expected number. None: the number of participants is public.

        Raises:
            GenfedError: participants were drawn, and a group was sent no state that could be released if none of its
                clients were drawn.
        """
        population, chance = sampled or (participants, 1.0)
        self._largest = len(participants) * clip
        self._means, self._clip, self._noise, self._draws = means, clip, noise, draws
        self._fold = Fold({name: UpdateSum(mean) for name, mean in means.items()}, list(participants))
        sizes = {name: Counter(mean.group(info) for info in population) for name, mean in means.items()}
        self._expected = {name: {group: n * chance for group, n in counts.items()} for name, counts in sizes.items()}
        self._like: dict[tuple[str, str], Any] = {}  # the state that was sent; where there is none, an upload
        self._unlike: dict[tuple[str, str], list[tuple[Any, Any]]] = {}  # layout and upload, until it is known which
        self.expected = len(population) * chance
        self._within, self._answered = 0, 0
        groups = {tuple(mean.group(info) for mean in means.values()): info for info in population}
        for info in groups.values():
            record = sent_to(info)
            for name, mean in means.items():
                if (before := getattr(record, name, None)) is not None:
                    self._like[name, mean.group(info)] = mean.extract(before)
        self._sent = set(self._like)
        required = {(name, group) for name, counts in self._expected.items() for group in counts}
        if sampled and (lacking := sorted(required - self._sent)):
            raise GenfedError(
                f"{lacking[0][0]} was not sent, so secret_sampling has nothing to release in a round without a client "
                "that uploads it"
            )

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Adds one reply. Its weight does not count.

        Raises:
            GenfedError: its names or shapes differ from those before it, or it was computed from another state.
        """
        updates = {}
        for name, mean in self._means.items():
            key, value = (name, mean.group(info)), mean.extract(getattr(upload, name))
            if key in self._sent:
                map_tree(refuse_unequal, self._like[key], mean.extract(getattr(sent, name, None)))
            updates[name] = map_tree(subtract, self._like[key] if key in self._sent else zeros_like(value), value)
        length, factor = clip_update(updates, self._clip)
        before = {
            name: self._like[name, mean.group(info)] for name, mean in self._means.items() if self._is_sent(name, info)
        }
        self._fold.add(info, SimpleNamespace(**updates), factor, SimpleNamespace(**before))
        for name, mean in self._means.items():
            if not self._is_sent(name, info):
                self._keep_layout((name, mean.group(info)), mean.extract(getattr(upload, name)), updates[name], info)
        self._within, self._answered = self._within + (length <= self._clip), self._answered + 1

    def _is_sent(self, name: str, info: ClientInfo) -> bool:
        return (name, self._means[name].group(info)) in self._sent

    def _keep_layout(self, part: tuple[str, str], value: Any, update: Any, info: ClientInfo) -> None:
        """Keeps one upload of each layout, from which names and types of what is released are taken."""
        layout = UpdateSum(self._means[part[0]]).read_layout(update, info)[part[1]]
        kept = self._unlike.setdefault(part, [])
        if layout not in [known for known, _ in kept]:
            kept.append((layout, value))

    def skip(self, info: ClientInfo) -> None:
        """Excludes a client, which then adds nothing."""
        self._fold.skip(info)

    def settle(self) -> dict[int, str]:
        """See `Fold`."""
        misfits = self._fold.settle()
        for part, kept in self._unlike.items():
            self._like[part] = next(value for layout, value in kept if layout == self._fold.layouts[part])
        return misfits

    def finish(self) -> dict[str, Any]:
        """Returns the reduced values that `update` gets. Every call draws new noise.

        Raises:
            GenfedError: no client of a group answered, and the group was sent no state.
        """
        self.settle()
        sums, found = self._fold.finish(), {}
        for name, mean in self._means.items():
            parts = {}
            for group, count in sorted(self._expected[name].items()):
                if (like := self._like.get((name, group))) is None:
                    raise GenfedError(f"no client{f' of architecture {group}' if group else ''} uploaded {name}")
                total = sums[name].get(group, map_tree(lambda leaf: 0.0, like))
                parts[group] = self._release("", like, total, (name, group) in self._sent, count)
            found[name] = mean.join_groups(parts)
        return found

    def share_within(self, noise: float) -> float:
        """Returns the share of the updates that were not clipped. Noise of this standard deviation is added to their
        number. A client that did not answer counts as one half.
        """
        count = self._within - self._answered / 2
        if noise:
            count += float(draw_noise(noise, (), self._draws, largest=self.expected))
        return count / self.expected + 0.5

    def _release(self, key: str, like: Any, total: Any, sent: bool, count: float) -> Any:
        if isinstance(like, dict):
            return {k: self._release(k, like[k], total[k], sent, count) for k in like}
        if isinstance(like, Tensor) and not like.is_floating_point():
            return like.clone() if sent else torch.zeros_like(like)
        if self._noise:
            shape = tuple(like.shape) if isinstance(like, Tensor) else ()
            total = total + draw_noise(self._noise * self._clip, shape, self._draws, largest=self._largest)
        if not isinstance(like, Tensor):
            return (like if sent else 0.0) + float(total) / count
        new = total / count + (like.double() if sent else torch.zeros_like(like, dtype=torch.float64))
        return (new.clamp_min(0) if key.endswith("running_var") else new).to(like.dtype)
