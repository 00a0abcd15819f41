"""Generators of rows that silos fitted alone, pooled: rows are drawn from each as often as its silo has rows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.task import Task, Weights
from genfed.generators.row_generator import Binned, RowGenerator, RowNetwork, draw


def pool(parts: Sequence[Weights], rows: Sequence[int]) -> Weights:
    """Returns the weights of several silos' generators as those of one, see `build_pooled`.

    >>> pooled = pool([{"prior": torch.tensor([1.0, 0.0])}, {"prior": torch.tensor([0.5, 0.5])}], [30, 10])
    >>> pooled["shares"], pooled["prior"], pooled["1.prior"]
    (tensor([0.7500, 0.2500]), tensor([0.8750, 0.1250]), tensor([0.5000, 0.5000]))

    Args:
        parts: The weights of each silo.
        rows: The number of its rows.
    """
    shares = torch.tensor(rows) / sum(rows)
    prior = _join(shares, [part["prior"] for part in parts])
    named = {f"{place}.{name}": value for place, part in enumerate(parts) for name, value in part.items()}
    return {"shares": shares, "prior": prior, **named}


def _join(shares: Tensor, priors: Sequence[Tensor]) -> Tensor:
    """Returns the shares of classes over all silos, from those of the silos' rows and of classes within each."""
    return (shares[:, None] * torch.stack(list(priors))).sum(0)


def build_pooled(generator: RowGenerator, task: Task, weights: Weights) -> "PooledRowNetwork":
    """Returns the network of weights from `pool`.

    Args:
        generator: The generator of each silo.
        task: The task.
        weights: The weights.

    Raises:
        GenfedError: they are not those of this generator and these columns.
    """
    shares = weights.get("shares")
    if shares is None or shares.ndim != 1 or not len(shares):
        raise GenfedError("the weights are not those of pooled silos")
    named = {name.partition(".")[::2]: value for name, value in weights.items()}
    parts = [
        generator.build(task, {name: value for (of, name), value in named.items() if name and of == str(place)})
        for place in range(len(shares))
    ]
    return PooledRowNetwork(task, generator.binned(task), parts, shares)


class PooledRowNetwork(RowNetwork):
    """A mixture of the silos' networks."""

    def __init__(self, task: Task, binned: Binned, parts: Sequence[RowNetwork], shares: Tensor) -> None:
        super().__init__(task, binned)
        self.parts = nn.ModuleList(parts)
        self.register_buffer("shares", shares)
        self.prior = _join(shares, [part.prior for part in parts])

    def _add(self, joints: Sequence[Tensor]) -> Tensor:
        """Returns what logarithms of probabilities within each silo are over all: a tensor for each silo."""
        return (torch.stack(list(joints)) + self._log_shares(joints[0].ndim)).logsumexp(0)

    def _log_shares(self, dimensions: int) -> Tensor:
        shares: Tensor = self.get_buffer("shares")
        return shares.double().log().reshape(-1, *[1] * dimensions)

    def draw_bins(self, y: Tensor, rng: torch.Generator, allowed: Tensor | None) -> Tensor:
        y = y.cpu()
        joint = torch.stack([self._log_classes(part, allowed) for part in self._networks]) + self._log_shares(1)
        weights = torch.where((joint > -torch.inf).any(0), joint, 0.0).softmax(0)
        chosen = draw(weights.T[y], rng)
        drawn = torch.empty(len(y), len(self.binned.sizes), dtype=torch.int64)
        for place, part in enumerate(self._networks):
            rows = (chosen == place).nonzero()[:, 0]
            if len(rows):
                drawn[rows] = part.draw_bins(y[rows], rng, allowed)
        return drawn

    @property
    def _networks(self) -> list[RowNetwork]:
        return [part for part in self.parts if isinstance(part, RowNetwork)]

    def _log_classes(self, part: RowNetwork, allowed: Tensor | None) -> Tensor:
        return part.prior.double().log() if allowed is None else part.log_allowed(allowed)

    def log_allowed(self, allowed: Tensor) -> Tensor:
        return self._add([part.log_allowed(allowed) for part in self._networks])

    def log_joint(self, x: Tensor) -> Tensor:
        return self._add([part.log_joint(x) for part in self._networks])
