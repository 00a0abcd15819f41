"""A mixture of latent classes for the rows of a table, by federated expectation–maximization. Lazarsfeld, Henry, Latent
Structure Analysis, 1968; Dempster, Laird, Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, JRSS B
1977. Within a component the columns are independent. A step needs counts over rows alone.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.gaussian import log_prior
from genfed.generators.gaussian_mixture import SHARES, divide
from genfed.generators.row_generator import (
    LEAST_PROBABILITY,
    ROWS,
    Binned,
    RowNetwork,
    SummedRowGenerator,
    draw,
    normalize,
    refuse_large,
)
from genfed.generators.statistics_generator import check_counts_and_forms, require_examples


@settings
class Mixture(SummedRowGenerator):
    """Components per class within which the columns are independent, by EM. In the first pass clients count the values
    of each column by class. The components begin at these counts, moved apart by draws from the seed: no party looks at
    single rows. In each further pass clients divide every row among the components of its class, in 4,096 equal shares,
    and add up: "counts" [classes]; "shares" [classes, k]; "values", the shares of the rows with each
    value of each column [classes, k, values]. In the first pass k is 1.

    >>> from genfed.core.task import Column
    >>> task = Task("table", (2,), ("no", "yes"), (Column("sex", 0, 2),))
    >>> data = Data(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 0, 1]))
    >>> Mixture().measure(data, task)["values"][:, 0].tolist()
    [[8192, 4096], [0, 4096]]
    """

    shares: ClassVar[int] = SHARES

    components: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Number of components per class (k)."""
    em_steps: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Number of EM steps, each of which is a round; one component per class needs none."""
    smoothing: Annotated[float, Field(gt=0)] = 1.0
    """Weight in rows of the values of all rows of a class in each of its components. More: less like the rows, and
    farther from copies of them."""
    spread: Annotated[float, Field(gt=0, le=8)] = 0.3
    """How unlike the components are at the beginning: standard deviation of the logarithms of their probabilities."""

    @property
    def passes(self) -> int:
        return 1 if self.components == 1 else 1 + self.em_steps

    def new(self, task: Task, rng: torch.Generator) -> "MixtureNetwork":
        """Returns a network in which all values are equally frequent.

        Raises:
            GenfedError: see `RowGenerator.new`; or it would have too many numbers.
        """
        binned = self.binned(task)
        refuse_large(len(task.classes) * self.components * binned.values)
        return MixtureNetwork(task, self.components, binned)

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        binned, classes = self.binned(task), len(task.classes)
        places, values, parts = binned.read(data.x), binned.values, 1 if present is None else self.components
        shares = torch.zeros(classes, parts, dtype=torch.float64)
        found = torch.zeros(classes, parts, values + 1, dtype=torch.float64)
        for label in set(data.y.tolist()):
            rows = places[data.y == label]
            table = (
                None
                if present is None
                else _Scores(present["weight"][label], present["table"][label], len(binned.sizes))
            )
            for some in torch.split(rows, ROWS):
                divided = torch.full((len(some), 1), float(SHARES)) if table is None else divide(table.score(some))
                shares[label] += divided.sum(0, dtype=torch.float64)
                _add(found[label], divided, some)
        counts = torch.bincount(data.y, minlength=classes)
        return {"counts": counts, "shares": shares.long(), "values": found[:, :, :-1].long()}

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        classes, parts = len(task.classes), self.components if done else 1
        return {"counts": (classes,), "shares": (classes, parts), "values": (classes, parts, self.binned(task).values)}

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        check_counts_and_forms(statistics, self.shapes(task, done), examples)
        shares, values = statistics["shares"].long(), statistics["values"].long()
        if bool((shares < 0).any()) or not torch.equal(shares.sum(1), statistics["counts"].long() * SHARES):
            raise GenfedError(f"its shares do not add up to {SHARES} for each row")
        sizes = self.binned(task).sizes
        if bool((values < 0).any()) or any(
            bool((part.sum(2) > shares).any()) for part in torch.split(values, sizes, dim=2)
        ):
            raise GenfedError(f"its values are not those of {examples} rows")

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        counts = require_examples(statistics, "estimate a mixture")
        shares, values = statistics["shares"].double() / SHARES, statistics["values"].double() / SHARES
        binned = self.binned(task)
        sizes, everything = binned.sizes, values.sum((0, 1))
        everywhere = normalize(everything + binned.may_occur(everything) / SHARES, sizes)
        marginal = normalize(values.sum(1) + everywhere, sizes)
        table = normalize(values + self.smoothing * marginal[:, None], sizes)
        weight = shares / counts.clamp_min(1)[:, None]
        if present is None:
            table, weight = self._begin(marginal, sizes, rng or torch.Generator())
        else:
            weight = torch.where((counts > 0)[:, None], weight, present["weight"].double())
        found = {"prior": counts / counts.sum(), "weight": weight, "table": table}
        return {name: value.float() for name, value in found.items()}

    def _begin(self, marginal: Tensor, sizes: list[int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns values [classes, k, values] and weights [classes, k] around the values of each class."""
        table = marginal[:, None].repeat(1, self.components, 1)
        if self.components > 1:
            draws = torch.randn(table.shape, generator=rng, dtype=torch.float64)
            table = normalize(table * (self.spread * draws).exp(), sizes)
        return table, torch.full((len(marginal), self.components), 1 / self.components, dtype=torch.float64)


