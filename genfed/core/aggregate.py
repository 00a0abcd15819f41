"""Reductions of client uploads, declared per upload field on the phase.

Replies are folded as they arrive, along a fixed binary tree over the clients of the round. So the result has the same
bits in whichever order clients reply, and memory holds O(log n) partial sums plus the replies in flight. Only of fields
that were not sent it holds up to half of the replies, until it is known how most of them look.
"""

import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from genfed.core.errors import GenfedError

LARGEST_UPLOADED = 1e6
"""Largest absolute number with a point in an upload of a client that has not diverged: a weight, a feature, a logit."""


@dataclass(frozen=True)
class ClientInfo:
    """The server's knowledge of one client.

    >>> from genfed import ClientInfo
    >>> ClientInfo(0, "cnn3", 120).personal
    False
    >>> ClientInfo(1, "hospital.networks:Small", 80).personal
    True
    """

    id: int
    """Its number, from 0."""
    architecture: str
    """Name of its classifier's architecture, or "package.module:Class"."""
    examples: int
    """Number of its training examples."""

    @property
    def personal(self) -> bool:
        """Whether the architecture is the client's own ("package.module:Class"), which the server cannot run."""
        return ":" in self.architecture


def cap_weight(weight: float, info: ClientInfo) -> float:
    """Returns the weight that counts of the one that a client claims: at most its declared number of examples."""
    return min(weight, float(max(1, info.examples)))


class Aggregate(ABC):
    """A reduction of one upload field: `lift` every client's value, `add` pairs along the tree, `finish` the total."""

    linear: ClassVar[bool] = False
    """Whether sums of `extract`ed values, over the clients of each group, are all that the result depends on. Only then
    can uploads be aggregated securely."""
    weighted: ClassVar[bool] = False
    """Whether a linear result is Σ weight·value / Σ weight. False: Σ value."""

    def group(self, info: ClientInfo) -> str:
        """Returns the name of the group with which a client's value is reduced. "": all clients."""
        return ""

    def join_groups(self, by_group: Mapping[str, Any]) -> Any:
        """Returns the reduced value, given the value of each group that has one."""
        return by_group.get("")

    def extract(self, value: Any) -> Any:
        """Returns the part of an upload field that is reduced: tensors, numbers or dicts of them."""
        return value

    def bound(self, largest: float, examples: int) -> float:
        """Returns the largest absolute number in a value of clients with `examples` examples, and in their reduced
        values. `largest`: what the phase declares (`Phase.largest`).
        """
        return largest

    def describe(self) -> str:
        """Returns words that complete "uploads are …", for the report."""
        return type(self).__name__

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        """Returns, by group, the names, shapes and types which all values of the group must share. {}: any will do."""
        return {}

    @abstractmethod
    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        """Returns one client's contribution. What is summed must not alias `value`.

        Args:
            value: the client's upload field.
            weight: the weight of its reply, above 0.
            info: the client.
            sent: the field of the same name in the record that the client was sent. None: there is none.
        """

    @abstractmethod
    def add(self, left: Any, right: Any) -> Any:
        """Returns two contributions joined; `left` belongs to the lower client ids."""

    @abstractmethod
    def finish(self, total: Any) -> Any:
        """Returns the value that `update` gets. `total` is None when no client replied."""


