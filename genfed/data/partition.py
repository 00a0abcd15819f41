"""Partitions of the training examples among clients."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.preprocessing.checks import require_known

_ATTEMPTS = 1000


class Partitioner(ABC):
    """Settings of one kind of partition. Every client gets at least one example; no example goes to two clients."""

    alike: ClassVar[bool] = False
    """True: clients differ only by chance and in the number of their examples."""

    @property
    def natural(self) -> str | None:
        """Natural column whose values are distributed; None: there is none."""
        return None

    @abstractmethod
    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        """Returns the sorted rows of each client, int64.

        Args:
            y: The labels, int64 [n].
            clients: The number of clients.
            rng: The source of all draws.
            columns: The natural columns, n values each.

        Raises:
            GenfedError: these examples cannot be partitioned among that number of clients.
        """


@settings
class IID(Partitioner):
    """A random partition; sizes differ by at most one."""

    alike = True

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients)
        return _sort_parts(torch.randperm(len(y), generator=rng).tensor_split(clients))


@settings
class Dirichlet(Partitioner):
    """Label skew: each class is divided in proportions drawn from a Dirichlet distribution."""

    alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Concentration of the distribution. Small: each client has few classes; large: clients are similar."""
    minimum: int = Field(default=1, ge=1)
    """Least number of examples per client; the proportions are drawn again until every client has it."""

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients, self.minimum)
        classes, rows = _shuffle_by_class(y, rng)
        counts = np.array([len(r) for r in rows])
        draws = _new_numpy_rng(rng)
        for _ in range(_ATTEMPTS):
            proportions = draws.dirichlet([self.alpha] * clients, len(classes))
            ends = np.floor(np.cumsum(proportions, 1) * counts[:, None]).astype(np.int64)
            ends[:, -1] = counts  # the sum of the proportions may be rounded below 1
            sizes = np.diff(ends, axis=1, prepend=0)
            if sizes.sum(0).min() >= self.minimum:
                break
        else:
            raise GenfedError(
                f"{_ATTEMPTS} draws left a client with fewer than {self.minimum} of {len(y)} examples: "
                f"raise alpha ({self.alpha:g}), or lower minimum or clients ({clients})"
            )
        pieces = [torch.split(r, s.tolist()) for r, s in zip(rows, sizes, strict=True)]
        return _join_pieces(zip(*pieces, strict=True))


@settings
class Pathological(Partitioner):
    """A partition where each client has examples of a few classes only (McMahan et al., 2017, section 3)."""

    labels: int = Field(default=2, ge=1)
    """Classes per client; some clients have fewer if a class has fewer examples than clients. If clients · labels is
    below the number of classes, some classes are excluded."""

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients)
        classes, rows = _shuffle_by_class(y, rng)
        if self.labels > len(classes):
            raise GenfedError(f"labels is {self.labels}; there are {len(classes)} classes")
        holders = _choose_holders([len(r) for r in rows], clients, self.labels, rng)
        return _deal_out(rows, holders, clients)


@settings
class DisjointLabels(Partitioner):
    """Disjoint label sets: all examples of one class go to one client."""

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients)
        classes, rows = _shuffle_by_class(y, rng)
        if clients > len(classes):
            raise GenfedError(f"{clients} clients cannot share {len(classes)} classes without sharing one")
        order = torch.randperm(len(classes), generator=rng).tolist()
        return _deal_out(rows, [[order[c] % clients] for c in range(len(classes))], clients)


@settings
class OverlappingLabels(Partitioner):
    """Partly overlapping label sets. The classes form a ring in their own order; client i has own + shared consecutive
    classes from number i · own on, so neighbors have `shared` classes in common. A class is divided evenly among its
    clients; a class without a client is excluded.
    """

    own: int = Field(default=1, ge=1)
    """Number of classes by which the window moves from one client to the next."""
    shared: int = Field(default=1, ge=0)
    """Number of classes that a client has in common with the next one."""

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients)
        classes, rows = _shuffle_by_class(y, rng)
        width = self.own + self.shared
        if width > len(classes):
            raise GenfedError(f"own + shared is {width}; there are {len(classes)} classes")
        holders: list[list[int]] = [[] for _ in classes]
        for client in range(clients):
            for place in range(width):
                holders[(client * self.own + place) % len(classes)].append(client)
        for label, of_class, held in zip(classes, rows, holders, strict=True):
            if len(of_class) < len(held):
                raise GenfedError(f"class {label} has {len(of_class)} examples for {len(held)} clients that share it")
        return _deal_out(rows, holders, clients)


