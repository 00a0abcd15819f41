"""Trees of classification, one for each column in turn, as synthpop has them. Reiter, Using CART to Generate Partially
Synthetic Public Use Microdata, Journal of Official Statistics 2005; Nowok, Raab, Dibben, synthpop: Bespoke Creation of
Synthetic Data in R, Journal of Statistical Software 2016.

Trees of several silos cannot be added up: each silo fits its own, and their rows are pooled. This is the baseline of
what silos reach without learning together.
"""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.row_generator import UNKNOWN, Binned, LocalRowGenerator
from genfed.generators.sequential_rows import SequentialRowNetwork


@settings
class CART(LocalRowGenerator):
    """A tree for each column, given the label and the columns before it. A row is drawn by following the trees; a
    value is drawn among those of the training rows in the leaf. Numbers are split by their order, and so are
    categories, in the order of their codes.
    """

    least_leaf: Annotated[int, Field(ge=1)] = 5
    """Least number of rows in a leaf. More: less like the rows, and farther from copies of them."""

    def new(self, task: Task, rng: torch.Generator) -> "CARTNetwork":
        """Returns trees of one leaf each, in which all values are equally frequent."""
        return CARTNetwork(task, self.binned(task))

    def build(self, task: Task, weights: Weights) -> "CARTNetwork":
        network = CARTNetwork(task, self.binned(task))
        network.take(weights)
        return network

    def fit(self, data: Data, task: Task, rng: torch.Generator) -> Weights:
        from sklearn.tree import DecisionTreeClassifier

        network = CARTNetwork(task, self.binned(task))
        places, starts = network.binned.read(data.x), torch.tensor(network.binned.starts)
        bins = torch.where(places < network.binned.values, places - starts, UNKNOWN).numpy()
        seen = np.concatenate([data.y.numpy()[:, None], bins], axis=1)
        counts = torch.bincount(data.y, minlength=len(task.classes))
        weights = network.state_dict() | {"prior": (counts / counts.sum()).float()}
        for column in range(bins.shape[1]):
            rows = bins[:, column] != UNKNOWN
            if not rows.any():
                continue
            state = int(torch.randint(2**31 - 1, (), generator=rng))  # chooses between equally good splits
            grown = DecisionTreeClassifier(min_samples_leaf=self.least_leaf, random_state=state)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that few rows have many values
                grown.fit(seen[rows, : column + 1], bins[rows, column])
            leaves = grown.apply(seen[rows, : column + 1])
            tree = _Tree.read(grown.tree_, leaves, bins[rows, column])
            weights |= {f"nodes_{column}": tree.nodes, f"leaves_{column}": tree.leaves}
        return weights


@dataclass(frozen=True)
class _Tree:
    """A tree for one column, as tensors."""

    nodes: Tensor
    """Each node: the place of what it splits by (0: the label, i + 1: column i), the largest bin that goes left, and
    the node to the right, −1 for a leaf: int32 [nodes, 3]. The node to the left is the next one."""
    leaves: Tensor
    """Values in leaves, in order: leaf, bin, and number of rows, int32 [n, 3]."""

    @classmethod
    def even(cls, size: int) -> "_Tree":
        """Returns a tree of one leaf, in which all bins are equally frequent."""
        leaves = torch.stack([torch.zeros(size), torch.arange(size), torch.ones(size)], dim=1)
        return cls(torch.tensor([[0, 0, -1]], dtype=torch.int32), leaves.int())

    @classmethod
    def read(cls, tree: Any, leaves: NDArray[np.int64], bins: NDArray[np.int64]) -> "_Tree":
        """Returns the tree that scikit-learn grew, with the leaf and the bin of each row."""
        right = np.where(tree.children_left == tree.children_right, -1, tree.children_right)
        nodes = np.stack([np.maximum(tree.feature, 0), np.floor(tree.threshold), right], axis=1)
        pairs, counts = np.unique(np.stack([leaves, bins], axis=1), axis=0, return_counts=True)
        found = np.concatenate([pairs, counts[:, None]], axis=1)
        return cls(torch.from_numpy(nodes.astype(np.int32)), torch.from_numpy(found.astype(np.int32)))

    def is_sound(self, column: int, size: int) -> bool:
        """Returns whether it is a tree of a column with this number of bins."""
        if any(part.ndim != 2 or part.shape[1] != 3 or part.dtype != torch.int32 for part in (self.nodes, self.leaves)):
            return False
        (by, _, right), (leaf, code, rows) = self.nodes.long().T, self.leaves.T.long().contiguous()
        inner, numbers = right != -1, torch.arange(len(right))
        return bool(
            len(right)
            and ((by >= 0) & (by <= column)).all()
            and ((right > numbers + 1) & (right < len(right)))[inner].all()  # so that every path ends
            and ((code >= 0) & (code < size) & (rows > 0)).all()
            and torch.equal(leaf.unique(), numbers[~inner])
            and (torch.diff(leaf * size + code) > 0).all()
        )

    def find_leaves(self, seen: Tensor) -> Tensor:
        """Returns the leaf of each row: seen [n, columns before it + 1] → int64 [n]."""
        by, most, right = self.nodes.T.long().contiguous()
        at = torch.zeros(len(seen), dtype=torch.int64)
        while bool((inner := right[at] >= 0).any()):
            left = seen.gather(1, by[at][:, None])[:, 0] <= most[at]
            at = torch.where(inner, torch.where(left, at + 1, right[at]), at)
        return at

    def count(self, leaves: Tensor, size: int) -> Tensor:
        """Returns the number of rows with each value in leaves [n]: float64 [n, size]."""
        distinct, place = torch.unique(leaves, return_inverse=True)
        leaf, code, rows = self.leaves.T.long().contiguous()
        where = torch.searchsorted(distinct, leaf).clamp_max(len(distinct) - 1)
        some = distinct[where] == leaf
        table = torch.zeros(len(distinct), size, dtype=torch.float64)
        table[where[some], code[some]] = rows[some].double()
        return table[place]


class CARTNetwork(SequentialRowNetwork):
    """A tree for each column, given the label and the columns before it."""

    def __init__(self, task: Task, binned: Binned) -> None:
        super().__init__(task, binned)
        for column, size in enumerate(self.binned.sizes):
            tree = _Tree.even(size)
            self.register_buffer(f"nodes_{column}", tree.nodes)
            self.register_buffer(f"leaves_{column}", tree.leaves)

    def take(self, weights: Weights) -> None:
        """Takes weights; unlike `load_state_dict`, it takes trees of any size.

        Raises:
            GenfedError: they are not trees of these columns.
        """
        fits = weights.keys() == self.state_dict().keys() and weights["prior"].shape == self.prior.shape
        for column, size in enumerate(self.binned.sizes):
            if not fits or not _Tree(weights[f"nodes_{column}"], weights[f"leaves_{column}"]).is_sound(column, size):
                raise GenfedError("the weights are not those of this generator and these columns")
        for name, value in weights.items():
            setattr(self, name, value)

    def order(self, given: list[int], rng: torch.Generator) -> list[int]:
        return list(range(len(self.binned.sizes)))

    def predict(self, variable: int, y: Tensor, codes: Tensor) -> Tensor:
        tree = _Tree(self.get_buffer(f"nodes_{variable}"), self.get_buffer(f"leaves_{variable}"))
        leaves = tree.find_leaves(torch.cat([y[:, None], codes[:, :variable]], dim=1))
        counts = tree.count(leaves, self.binned.sizes[variable])
        return counts / counts.sum(1, keepdim=True)