@dataclass(frozen=True)
class Mean(Aggregate):
    """The weighted mean of tensors, numbers or dicts of them: Σ weight·value / Σ weight, in double precision.

    An integer tensor (a BatchNorm's counter) is that of the lowest client id. With `by="architecture"` the result is a
    dict of means, without the architectures of which no client replied.

    >>> import torch
    >>> from genfed import ClientInfo, Mean, Model
    >>> from genfed.core.aggregate import Fold
    >>> clients = [ClientInfo(0, "mlp", 30), ClientInfo(1, "mlp", 10), ClientInfo(2, "cnn3", 5)]
    >>> round_ = Fold({"classifier": Mean(by="architecture")}, clients)
    >>> for client, bias in zip(clients, [1.0, 3.0, 7.0]):
    ...     round_.add(client, Model({"bias": torch.tensor(bias)}), weight=client.examples)
    >>> round_.finish()
    {'classifier': {'cnn3': {'bias': tensor(7.)}, 'mlp': {'bias': tensor(1.5000)}}}
    """

    linear: ClassVar[bool] = True
    weighted: ClassVar[bool] = True
    by: Literal["architecture"] | None = None
    """Groups that have a mean of their own: the clients of each architecture. None: one mean over all clients."""
    equal: bool = False
    """Whether all clients count the same, whatever weights they claim."""

    def group(self, info: ClientInfo) -> str:
        return info.architecture if self.by else ""

    def counted(self, weight: float) -> float:
        """Returns the weight that counts of the one that a client claims."""
        return 1.0 if self.equal else weight

    def join_groups(self, by_group: Mapping[str, Any]) -> Any:
        return dict(sorted(by_group.items())) if self.by else by_group.get("")

    def describe(self) -> str:
        return "averaged within an architecture" if self.by else "averaged"

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {self.group(info): map_tree(_leaf_layout, self.extract(value))}

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        tree, weight = self.extract(value), self.counted(weight)
        return {self.group(info): (weight, map_tree(lambda leaf: _times(leaf, weight), tree), map_tree(_dtype, tree))}

    def add(self, left: Any, right: Any) -> Any:
        out = dict(left)
        for group, (weight, total, dtypes) in right.items():
            if group in out:
                left_weight, left_total, dtypes = out[group]
                weight, total = left_weight + weight, map_tree(_plus, left_total, total)
            out[group] = (weight, total, dtypes)
        return out

    def finish(self, total: Any) -> Any:
        def divide(weight: float, value: Any, dtypes: Any) -> Any:
            return map_tree(lambda leaf, dtype: _divide(leaf, weight, dtype), value, dtypes)

        return self.join_groups({group: divide(*parts) for group, parts in (total or {}).items()})


@dataclass(frozen=True)
class Sum(Aggregate):
    """The sum Σ value, whatever the weights: floating-point tensors in double precision, integers and booleans as
    int64.

    >>> import torch
    >>> from genfed import ClientInfo, Model, Sum
    >>> from genfed.core.aggregate import Fold
    >>> clients = [ClientInfo(0, "mlp", 30), ClientInfo(1, "cnn3", 10)]
    >>> round_ = Fold({"classifier": Sum()}, clients)
    >>> for client, counts in zip(clients, ([20, 10], [0, 10])):
    ...     round_.add(client, Model({"counts": torch.tensor(counts)}), weight=client.examples)
    >>> round_.finish()
    {'classifier': {'counts': tensor([20, 20])}}
    """

    linear: ClassVar[bool] = True

    def bound(self, largest: float, examples: int) -> float:
        return largest * max(1, examples)

    def describe(self) -> str:
        return "added up"

    def read_layout(self, value: Any, info: ClientInfo) -> dict[str, Any]:
        return {"": map_tree(_leaf_layout, value)}

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return map_tree(_widen, value), map_tree(_dtype, value)

    def add(self, left: Any, right: Any) -> Any:
        return map_tree(lambda a, b: a + b, left[0], right[0]), left[1]

    def finish(self, total: Any) -> Any:
        return None if total is None else map_tree(_narrow, *total)


@dataclass(frozen=True)
class Collect(Aggregate):
    """All uploads by client id, for a method that needs each of them.

    >>> from genfed import ClientInfo, Collect, Model
    >>> from genfed.core.aggregate import Fold
    >>> clients = [ClientInfo(0, "mlp", 30), ClientInfo(1, "cnn3", 10)]
    >>> round_ = Fold({"classifier": Collect()}, clients)
    >>> for client in clients:
    ...     round_.add(client, Model({}), weight=1.0)
    >>> round_.finish()
    {'classifier': {0: {}, 1: {}}}
    """

    def describe(self) -> str:
        return "kept one by one"

    def lift(self, value: Any, weight: float, info: ClientInfo, sent: Any = None) -> Any:
        return {info.id: value}

    def add(self, left: Any, right: Any) -> Any:
        return left | right

    def finish(self, total: Any) -> Any:
        return dict(sorted((total or {}).items()))


def select_means(aggregates: Mapping[str, Aggregate]) -> dict[str, Mean]:
    """Returns the fields that are reduced by a mean: what robust rules replace, and what clipping can bound."""
    return {name: aggregate for name, aggregate in aggregates.items() if isinstance(aggregate, Mean)}


