"""DP-FedAvg. McMahan, Ramage, Talwar, Zhang, Learning Differentially Private Recurrent Language Models, ICLR 2018,
arXiv 1710.06963, Algorithm 1: flat clipping, the estimator with a fixed denominator, equal weights. Adaptive clipping:
Andrew, Thakkar, McMahan, Ramaswamy, Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, arXiv
1905.03871, Algorithm 1. The server clips and adds the noise, and is trusted (`privacy.distributed_noise`: clients do).
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
    """A `Fold` of what the clients asked add to what they were sent: each one's whole upload (all fields together) is
    clipped to an L2 norm, noise is added once to the sums, and they are divided by how many of a group were to be
    asked, whoever answered: who did not adds nothing, and every group is released with noise.

    Floating-point tensors and numbers count, BatchNorm's statistics among them; a running variance stays at 0 or above.
    Integers (its counters) are not released: they are as they were sent, or 0.
    """

    def __init__(
        self,
        means: Mapping[str, Mean],
        asked: Sequence[ClientInfo],
        sent_to: Callable[[ClientInfo], Any],
        clip: float,
        noise: float,
        draws: np.random.Generator,
        sampled: tuple[Sequence[ClientInfo], float] | None = None,
    ) -> None:
        """`noise`: its standard deviation over `clip`, on the sums (z_Δ). `sent_to` gives the record that a client is
        sent, the same in all of a group. `sampled`: of whom those asked were drawn, each by itself with what chance, so
        that sums are divided by how many were to be expected; None: who was asked is known.

        Raises:
            GenfedError: those asked were drawn, and a group was sent no state to release where nobody of it was.
        """
        everybody, chance = sampled or (asked, 1.0)
        self._means, self._clip, self._noise, self._draws = means, clip, noise, draws
        self._fold = Fold({name: UpdateSum(mean) for name, mean in means.items()}, list(asked))
        of = {name: Counter(mean.group(info) for info in everybody) for name, mean in means.items()}
        self._expected = {name: {group: n * chance for group, n in counts.items()} for name, counts in of.items()}
        self._like: dict[tuple[str, str], Any] = {}  # the state sent; where none was, an upload
        self.expected = len(everybody) * chance
        self._within, self._answered = 0, 0
        groups = {tuple(mean.group(info) for mean in means.values()): info for info in everybody}
        for info in groups.values():
            record = sent_to(info)
            for name, mean in means.items():
                if (before := getattr(record, name, None)) is not None:
                    self._like[name, mean.group(info)] = mean.extract(before)
        self._sent = set(self._like)
        wanted = {(name, group) for name, counts in self._expected.items() for group in counts}
        if sampled and (lacking := sorted(wanted - self._sent)):
            raise GenfedError(
                f"{lacking[0][0]} was not sent, so that secret_sampling has nothing to release where nobody is asked "
                "for it"
            )

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Folds one reply in; its weight does not count.

        Raises:
            GenfedError: it does not fit those before it, or was made from another state than theirs.
        """
        updates = {}
        for name, mean in self._means.items():
            key, value = (name, mean.group(info)), mean.extract(getattr(upload, name))
            if key in self._sent:
                map_tree(refuse_unequal, self._like[key], mean.extract(getattr(sent, name, None)))
            updates[name] = map_tree(subtract, self._like[key] if key in self._sent else zeros_like(value), value)
        length, factor = clip_update(updates, self._clip)
        self._fold.add(info, SimpleNamespace(**updates), factor)
        for name, mean in self._means.items():
            self._like.setdefault((name, mean.group(info)), mean.extract(getattr(upload, name)))
        self._within, self._answered = self._within + (length <= self._clip), self._answered + 1

    def skip(self, info: ClientInfo) -> None:
        """Leaves a client out: as if it had added nothing."""
        self._fold.skip(info)

    def finish(self) -> dict[str, Any]:
        """What `update` gets, with noise that is drawn anew whenever this is called.

        Raises:
            GenfedError: nobody in a group answered, and there is no state that was sent.
        """
        sums, found = self._fold.finish(), {}
        for name, mean in self._means.items():
            parts = {}
            for group, count in sorted(self._expected[name].items()):
                if (like := self._like.get((name, group))) is None:
                    raise GenfedError(f"no client{f' of architecture {group}' if group else ''} gave its {name}")
                total = sums[name].get(group, map_tree(lambda leaf: 0.0, like))
                parts[group] = self._released("", like, total, (name, group) in self._sent, count)
            found[name] = mean.join_groups(parts)
        return found

    def share_within(self, noise: float) -> float:
        """Of the updates the share that was no longer than the clip, with noise of this standard deviation on the
        count. Who did not answer counts for half.
        """
        count = self._within - self._answered / 2 + (noise * float(self._draws.standard_normal()) if noise else 0.0)
        return count / self.expected + 0.5

    def _released(self, key: str, like: Any, total: Any, sent: bool, count: float) -> Any:
        if isinstance(like, dict):
            return {k: self._released(k, like[k], total[k], sent, count) for k in like}
        if isinstance(like, Tensor) and not like.is_floating_point():
            return like.clone() if sent else torch.zeros_like(like)
        if self._noise:
            shape = tuple(like.shape) if isinstance(like, Tensor) else ()
            total = total + self._noise * self._clip * torch.from_numpy(np.asarray(self._draws.standard_normal(shape)))
        if not isinstance(like, Tensor):
            return (like if sent else 0.0) + float(total) / count
        new = total / count + (like.double() if sent else torch.zeros_like(like, dtype=torch.float64))
        return (new.clamp_min(0) if key.endswith("running_var") else new).to(like.dtype)