@settings
class QuantitySkew(Partitioner):
    """Quantity skew: sizes differ, the mix of classes does not. Each client has `minimum` examples and a
    Dirichlet-distributed share of the others.
    """

    alike = True
    alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Concentration of the distribution. Small: sizes are very different; large: sizes are nearly equal."""
    minimum: int = Field(default=1, ge=1)
    """Least number of examples per client."""

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients, self.minimum)
        order = torch.randperm(len(y), generator=rng)
        free = len(y) - clients * self.minimum
        ends = np.floor(np.cumsum(_new_numpy_rng(rng).dirichlet([self.alpha] * clients)) * free).astype(np.int64)
        ends[-1] = free
        return _sort_parts(torch.split(order, (self.minimum + np.diff(ends, prepend=0)).tolist()))


@settings
class ByColumn(Partitioner):
    """One client per value of a natural column, in sorted order; fewer clients share the values at random."""

    column: str
    """Name of the column, such as "hospital"."""

    @property
    def natural(self) -> str:
        return self.column

    def split(
        self, y: Tensor, clients: int, rng: torch.Generator, columns: Mapping[str, Sequence[str]]
    ) -> list[Tensor]:
        _check_enough(y, clients)
        values = columns[require_known(self.column, columns, "natural column")]
        assert len(values) == len(y), "a natural column has one value per example"
        distinct = sorted(set(values))
        if clients > len(distinct):
            raise GenfedError(f"{clients} clients cannot be made of {len(distinct)} values of {self.column!r}")
        places = torch.arange(len(distinct))
        if clients < len(distinct):
            places = torch.randperm(len(distinct), generator=rng) % clients
        client = dict(zip(distinct, places.tolist(), strict=True))
        owners = torch.tensor([client[value] for value in values])
        return [(owners == i).nonzero()[:, 0] for i in range(clients)]


def draw_subset(y: Tensor, examples: int, rng: torch.Generator) -> Tensor:
    """Returns `examples` random rows, sorted.

    Raises:
        GenfedError: `examples` is below 1 or above the number of rows.
    """
    if not 1 <= examples <= len(y):
        raise GenfedError(f"examples is {examples}; 1 to {len(y)}, the training examples there are, is allowed")
    return torch.randperm(len(y), generator=rng)[:examples].sort().values


def _check_enough(y: Tensor, clients: int, minimum: int = 1) -> None:
    if clients < 1:
        raise GenfedError(f"clients is {clients}; at least 1 is needed")
    if len(y) < clients * minimum:
        raise GenfedError(f"{len(y)} examples are too few for {clients} clients with at least {minimum} each")


def _shuffle_by_class(y: Tensor, rng: torch.Generator) -> tuple[list[int], list[Tensor]]:
    """Returns the classes that occur and the shuffled rows of each."""
    order = torch.randperm(len(y), generator=rng)
    classes = sorted(set(y.tolist()))
    return classes, [order[y[order] == label] for label in classes]


def _choose_holders(counts: Sequence[int], clients: int, labels: int, rng: torch.Generator) -> list[list[int]]:
    """Chooses the clients of each class: `labels` classes per client, and as even as the classes' counts allow."""
    shares = [0] * len(counts)
    free = clients * labels
    for level in range(clients):
        for label in torch.randperm(len(counts), generator=rng).tolist():
            if free and counts[label] > level:
                shares[label] += 1
                free -= 1
    # Each client takes the classes with the most shares left, which never reaches a dead end (Ryser's construction).
    base, more = divmod(sum(shares), clients)
    holders: list[list[int]] = [[] for _ in counts]
    for place, client in enumerate(torch.randperm(clients, generator=rng).tolist()):
        order = torch.randperm(len(counts), generator=rng).tolist()
        for label in sorted(order, key=lambda label: -shares[label])[: base + (place < more)]:
            holders[label].append(client)
            shares[label] -= 1
    return holders


def _deal_out(rows: Sequence[Tensor], holders: Sequence[Sequence[int]], clients: int) -> list[Tensor]:
    """Divides the rows of each class evenly among the clients that hold it."""
    pieces: list[list[Tensor]] = [[] for _ in range(clients)]
    for of_class, held in zip(rows, holders, strict=True):
        for client, piece in zip(held, of_class.tensor_split(max(1, len(held))), strict=False):
            pieces[client].append(piece)
    return _join_pieces(pieces)


def _join_pieces(pieces: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    return _sort_parts(torch.cat(list(parts)) for parts in pieces)


def _sort_parts(parts: Iterable[Tensor]) -> list[Tensor]:
    return [part.sort().values for part in parts]


def _new_numpy_rng(rng: torch.Generator) -> np.random.Generator:
    """Returns a NumPy generator: torch has no Dirichlet distribution that takes a generator."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
