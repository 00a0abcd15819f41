"""A network for the rows of a table that fills in their columns in any order.

After Uria, Murray, Larochelle, A Deep and Tractable Density Estimator, ICML 2014, and Sidorenko, Tiwald et al.,
TabularARGN: A Flexible and Efficient Auto-Regressive Framework for Generating High-Fidelity Synthetic Data, arXiv
2501.12012.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.generators.row_generator import RowGenerator
from genfed.generators.sequential_rows import SequentialRowNetwork
from genfed.training.fit import Objective


@settings
class AnyOrder(RowGenerator):
    """A network that predicts the hidden columns of a row from the label and the other columns. In training a random
    number of columns is hidden; a row is drawn by filling in one column after another, those with a condition first.
    """

    width: Annotated[int, Field(ge=1)] = 256
    """Units of each of the two hidden layers."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    """Learning rate of Adam at the beginning; over the rounds it falls to 0, by half a wave of a cosine."""

    def new(self, task: Task, rng: torch.Generator) -> "AnyOrderNetwork":
        """Returns a network with weights initialized from `rng`."""
        with seeded(rng):
            return AnyOrderNetwork(task, self)


class AnyOrderNetwork(SequentialRowNetwork):
    """Two hidden layers from marks (the values that are known, the columns that are hidden, and the label) to the
    logits of all values.
    """

    possible: Tensor
    """1 for the values that a row may have, 0 for others [values]: all, unless counts of them are known."""

    chunk = 1024

    def __init__(self, task: Task, config: AnyOrder) -> None:
        super().__init__(task, config.binned(task))
        self.learning_rate, self.classes = config.learning_rate, len(task.classes)
        marks = self.binned.values + len(self.binned.sizes) + self.classes
        self.register_buffer("possible", torch.ones(self.binned.values))
        self.first = nn.Linear(marks, config.width)
        self.second = nn.Linear(config.width, config.width)
        self.last = nn.Linear(config.width, self.binned.values)

    def _embed(self, y: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Returns what the hidden layers make of labels [n] and the places of values [n, columns]: [n, width]."""
        values, columns = self.binned.values, places.shape[1]
        codes = values + torch.arange(columns, device=places.device)
        seen = torch.cat([torch.where(hidden, codes, places), (values + columns + y)[:, None]], dim=1)
        marks = torch.zeros(len(y), self.first.in_features, device=places.device).scatter_(1, seen, 1.0)
        inner = torch.relu(self.first(marks))
        found: Tensor = inner + torch.relu(self.second(inner))
        return found

    def loss(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the mean cross-entropy of the hidden columns per row [n]; at least one is hidden, and all numbers of
        them are equally frequent. Values that are not known count as hidden, and have no loss.
        """
        places = self.binned.read(x).to(x.device)
        rows, columns = places.shape
        count = torch.randint(1, columns + 1, (rows, 1), generator=rng)
        rank = torch.rand(rows, columns, generator=rng).argsort(1).argsort(1)
        known = places < self.binned.values
        hidden = (rank < count).to(x.device) | ~known
        logits = torch.split(self.last(self._embed(y, places, hidden)).float(), self.binned.sizes, dim=1)
        counted = (hidden & known).float()
        losses = torch.stack(
            [
                functional.cross_entropy(part, (places[:, i] - start).clamp_max(size - 1), reduction="none")
                for i, (part, start, size) in enumerate(zip(logits, self.binned.starts, self.binned.sizes, strict=True))
            ],
            dim=1,
        )
        found: Tensor = (losses * counted).sum(1) / counted.sum(1).clamp_min(1)
        return found

    def objectives(self) -> Sequence[Objective]:
        adam = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
        return [Objective(self.loss, adam, network=self)]

    def learning_rate_factor(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2

    def order(self, given: list[int], rng: torch.Generator) -> list[int]:
        every: list[int] = torch.randperm(len(self.binned.sizes), generator=rng).tolist()
        return sorted(every, key=lambda variable: variable not in given)

    def predict(self, variable: int, y: Tensor, codes: Tensor) -> Tensor:
        device, start = self.first.weight.device, self.binned.starts[variable]
        places = (codes.clamp_min(0) + torch.tensor(self.binned.starts)).to(device)
        inner = self._embed(y.to(device), places, (codes < 0).to(device))
        part = slice(start, start + self.binned.sizes[variable])
        table = functional.linear(inner, self.last.weight[part], self.last.bias[part]).double().softmax(1)
        table = table * self.possible[part]
        return (table / table.sum(1, keepdim=True)).cpu()
