"""Robust aggregation: a rule that replaces the means, or the sums, which methods declare."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Mean, Sum, map_tree, refuse_unequal, select_means
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase

S = TypeVar("S")
_SUM = Sum()
_PIECE = 2**16  # coordinates that are reduced together, so that little memory is needed beside the uploads


class AggregationRule:
    """A rule that reduces the uploads of a group. Their order may only break ties."""

    def check(self, count: int) -> None:
        """Refuses a group that is too small.

        Raises:
            GenfedError: `count` uploads are too few for the share of clients assumed malicious.
        """
        return

    def describe(self) -> str:
        """Returns the rule's name in words, for the report."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()


class CoordinatewiseRule(AggregationRule, ABC):
    """A rule for each coordinate by itself, which ignores the weights that clients claim."""

    @abstractmethod
    def reduce(self, values: Tensor) -> Tensor:
        """Returns the reduced coordinates [m] of values float64 [n, m], one row per client."""


class LinearCombination(AggregationRule, ABC):
    """A combination of the updates (upload − sent), chosen by their lengths and angles."""

    @abstractmethod
    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Returns the factor of each update, float64 [n]: at least 0, with a sum of at most 1.

        Args:
            gram: the updates' inner products, float64 [n, n].
            weights: the weights that clients claim, float64 [n].
        """


class GroupedRule(AggregationRule, ABC):
    """A rule for sums: clients are divided into groups, and the sums of the groups are joined as the phase says."""

    groups: int
    """Number of groups."""

    def check_groups(self, ids: Iterable[int]) -> None:
        """Refuses clients that leave a group empty: fewer malicious ones than are said would then spoil the sum.

        Args:
            ids: ids of the clients, or numbers of their groups.

        Raises:
            GenfedError: a group has no client.
        """
        if (filled := len({client % self.groups for client in ids})) < self.groups:
            raise GenfedError(
                f"aggregation.groups = {self.groups}: client i is in the group i modulo {self.groups}, and the uploads "
                f"lie in {filled} of them; fewer groups, or more clients in a round, are allowed"
            )


@dataclass(frozen=True)
class GroupedSum(Aggregate):
    """Sums over groups of clients, joined when the last upload is there. Client i is in the group i modulo `groups`: f
    malicious clients spoil at most f groups, whichever they are in, so the groups need no secret.
    """

    rule: GroupedRule
    join: Callable[[Sequence[Any]], Any]
    """The sums of the groups → what replaces the sum over all clients. See `Phase.join_sums`."""

    def bound(self, largest: float, examples: int) -> float:
        return _SUM.bound(largest, examples)

    def describe(self) -> str:
        return f"added up by group, joined by {self.rule.describe()}"

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return _SUM.read_layout(value, info)

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return {info.id % self.rule.groups: _SUM.lift(value, weight, info, sent)}

    def add(self, left: Any, right: Any) -> Any:
        both = {group: _SUM.add(left[group], right[group]) for group in left.keys() & right.keys()}
        return left | right | both

    def finish(self, total: Any) -> Any:
        if total is None:
            return None
        self.rule.check_groups(total)
        return self.join([_SUM.finish(part) for _, part in sorted(total.items())])


@dataclass(frozen=True)
class HeldUpload:
    """One client's upload, held until all of its group are there."""

    value: Any
    weight: float
    """The weight that the client claims."""
    sent: Any
    """The value that the client was sent, with the same names and shapes. None: the upload is itself an update."""


@dataclass(frozen=True)
class RobustMean(Aggregate):
    """A rule that replaces a mean, in each of its groups. All uploads of a round are held until the last one is there.

    Lengths and angles are those of all floating-point tensors and numbers of the field together, including BatchNorm's
    statistics. An integer or a boolean is the (lower) median of the uploads whose factor is not 0.
    """

    mean: Mean
    rule: AggregationRule

    def group(self, info: ClientInfo) -> str:
        return self.mean.group(info)

    def join_groups(self, by_group: Mapping[str, Any]) -> Any:
        return self.mean.join_groups(by_group)

    def describe(self) -> str:
        return f"all held, reduced by {self.rule.describe()}{' within an architecture' if self.mean.by else ''}"

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return self.mean.read_layout(value, info)

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        before = None if sent is None else self.mean.extract(sent)
        return {self.group(info): {info.id: HeldUpload(self.mean.extract(value), self.mean.counted(weight), before)}}

    def add(self, left: Any, right: Any) -> Any:
        return {group: left.get(group, {}) | right.get(group, {}) for group in left | right}

    def finish(self, total: Any) -> Any:
        """See `Aggregate.finish`.

        Raises:
            GenfedError: a group is too small for the rule, or its clients were sent different states.
        """
        return self.join_groups({group: self._reduce(group, held) for group, held in sorted((total or {}).items())})

    def _reduce(self, group: str, by_client: dict[int, HeldUpload]) -> Any:
        held = [by_client[client] for client in sorted(by_client)]
        try:
            self.rule.check(len(held))
        except GenfedError as error:
            raise GenfedError(f"{error}{f' (architecture {group})' if group else ''}") from None
        values = [each.value for each in held]
        if isinstance(self.rule, CoordinatewiseRule):
            rule = self.rule
            return map_tree(lambda *leaves: _reduce_coordinates(rule, leaves), *values)
        assert isinstance(self.rule, LinearCombination), "a rule is a CoordinatewiseRule or a LinearCombination"
        sent = _common_origin([each.sent for each in held])
        weights = torch.tensor([each.weight for each in held], dtype=torch.float64)
        c = self.rule.coefficients(_gram(values, sent), weights).tolist()
        if sent is None:
            return map_tree(lambda *leaves: _combine(leaves, c, None), *values)
        return map_tree(lambda before, *leaves: _combine(leaves, c, before), sent, *values)