def list_groups(aggregates: Mapping[str, Aggregate], info: ClientInfo) -> dict[str, dict[str, Aggregate]]:
    """Returns the fields of a client's upload by the group in which they are reduced."""
    found: dict[str, dict[str, Aggregate]] = {}
    for name, aggregate in aggregates.items():
        found.setdefault(aggregate.group(info), {})[name] = aggregate
    return found


class _Waiting(NamedTuple):
    """A reply that waits until it is known how the uploads of its groups look."""

    info: ClientInfo
    upload: object
    weight: float
    sent: object
    layouts: "dict[_Part, Any]"


_Part = tuple[str, str]
"""A field of an upload, and the group in which it is reduced."""


class Fold:
    """The reduction of one round's replies. Each client is given once, in any order, with `add` or `skip`.

    All uploads of a group look the same: as `expected` does, a field that was sent as it was sent, another one as in
    most uploads (in a tie, as in that of the lowest client id). So one client with another upload excludes no other,
    also if it replies first.
    """

    def __init__(
        self, aggregates: Mapping[str, Aggregate], clients: Sequence[ClientInfo], expected: object = None
    ) -> None:
        """Starts a reduction.

        Args:
            aggregates: how each field is reduced.
            clients: the clients of the round.
            expected: a record that looks like every upload; its numbers do not count. None: it is not known.
        """
        self._aggregates = aggregates
        self._place = {info.id: place for place, info in enumerate(sorted(clients, key=lambda i: i.id))}
        self._sums: dict[tuple[int, int], dict[str, Any] | None] = {}  # (level, index) -> partial; None: empty
        self._pending = set(self._place)
        self._sizes = Counter((name, each.group(info)) for name, each in aggregates.items() for info in clients)
        self._votes: dict[_Part, list[tuple[Any, list[int]]]] = {}  # layouts, with the clients that have each
        self._waiting: dict[int, _Waiting] = {}
        self.layouts: dict[_Part, Any] = {}
        """Layouts that uploads must have, by field and group, as far as they are known."""
        self._misfits: dict[int, str] = {}
        if expected is not None:
            for name, aggregate in aggregates.items():
                for info in {aggregate.group(info): info for info in clients}.values():
                    for group, layout in aggregate.read_layout(getattr(expected, name), info).items():
                        self.layouts[name, group] = layout

    def add(self, info: ClientInfo, upload: object, weight: float, sent: object = None) -> None:
        """Folds one reply in.

        Args:
            info: the client.
            upload: the record that it uploaded.
            weight: the weight of its reply, above 0.
            sent: the record that it was sent. None: no aggregate needs it.

        Raises:
            GenfedError: the upload does not look as it must; the fold is then unchanged.
        """
        layouts = {
            (name, group): layout
            for name, aggregate in self._aggregates.items()
            for group, layout in aggregate.read_layout(getattr(upload, name), info).items()
        }
        for name, aggregate in self._aggregates.items():
            if (before := getattr(sent, name, None)) is not None:
                for group, layout in aggregate.read_layout(before, info).items():
                    if layouts.get((name, group)) == layout:
                        self.layouts.setdefault((name, group), layout)
        # Checked here, not when partial sums are joined: that may be much later, and while another client is added.
        for part in layouts.keys() & self.layouts.keys():
            map_tree(_refuse_other_layout, self.layouts[part], layouts[part])
        self._waiting[info.id] = _Waiting(info, upload, weight, sent, layouts)
        for part in layouts.keys() - self.layouts.keys():
            self._vote(part, layouts[part], info.id)
        self._fold_known()

    def _vote(self, part: _Part, layout: Any, client: int) -> None:
        votes = self._votes.setdefault(part, [])
        ids = next((ids for known, ids in votes if known == layout), None)
        if ids is None:
            votes.append((layout, ids := []))
        ids.append(client)
        if 2 * len(ids) > self._sizes[part]:
            self.layouts[part] = layout

    def _fold_known(self) -> None:
        """Folds the waiting replies of which all layouts are known, and excludes those that look different."""
        for client, waiting in list(self._waiting.items()):
            known = waiting.layouts.keys() & self.layouts.keys()
            try:
                for part in known:
                    map_tree(_refuse_other_layout, self.layouts[part], waiting.layouts[part])
            except GenfedError as error:
                self._misfits[client] = str(error)
                del self._waiting[client]
                self._put(waiting.info, None)
                continue
            if len(known) == len(waiting.layouts):
                del self._waiting[client]
                self._put(waiting.info, self._lift(waiting))

    def _lift(self, reply: _Waiting) -> dict[str, Any]:
        info, upload, weight, sent, _ = reply
        return {
            name: aggregate.lift(getattr(upload, name), weight, info, getattr(sent, name, None))
            for name, aggregate in self._aggregates.items()
        }

    def skip(self, info: ClientInfo) -> None:
        """Excludes a client."""
        self._put(info, None)

    def settle(self) -> dict[int, str]:
        """Decides how uploads must look where that is not known yet; call it when all clients were given. Returns the
        reason by client that was added, and is excluded since its upload looks different.
        """
        for part, votes in self._votes.items():
            self.layouts.setdefault(part, max(votes, key=lambda vote: (len(vote[1]), -min(vote[1])))[0])
        self._fold_known()
        return dict(self._misfits)

    def _put(self, info: ClientInfo, partial: dict[str, Any] | None) -> None:
        assert info.id in self._pending, f"client {info.id} is not part of the round, or was given already"
        index, level, size, joined = self._place[info.id], 0, len(self._place), []
        while size > 1:
            if (sibling := index ^ 1) < size:
                if (level, sibling) not in self._sums:
                    break
                joined.append((level, sibling))
                other = self._sums[level, sibling]
                left, right = (other, partial) if sibling < index else (partial, other)
                partial = self._join(left, right)
            level, index, size = level + 1, index >> 1, (size + 1) >> 1
        for key in joined:
            del self._sums[key]
        self._sums[level, index] = partial
        self._pending.remove(info.id)

    def _join(self, left: dict[str, Any] | None, right: dict[str, Any] | None) -> dict[str, Any] | None:
        if left is None or right is None:
            return right if left is None else left
        return {name: aggregate.add(left[name], right[name]) for name, aggregate in self._aggregates.items()}

    def finish(self) -> dict[str, Any]:
        """Returns the reduced value of every declared field."""
        self.settle()
        assert not self._pending, "a client of the round was neither added nor skipped"
        (total,) = list(self._sums.values()) or [None]  # a round may have no client
        return {name: each.finish(None if total is None else total[name]) for name, each in self._aggregates.items()}