def _add(found: Tensor, divided: Tensor, places: Tensor) -> None:
    """Adds shares [n, k] of at most 4,096 rows to found [k, values + 1] at the places [n, variables] of their values.
    Sums of whole numbers up to 2²⁴, they have the same bits in any order.
    """
    sums = torch.zeros(found.shape[1], found.shape[0])
    for column in places.T:
        sums.index_add_(0, column, divided.float())
    found += sums.T


class _Scores:
    """Logarithms of a class's probabilities in whole steps, so that sums over columns are exact in single precision:
    batches and the split of the rows do not change a bit.
    """

    def __init__(self, weight: Tensor, table: Tensor, columns: int) -> None:
        steps = 2.0 ** (20 - math.ceil(math.log2(columns + 1)))  # 2⁴ · columns · steps ≤ 2²⁴
        rounded = (table.double().clamp_min(LEAST_PROBABILITY).log() * steps).round() / steps
        self._table = functional.pad(rounded.T, (0, 0, 0, 1)).float().contiguous()  # an unknown value counts 0
        self._weight = (weight.double().clamp_min(LEAST_PROBABILITY).log() * steps).round().div(steps).float()

    def score(self, places: Tensor) -> Tensor:
        """Returns log(weight · probability) of rows with values at places [n, columns]: float32 [n, k]."""
        return functional.embedding_bag(places, self._table, mode="sum") + self._weight


class MixtureNetwork(RowNetwork):
    """Components per class within which the columns are independent."""

    weight: Tensor
    table: Tensor

    def __init__(self, task: Task, components: int, binned: Binned) -> None:
        super().__init__(task, binned)
        classes = len(task.classes)
        even = torch.cat([torch.full((size,), 1 / size) for size in self.binned.sizes])
        self.register_buffer("weight", torch.full((classes, components), 1 / components))
        self.register_buffer("table", even.repeat(classes, components, 1))

    @torch.no_grad()
    def draw_bins(self, y: Tensor, rng: torch.Generator, allowed: Tensor | None) -> Tensor:
        weight, table = self.weight.double(), self.table.double()
        if allowed is not None:
            table = table * allowed
            weight = (weight.clamp_min(1e-300).log() + self._log_shares(table)).softmax(1)
        y = y.cpu()
        parts = torch.cat([draw(weight[some], rng) for some in torch.split(y, ROWS)])
        chunks = zip(torch.split(y, ROWS), torch.split(parts, ROWS), strict=True)
        return torch.cat([self._draw_values(table[some, part], rng) for some, part in chunks])

    def _draw_values(self, chosen: Tensor, rng: torch.Generator) -> Tensor:
        """Draws the bins of rows whose values have probabilities in proportion to chosen [n, values]."""
        return torch.stack([draw(part, rng) for part in torch.split(chosen, self.binned.sizes, dim=1)], dim=1)

    def _log_shares(self, table: Tensor) -> Tensor:
        """Returns the logarithm of the product over columns of the sums of table [classes, k, values]."""
        sums = torch.stack([part.sum(2) for part in torch.split(table, self.binned.sizes, dim=2)], dim=2)
        return sums.clamp_min(1e-300).log().sum(2)

    def log_allowed(self, allowed: Tensor) -> Tensor:
        within = self._log_shares(self.table.double() * allowed)
        return (self.weight.double().clamp_min(1e-300).log() + within).logsumexp(1) + self.prior.double().log()

    def log_joint(self, x: Tensor) -> Tensor:
        places = self.binned.read(x)
        weight = self.weight.double().clamp_min(1e-30).log()
        table = functional.pad(self.table.double().clamp_min(LEAST_PROBABILITY).log(), (0, 1))
        scores = [
            torch.stack(
                [
                    (functional.embedding_bag(some, each.T.contiguous(), mode="sum") + of_class).logsumexp(1)
                    for each, of_class in zip(table, weight, strict=True)
                ],
                dim=1,
            )
            for some in torch.split(places, ROWS)
        ]
        return torch.cat(scores) + log_prior(self.prior).double()