def make_robust(phase: Phase[S], rule: AggregationRule | None) -> Phase[S]:
    """Returns the phase with all that the rule replaces. None: returns the phase itself."""
    if rule is None:
        return phase
    return replace(phase, aggregate={**phase.aggregate, **find_replaced(phase, rule)})


def find_replaced(phase: Phase[Any], rule: AggregationRule) -> dict[str, Aggregate]:
    """Returns what the rule puts in place of the phase's aggregates, by upload field: of every mean; of a rule for
    sums, of every sum that the phase can join from groups.
    """
    if isinstance(rule, GroupedRule):
        return {name: GroupedSum(rule, join) for name, join in phase.join_sums.items()}
    return {name: RobustMean(mean, rule) for name, mean in select_means(phase.aggregate).items()}


def list_uncovered(phases: Sequence[Phase[Any]], rule: AggregationRule) -> list[str]:
    """Returns the upload fields that the rule does not replace."""
    fields: dict[str, None] = {}
    for phase in phases:
        replaced = find_replaced(phase, rule)
        fields |= {name: None for name in phase.aggregate if name not in replaced}
    return list(fields)


def describe_uncovered(label: str, phases: Sequence[Phase[Any]], rule: AggregationRule, kind: str) -> str:
    """Returns a line on the uploads of a method that the rule `kind` does not replace. Empty: there are none."""
    if not (fields := list_uncovered(phases, rule)):
        return ""
    return f"{label}: {', '.join(fields)} cannot be reduced by {kind}, and are used as clients upload them."


def _common_origin(sent: Sequence[Any]) -> Any:
    """Returns the value that all clients were sent. None: at least one was sent none."""
    if any(each is None for each in sent):
        return None
    for other in sent[1:]:
        map_tree(refuse_unequal, sent[0], other)
    return sent[0]


def _is_integer(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_floating_point()


def _rows(leaves: Sequence[Any]) -> list[Tensor]:
    """Returns each client's leaf as a row."""
    return [leaf.flatten() if isinstance(leaf, Tensor) else torch.tensor([float(leaf)]).double() for leaf in leaves]


def _pieces(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields the rows in pieces, float64 [n, at most _PIECE]."""
    for start in range(0, len(rows[0]), _PIECE):
        yield torch.stack([row[start : start + _PIECE].double() for row in rows])


def _restore(flat: Tensor, like: Any) -> Any:
    return flat.to(like.dtype).reshape(like.shape) if isinstance(like, Tensor) else flat.item()


def _reduce_coordinates(rule: CoordinatewiseRule, leaves: Sequence[Any]) -> Any:
    if _is_integer(leaves[0]):
        return _lower_median(leaves)
    reduced = [rule.reduce(piece) for piece in _pieces(_rows(leaves))]
    return _restore(torch.cat(reduced) if reduced else torch.empty(0), leaves[0])


def _lower_median(leaves: Sequence[Tensor]) -> Tensor:
    whole = torch.stack([leaf.to(torch.int64) for leaf in leaves])
    return whole.sort(dim=0).values[(len(leaves) - 1) // 2].to(leaves[0].dtype)


def _gram(values: Sequence[Any], sent: Any) -> Tensor:
    """Returns the updates' inner products, float64 [n, n]."""
    gram = torch.zeros(len(values), len(values), dtype=torch.float64)

    def add(before: Any, *leaves: Any) -> None:
        if _is_integer(leaves[0]):
            return
        rows = _rows(leaves)
        origin = _rows([before]) if before is not None else [torch.zeros(()).expand(len(rows[0]))]
        for piece, start in zip(_pieces(rows), _pieces(origin), strict=True):
            update = piece - start
            gram.addmm_(update, update.T)

    if sent is None:
        map_tree(lambda *leaves: add(None, *leaves), *values)
    else:
        map_tree(add, sent, *values)
    return gram


def _combine(leaves: Sequence[Any], coefficients: Sequence[float], before: Any) -> Any:
    included = [(c, leaf) for c, leaf in zip(coefficients, leaves, strict=True) if c]
    if _is_integer(leaves[0]):
        return _lower_median([leaf for _, leaf in included]) if included else leaves[0].clone()
    rows = _rows([leaf for _, leaf in included])
    total = torch.zeros(leaves[0].numel() if isinstance(leaves[0], Tensor) else 1, dtype=torch.float64)
    for (c, _), row in zip(included, rows, strict=True):
        total += row.double() * c
    rest = 1 - sum(c for c, _ in included)
    if before is not None and rest:
        total += _rows([before])[0].double() * rest
    return _restore(total, leaves[0])
