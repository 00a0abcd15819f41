"""Generators of the rows of a table: every column is a code, of a category or of a bin of numbers."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Column, Data, Task, Weights
from genfed.generators.generator import LARGEST, Generator, GeneratorNetwork
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.training.fit import Objective

ROWS = 4096
"""Rows that are worked on at once."""
MOST_COMBINATIONS = 10_000
"""Largest number of combinations of columns that belong together."""
LEAST_PROBABILITY = 1e-7
"""Smallest probability of a value, so that every row has a finite logarithm."""
UNKNOWN = -1
"""Code of a value that is not known: a category that training did not have."""


@dataclass(frozen=True)
class BinnedColumn:
    """A column whose cells of numbers are joined into bins."""

    column: Column
    bins: Tensor
    """The bin of each of the column's codes [codes]; a missing number is a bin of its own."""
    shares: Tensor
    """The share of each of the column's codes among the training rows of its bin [codes], float64."""

    @property
    def size(self) -> int:
        """Number of bins."""
        return int(self.bins[-1]) + 1


@dataclass(frozen=True)
class Condition:
    """What drawn rows have to fulfil."""

    allowed: dict[str, Tensor] = field(default_factory=dict)
    """How much of each code is allowed, float64 [codes] in [0, 1], by column; all of others."""
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest number, as features are scaled, by column; those of others have no limit."""


@settings
class RowGenerator(Generator):
    """Settings of a generator of rows."""

    bins: Annotated[int, Field(ge=2)] = 100
    """About how many bins the numbers of a column are divided into, with about equally many rows each; a frequent
    number is a bin of its own. Few rows need fewer bins. Within a bin, numbers are drawn as they are in all rows."""

    together: tuple[tuple[str, ...], ...] = ()
    """Groups of columns that belong together, such as [["city", "state"]]: drawn rows have such combinations of them as
    some row has. Empty: none."""

    @abstractmethod
    def new(self, task: Task, rng: torch.Generator) -> "RowNetwork":
        """Returns a network.

        Raises:
            GenfedError: the examples are no rows of a table, or their columns are not known.
        """

    def build(self, task: Task, weights: Weights) -> "RowNetwork":
        """Returns a network with these weights.

        Raises:
            GenfedError: they are not those of this generator and these columns.
        """
        network = self.new(task, torch.Generator())
        try:
            network.load_state_dict(weights)
        except RuntimeError:
            raise GenfedError("the weights are not those of this generator and these columns") from None
        return network

    def binned(self, task: Task) -> "Binned":
        """Returns the variables of the rows.

        Raises:
            GenfedError: the examples are no rows of a table, or their columns are not known; or see `Binned`.
        """
        return Binned(require_columns(task), self.bins, self.together)


@settings
class LocalRowGenerator(RowGenerator):
    """Settings of a generator of rows that each silo fits alone, since neither sums nor means of what several silos
    fitted are a generator.
    """

    @abstractmethod
    def fit(self, data: Data, task: Task, rng: torch.Generator) -> Weights:
        """Returns the state dict of the network for the rows of one silo.

        Args:
            data: The rows, x float32 [n, features].
            task: Their task.
            rng: Source of random numbers.
        """


@settings
class SummedRowGenerator(RowGenerator, StatisticsGenerator):
    """Settings of a generator of rows that is estimated from counts of codes, so its training is a sum: the federated
    generator is the one of all rows in one place, whichever site has them.
    """

    largest: ClassVar[int] = 1

    def check_examples(self, x: Tensor) -> None:
        """Accepts all rows: numbers become bins, however large they are."""


class Binned:
    """The variables of a generator of rows: a column in bins each, or the combinations of several. All codes of all
    variables, one variable after the other, are its values.
    """

    def __init__(self, columns: Sequence[Column], bins: int, together: Sequence[Sequence[str]] = ()) -> None:
        """Chooses the variables.

        Args:
            columns: The columns.
            bins: See `RowGenerator.bins`.
            together: See `RowGenerator.together`.

        Raises:
            GenfedError: a column is not there or is named twice, or there are too many combinations.
        """
        self.columns = [bin_column(column, bins) for column in columns]
        self.groups = _group_columns([column.name for column in columns], together)
        self.sizes = [math.prod(self.columns[i].size for i in group) for group in self.groups]
        for group, size in zip(self.groups, self.sizes, strict=True):
            if len(group) > 1 and size > MOST_COMBINATIONS:
                names = ", ".join(columns[i].name for i in group)
                raise GenfedError(f"together: {names} have {size:,} combinations; {MOST_COMBINATIONS:,} are allowed")
        self.values = sum(self.sizes)
        self.starts = [0, *itertools.accumulate(self.sizes)][:-1]

    def read(self, x: Tensor) -> Tensor:
        """Returns the places of the values of rows x [n, features] among all values: int64 [n, variables]; `values`
        where one is not known.
        """
        codes = read_codes(x, [each.column for each in self.columns])
        places = []
        for group, start in zip(self.groups, self.starts, strict=True):
            place = torch.zeros(len(x), dtype=torch.int64)
            for i in group:
                place = place * self.columns[i].size + self.columns[i].bins[codes[:, i].clamp_min(0)]
            unknown = (codes[:, group] == UNKNOWN).any(1)
            places.append(torch.where(unknown, self.values, place + start))
        return torch.stack(places, dim=1)

    def allow(self, condition: Condition) -> Tensor | None:
        """Returns how much of each value a condition allows, float64 [values] in [0, 1]. None: all of all."""
        if not condition.allowed:
            return None
        found = []
        for group in self.groups:
            part = torch.ones(1, dtype=torch.float64)
            for i in group:
                part = torch.outer(part, self._allow_column(self.columns[i], condition)).flatten()
            found.append(part)
        return torch.cat(found)

    def _allow_column(self, column: BinnedColumn, condition: Condition) -> Tensor:
        of_codes = condition.allowed.get(column.column.name)
        if of_codes is None:
            return torch.ones(column.size, dtype=torch.float64)
        nothing = torch.zeros(column.size, dtype=torch.float64)
        return nothing.index_add_(0, column.bins, column.shares * of_codes.double())

    def refine(self, drawn: Tensor, condition: Condition, rng: torch.Generator) -> Tensor:
        """Returns codes [n, columns] for drawn variables [n, variables], each drawn among those of its bin."""
        bins = torch.empty(len(drawn), len(self.columns), dtype=torch.int64)
        for group, place in zip(self.groups, drawn.T, strict=True):
            for i in reversed(group):
                bins[:, i], place = place % self.columns[i].size, place // self.columns[i].size
        return torch.stack(
            [self._refine_column(*each, condition, rng) for each in zip(self.columns, bins.T, strict=True)], dim=1
        )

    def _refine_column(self, column: BinnedColumn, bins: Tensor, condition: Condition, rng: torch.Generator) -> Tensor:
        if column.size == len(column.bins):
            return bins
        shares = column.shares * condition.allowed.get(column.column.name, torch.ones_like(column.shares))
        table = torch.zeros(column.size, len(shares), dtype=torch.float64)
        table[column.bins, torch.arange(len(shares))] = shares
        return torch.cat([draw(table[some], rng) for some in torch.split(bins, ROWS)])

    def may_occur(self, counts: Tensor) -> Tensor:
        """Returns which values a row may have, bool [values]: every value of a column, and the combinations that some
        row has; `counts` [values]: how often each stands in the rows of all.
        """
        parts = []
        for group, part in zip(self.groups, torch.split(counts, self.sizes), strict=True):
            seen = part > 0
            parts.append(seen if len(group) > 1 and bool(seen.any()) else torch.ones_like(seen))
        return torch.cat(parts)


def _group_columns(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[list[int]]:
    """Returns the columns of each variable, in the order of their first ones.

    Raises:
        GenfedError: a column is not there or is named twice.
    """
    place = {name: i for i, name in enumerate(names)}
    taken: set[str] = set()
    groups = []
    for some in together:
        for name in some:
            if name not in place:
                raise GenfedError(f"together: there is no column {name!r}; {', '.join(names)} are allowed")
            if name in taken:
                raise GenfedError(f"together: column {name!r} is named twice")
            taken.add(name)
        groups.append([place[name] for name in some])
    groups += [[i] for i, name in enumerate(names) if name not in taken]
    return sorted((group for group in groups if group), key=lambda group: group[0])


class RowNetwork(GeneratorNetwork):
    """A distribution of the rows of a table for each class."""

    prior: Tensor
    """Share of each class [classes]."""

    def __init__(self, task: Task, binned: Binned) -> None:
        super().__init__()
        self.binned = binned
        self.columns = require_columns(task)
        self.width = task.shape[0]
        classes = len(task.classes)
        self.register_buffer("prior", torch.full((classes,), 1 / classes))

    def objectives(self) -> Sequence[Objective]:
        """Returns none: a distribution that is estimated is not trained."""
        return []

    @abstractmethod
    def draw_bins(self, y: Tensor, rng: torch.Generator, allowed: Tensor | None) -> Tensor:
        """Draws the variables of a row for each label: y [n] → int64 [n, variables].

        Args:
            y: The labels.
            rng: Source of the draws.
            allowed: See `Binned.allow`.
        """

    @abstractmethod
    def log_allowed(self, allowed: Tensor) -> Tensor:
        """Returns log p(y, the row is allowed) for each class, float64 [classes]; `allowed`: see `Binned.allow`."""

    @abstractmethod
    def log_joint(self, x: Tensor) -> Tensor:
        """Returns log p(y, the bins of x) of rows x [n, features] for each class: float64 [n, classes]. Values that are
        not known do not count.
        """

    def sample(self, y: Tensor, rng: torch.Generator) -> Tensor:
        return self.sample_where(y, rng, Condition())

    def sample_where(self, y: Tensor, rng: torch.Generator, condition: Condition) -> Tensor:
        """Generates a row that fulfils a condition for each label: y [n] → x [n, features]."""
        drawn = self.draw_bins(y, rng, self.binned.allow(condition))
        codes = self.binned.refine(drawn, condition, rng)
        return write_features(codes, self.columns, self.width, rng, condition.limits).to(y.device)

    def class_shares(self, condition: Condition) -> Tensor:
        """Returns the share of each class among the rows that fulfil a condition, float64 [classes].

        Raises:
            GenfedError: no row fulfils it.
        """
        if (allowed := self.binned.allow(condition)) is None:
            return self.prior.double()
        joint = self.log_allowed(allowed)
        if not bool((joint > _NEVER).any()):
            raise GenfedError("no row fulfils the condition")
        return joint.softmax(0)


_NEVER = -600.0
"""Logarithm of the probability below which a row does not occur."""


def refuse_large(numbers: int) -> None:
    """Refuses a distribution of too many numbers before memory is allocated for it.

    Raises:
        GenfedError: they are more than a generator may have.
    """
    if numbers > LARGEST:
        raise GenfedError(
            f"the generator would have {numbers:.3g} numbers; at most {LARGEST:.3g} are allowed: set fewer components "
            "or bins, or drop columns of many categories"
        )


def require_columns(task: Task) -> tuple[Column, ...]:
    """Returns the columns of a table.

    Raises:
        GenfedError: the examples are no rows of a table, or their columns are not known.
    """
    if task.kind != "table":
        raise GenfedError(f"examples of kind {task.kind}; generators of rows allow tables alone")
    if not task.columns:
        raise GenfedError("the columns of the table are not known: generators of rows need the run's encoder.json")
    return task.columns


def bin_column(column: Column, bins: int) -> BinnedColumn:
    """Joins the cells of a column's numbers into bins. Categories stay as they are.

    >>> column = Column("age", 0, 1, ((0, 0), (1, 1), (2, 2), (3, 9)), (0.5, 0.1, 0.2, 0.2), gap=1)
    >>> bin_column(column, 3).bins.tolist()
    [0, 1, 1, 2, 3]
    """
    if not column.cells:
        return BinnedColumn(column, torch.arange(column.codes), torch.ones(column.codes, dtype=torch.float64))
    shares = torch.tensor(column.shares, dtype=torch.float64)
    alone = shares * bins >= 1 - 1e-9
    if len(shares) <= bins:
        alone = torch.ones_like(alone)
    size = float(shares[~alone].sum()) / max(1, bins - int(alone.sum()))
    found, place, rows = [], 0, 0.0
    for share, is_alone in zip(shares.tolist(), alone.tolist(), strict=True):
        if (is_alone and rows) or rows >= size * (1 - 1e-9) > 0:
            place, rows = place + 1, 0.0
        found.append(place)
        rows += share
        if is_alone:
            place, rows = place + 1, 0.0
    last = found[-1] + 1
    if column.gap is not None:
        found, shares = [*found, last], torch.cat([shares, torch.ones(1, dtype=torch.float64)])
    places = torch.tensor(found)
    total = torch.zeros(int(places[-1]) + 1, dtype=torch.float64).index_add_(0, places, shares)
    return BinnedColumn(column, places, shares / total[places])


def read_codes(x: Tensor, columns: Sequence[Column]) -> Tensor:
    """Returns the codes of rows x [n, features]: int64 [n, columns], −1 where a category is not known.

    >>> column = Column("age", 0, 1, ((0.0, 0.0), (1.0, 3.0)), gap=1)
    >>> read_codes(torch.tensor([[0.1, 0.0], [2.0, 0.0], [9.0, 0.0], [0.0, 1.0]]), [column]).flatten().tolist()
    [0, 1, 1, 2]
    """
    x = x.cpu()
    codes = torch.empty(len(x), len(columns), dtype=torch.int64)
    for place, column in enumerate(columns):
        if column.cells:
            bounds = [(one[1] + other[0]) / 2 for one, other in itertools.pairwise(column.cells)]
            found = torch.bucketize(x[:, column.first].contiguous(), torch.tensor(bounds, dtype=x.dtype), right=True)
            if column.gap is not None:
                found = torch.where(x[:, column.gap] > 0.5, len(column.cells), found)
        else:
            highest = x[:, column.first : column.first + column.width].max(1)
            found = torch.where(highest.values > 0.5, highest.indices, UNKNOWN)
        codes[:, place] = found
    return codes


def write_features(
    codes: Tensor,
    columns: Sequence[Column],
    width: int,
    rng: torch.Generator,
    limits: dict[str, tuple[float, float]] | None = None,
) -> Tensor:
    """Returns rows with these codes: float32 [n, features]. A number is drawn evenly from its cell.

    Args:
        codes: Codes of every column [n, columns].
        columns: The columns.
        width: Number of features.
        rng: Source of the draws.
        limits: The smallest and the largest number of some columns. None: those of their cells.
    """
    x = torch.zeros(len(codes), width)
    for place, column in enumerate(columns):
        code = codes[:, place]
        if not column.cells:
            x[torch.arange(len(codes)), column.first + code] = 1
            continue
        ends = torch.tensor([*column.cells, (column.fill, column.fill)], dtype=torch.float64)
        least, most = (limits or {}).get(column.name, (float("-inf"), float("inf")))
        ends[:-1] = torch.where(ends[:-1, :1] == ends[:-1, 1:], ends[:-1], ends[:-1].clamp(least, most))
        low, high = ends[code].T
        share = torch.rand(len(codes), generator=rng, dtype=torch.float64)
        x[:, column.first] = (low + share * (high - low)).float()
        if column.gap is not None:
            x[:, column.gap] = (code == len(column.cells)).float()
    return x


def normalize(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns numbers ≥ 0 [..., values] in proportion, such that those of each variable add up to 1.

    >>> normalize(torch.tensor([1.0, 3.0, 5.0]), [2, 1])
    tensor([0.2500, 0.7500, 1.0000])
    """
    return torch.cat([part / part.sum(-1, keepdim=True) for part in torch.split(values, list(sizes), dim=-1)], dim=-1)


def draw(weights: Tensor, rng: torch.Generator) -> Tensor:
    """Draws a place for each row, in proportion to weights [n, k] ≥ 0 of which each row has a positive one: [n]."""
    bounds = weights.double().cumsum(1)
    chosen = torch.rand(len(weights), 1, generator=rng, dtype=torch.float64) * bounds[:, -1:]
    places: Tensor = (chosen >= bounds).sum(1).clamp_max(weights.shape[1] - 1)
    return places
