"""A tree-augmented naive Bayes network for the rows of a table, from one sum. Friedman, Geiger, Goldszmidt, Bayesian
Network Classifiers, Machine Learning 1997; the tree is that of Chow and Liu (1968). Each column depends on the class
and on one other column.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.gaussian import log_prior
from genfed.generators.row_generator import ROWS, Binned, RowNetwork, SummedRowGenerator, draw, normalize, refuse_large
from genfed.generators.statistics_generator import check_counts_and_forms, require_examples

_MOST_PAIRS = 2**27
"""Maximum count of numbers in the counts of pairs (1 GiB)."""


@settings
class TAN(SummedRowGenerator):
    """A tree of columns, estimated in one round. Clients count the pairs of values by class: "counts" [classes];
    "pairs" [classes, values, values], where those of a value with itself are its count. The tree joins the columns that
    have the most mutual information within the classes.

    >>> from genfed.core.task import Column
    >>> task = Task("table", (4,), ("no", "yes"), (Column("sex", 0, 2), Column("ill", 2, 2)))
    >>> data = Data(torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]]), torch.tensor([0, 0]))
    >>> TAN().measure(data, task)["pairs"][0].tolist()
    [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    """

    smoothing: Annotated[float, Field(gt=0)] = 1.0
    """Weight in rows of the values of all rows of a class where a column's values depend on another column."""

    def new(self, task: Task, rng: torch.Generator) -> "TANNetwork":
        """Returns a network of independent columns in which all values are equally frequent.

        Raises:
            GenfedError: see `RowGenerator.new`; or it would have too many numbers.
        """
        binned = self.binned(task)
        refuse_large(len(task.classes) * binned.values * (max(binned.sizes) + 1))
        return TANNetwork(task, binned)

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        binned, classes = self.binned(task), len(task.classes)
        places = binned.read(data.x)
        pairs = torch.zeros(classes, binned.values + 1, binned.values + 1, dtype=torch.int64)
        for label in set(data.y.tolist()):
            for some in torch.split(places[data.y == label], ROWS):
                marks = torch.zeros(len(some), binned.values + 1).scatter_(1, some, 1.0)
                pairs[label] += (marks.T @ marks).long()  # whole numbers below 2²⁴ have exact sums
        return {"counts": torch.bincount(data.y, minlength=classes), "pairs": pairs[:, :-1, :-1]}

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        classes, values = len(task.classes), self.binned(task).values
        if classes * values**2 > _MOST_PAIRS:
            most = int((_MOST_PAIRS / classes) ** 0.5)
            raise GenfedError(
                f"generator tan: the columns have {values:,} values together, and it counts each pair of them; "
                f"{most:,} are allowed: drop columns of many categories, set fewer bins, or use mixture"
            )
        return {"counts": (classes,), "pairs": (classes, values, values)}

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        check_counts_and_forms(statistics, self.shapes(task, done), examples)
        pairs, counts = statistics["pairs"].long(), statistics["counts"].long()
        alone = pairs.diagonal(dim1=1, dim2=2)
        within = [part.sum(1) for part in torch.split(alone, self.binned(task).sizes, dim=1)]
        if (
            bool((pairs < 0).any())
            or any(bool((rows > counts).any()) for rows in within)
            or bool((pairs > alone[:, :, None]).any())
            or not torch.equal(pairs, pairs.mT)
        ):
            raise GenfedError(f"its pairs are not those of {examples} rows")

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        counts = require_examples(statistics, "estimate a tree")
        return estimate_tree(self.binned(task), counts, statistics["pairs"].double(), self.smoothing)


def estimate_tree(binned: Binned, counts: Tensor, pairs: Tensor, smoothing: float) -> Weights:
    """Returns the state dict of a `TANNetwork`.

    Args:
        binned: The columns.
        counts: Rows of each class [classes].
        pairs: Rows with each pair of values [classes, values, values].
        smoothing: See `TAN.smoothing`.
    """
    alone = pairs.diagonal(dim1=1, dim2=2)
    everything = alone.sum(0)
    everywhere = normalize(everything + 1e-3 * binned.may_occur(everything), binned.sizes)
    marginal = normalize(alone + everywhere, binned.sizes)
    parents = find_tree(binned, pairs, counts)
    table = torch.zeros(len(counts), binned.values, max(binned.sizes) + 1, dtype=torch.float64)
    table[:, :, -1] = marginal  # given a parent that is not known, or none
    for column, parent in enumerate(parents.tolist()):
        if parent < 0:
            continue
        rows, columns = _place(binned, column), _place(binned, parent)
        together = pairs[:, rows, columns] + smoothing * marginal[:, rows, None]
        table[:, rows, : binned.sizes[parent]] = together / together.sum(1, keepdim=True)
    found = {"prior": counts / counts.sum(), "table": table}
    return {**{name: value.float() for name, value in found.items()}, "parents": parents}


def _place(binned: Binned, column: int) -> slice:
    """Returns the places of a column's values."""
    return slice(binned.starts[column], binned.starts[column] + binned.sizes[column])


def find_tree(binned: Binned, pairs: Tensor, counts: Tensor) -> Tensor:
    """Returns the parent of each column in the tree with the most mutual information within the classes: int64
    [columns], −1 for the first column. See `estimate_tree` for the arguments.
    """
    size = len(binned.sizes)
    information = torch.zeros(size, size, dtype=torch.float64)
    for one in range(size):
        for other in range(one):
            block = pairs[:, _place(binned, one), _place(binned, other)]
            rows = block.sum((1, 2), keepdim=True).clamp_min(1)
            expected = block.sum(2, keepdim=True) * block.sum(1, keepdim=True) / rows
            terms = torch.where(block > 0, block * (block / expected.clamp_min(1e-300)).clamp_min(1e-300).log(), 0.0)
            information[one, other] = information[other, one] = terms.sum() / counts.sum()
    parents, inside = torch.full((size,), -1), torch.zeros(size, dtype=torch.bool)
    inside[0] = True
    for _ in range(size - 1):  # Prim's tree
        reach = torch.where(inside[:, None] & ~inside[None, :], information, -1.0)
        parent, column = divmod(int(reach.argmax()), size)
        parents[column], inside[column] = parent, True
    return parents


class TANNetwork(RowNetwork):
    """Each column depends on the class and on one other column."""

    table: Tensor
    parents: Tensor

    def __init__(self, task: Task, binned: Binned) -> None:
        super().__init__(task, binned)
        sizes, classes = self.binned.sizes, len(task.classes)
        even = torch.cat([torch.full((size,), 1 / size) for size in sizes])
        self.register_buffer("table", even[None, :, None].repeat(classes, 1, max(sizes) + 1))
        self.register_buffer("parents", torch.full((len(sizes),), -1))

    def _order(self) -> list[int]:
        """Returns the columns, each after its parent."""
        order: list[int] = []
        parents = self.parents.tolist()
        while len(order) < len(parents):
            order += [i for i, parent in enumerate(parents) if i not in order and (parent < 0 or parent in order)]
        return order

    def _allowed_table(self, allowed: Tensor | None) -> Tensor:
        """Returns p(value, all that depends on it is allowed | the parent's): float64 [classes, values, codes]."""
        table = self.table.double()
        if allowed is None:
            return table
        table = table * allowed[:, None]
        for column in reversed(self._order()):
            if (parent := int(self.parents[column])) >= 0:
                message = table[:, _place(self.binned, column), : self.binned.sizes[parent]].sum(1)
                table[:, _place(self.binned, parent)] *= message[:, :, None]
        return table

    @torch.no_grad()
    def draw_bins(self, y: Tensor, rng: torch.Generator, allowed: Tensor | None) -> Tensor:
        table, y = self._allowed_table(allowed), y.cpu()
        drawn = torch.empty(len(y), len(self.binned.sizes), dtype=torch.int64)
        for column in self._order():
            part, parent = table[:, _place(self.binned, column)], int(self.parents[column])
            given = torch.full_like(y, -1) if parent < 0 else drawn[:, parent]
            chunks = zip(torch.split(y, ROWS), torch.split(given, ROWS), strict=True)
            drawn[:, column] = torch.cat([draw(part[some, :, each], rng) for some, each in chunks])
        return drawn

    def log_allowed(self, allowed: Tensor) -> Tensor:
        table = self._allowed_table(allowed)
        roots = [i for i, parent in enumerate(self.parents.tolist()) if parent < 0]
        shares = torch.stack([table[:, _place(self.binned, i), -1].sum(1) for i in roots])
        return shares.clamp_min(1e-300).log().sum(0) + self.prior.double().log()

    def log_joint(self, x: Tensor) -> Tensor:
        places, last = self.binned.read(x), self.table.shape[2] - 1
        table = functional.pad(self.table.double().clamp_min(1e-30).log(), (0, 0, 0, 1))  # an unknown value counts 0
        total = torch.zeros(len(places), len(self.prior), dtype=torch.float64)
        for column, parent in enumerate(self.parents.tolist()):
            given = torch.full((len(places),), last)
            if parent >= 0:
                known = places[:, parent] < self.binned.values
                given = torch.where(known, places[:, parent] - self.binned.starts[parent], last)
            total += table[:, places[:, column], given].T
        return total + log_prior(self.prior).double()