def map_tree(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies a function to every leaf of dicts that have the same keys, or to the values themselves.

    Raises:
        GenfedError: the dicts have different keys.
    """
    first = trees[0]
    if any(isinstance(tree, dict) for tree in trees):
        if not all(isinstance(tree, dict) and tree.keys() == first.keys() for tree in trees):
            raise GenfedError("uploads of one group have different names")
        return {key: map_tree(function, *(tree[key] for tree in trees)) for key in first}
    return function(*trees)


def refuse_unequal(first: Any, other: Any) -> None:
    """Refuses two clients of a group that were sent different values; for `map_tree`.

    Raises:
        GenfedError: the values differ.
    """
    same = torch.equal if isinstance(first, Tensor) else operator.eq
    if type(first) is not type(other) or not same(first, other):
        raise GenfedError("clients of one group were sent different states: their updates have no common origin")


def _times(leaf: Any, weight: float) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(torch.float64, copy=True).mul_(weight) if leaf.is_floating_point() else leaf.clone()
    return leaf * weight


def _plus(left: Any, right: Any) -> Any:
    return left if isinstance(left, Tensor) and not left.is_floating_point() else left + right


def _divide(leaf: Any, weight: float, dtype: torch.dtype | None) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf / weight).to(dtype) if leaf.is_floating_point() else leaf
    return leaf / weight


def _dtype(leaf: Any) -> torch.dtype | None:
    return leaf.dtype if isinstance(leaf, Tensor) else None


def _widen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(torch.float64 if leaf.is_floating_point() else torch.int64, copy=True)
    return leaf


def _narrow(leaf: Any, dtype: torch.dtype | None) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _leaf_layout(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype} {tuple(leaf.shape)}"
    return "a number" if isinstance(leaf, int | float) else type(leaf).__name__


def _refuse_other_layout(expected: str, found: str) -> None:
    if found != expected:
        raise GenfedError(f"uploads of one group have different shapes or types: {expected} and {found}")
