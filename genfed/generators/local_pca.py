"""Principal components of several parts of each class. Kambhatla, Leen, Dimension Reduction by Local Principal
Component Analysis, Neural Computation 1997: examples go to the nearest of several means, as in k-means (Lloyd, Least
Squares Quantization in PCM, IEEE Transactions on Information Theory 1982), and each part has components of its own. All
of it needs sums over examples alone.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.gaussian import are_moments, find_covariances, fold_triangle, unfold_triangle
from genfed.generators.ppca import PPCA, PPCANetwork, find_components
from genfed.generators.statistics_generator import LARGEST_FEATURE, STEPS, check_counts_and_forms, round_features


@settings
class LocalPCA(PPCA):
    """Principal components of several parts of each class, as `ppca` has them of a class.

    In the first pass clients upload what `ppca` needs. The means of the parts begin at draws of its components, so
    nobody looks at single examples. In each of the next `steps` passes every example goes to the nearest mean of its
    class, and clients add up: "counts" [classes]; "sizes" of the parts [classes, k]; and their "sums" [classes, k, d].
    In the last pass there are "products" of each part too, the upper triangle of Σ x xᵀ [classes, k, d (d + 1) / 2].
    """

    parts: Annotated[int, Field(ge=2, le=256)] = 5
    """Number of parts of a class (k)."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of steps of k-means, each of which is a round."""
    least: Annotated[int, Field(ge=1)] = 10
    """Least number of examples of a part, over all clients. A smaller one is given up, and its examples go to other
    parts in the next pass, so that the generator holds no mean of very few examples. A class keeps its largest part."""
    spread: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Distance of the first means from that of their class, in standard deviations of each component."""

    @property
    def passes(self) -> int:
        return self.steps + 2

    def new(self, task: Task, rng: torch.Generator) -> "LocalPCANetwork":
        return LocalPCANetwork(task, self.reduced(task), self.rank, self.parts)

    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        if present is None:
            return super().measure(data, task)
        rows, classes, width = round_features(self.reduce(data, task).x), len(task.classes), present["mean"].shape[2]
        last = int(present["done"]) == self.steps + 1
        counts, sizes = torch.zeros(classes).double(), torch.zeros(classes, self.parts).double()
        sums = torch.zeros(classes, self.parts, width).double()
        products = torch.zeros(classes, self.parts, width * (width + 1) // 2 if last else 0).double()
        for label in set(data.y.tolist()):
            own = rows[data.y == label]
            nearest = _find_nearest(own, *(present[name][label].to(own.device) for name in ("mean", "weight")))
            counts[label] = len(own)
            for part in set(nearest.tolist()):
                x = own[nearest == part]
                sizes[label, part], sums[label, part] = len(x), x.sum(0)
                if last:
                    products[label, part] = fold_triangle((x.T @ x)[None])[0]
        exact = {"counts": counts, "sizes": sizes, "sums": sums} | ({"products": products} if last else {})
        return {name: value.long() for name, value in exact.items()}

    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        if not done:
            return super().shapes(task)
        classes, width = len(task.classes), math.prod(self.reduced(task).shape)
        parts = {"sizes": (classes, self.parts), "sums": (classes, self.parts, width)}
        products = {"products": (classes, self.parts, width * (width + 1) // 2)} if done > self.steps else {}
        return {"counts": (classes,)} | parts | products

    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        if not done:
            super().check(statistics, task, examples)
            return
        check_counts_and_forms(statistics, self.shapes(task, done), examples)
        sizes, sums = statistics["sizes"].long(), statistics["sums"].double().flatten(0, 1)
        if bool((sizes < 0).any()) or not torch.equal(sizes.sum(1), statistics["counts"].long()):
            raise GenfedError("the sizes of its parts do not add up to its counts")
        size = sizes.double().flatten()
        possible = not bool((sums.abs() > size[:, None] * (STEPS * LARGEST_FEATURE)).any())
        if possible and "products" in statistics:
            products = unfold_triangle(statistics["products"].double().flatten(0, 1), sums.shape[1])
            possible = are_moments(size, sums, products)
        if not possible:
            raise GenfedError(f"its statistics are not those of {examples} examples within ±{LARGEST_FEATURE}")

    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        if present is None:
            found = self._begin(super().estimate(task, statistics), rng or torch.Generator())
        else:
            found = self._go_on(statistics, present)
        done = 0 if present is None else int(present["done"])
        return {name: value.float() for name, value in found.items()} | {"done": torch.tensor(done + 1)}

    def _begin(self, whole: Weights, rng: torch.Generator) -> Weights:
        """Returns parts whose means are draws of the components of their class."""
        classes = len(whole["mean"])
        draws = self.spread * torch.randn(classes, self.parts, self.rank, generator=rng)
        mean = whole["mean"] + torch.einsum("cdr,ckr->ckd", whole["factor"][:, 0], draws)
        repeated = {
            name: whole[name].expand(classes, self.parts, *whole[name].shape[2:]) for name in ("factor", "rest")
        }
        weight = torch.full((classes, self.parts), 1 / self.parts)
        mean = mean.clamp(-LARGEST_FEATURE, LARGEST_FEATURE)
        return {"prior": whole["prior"], "weight": weight, "mean": mean, **repeated}

    def _go_on(self, statistics: Weights, present: Weights) -> Weights:
        """Returns the parts after a pass. One with too few examples keeps its mean, with weight 0."""
        counts, sizes = statistics["counts"].double(), statistics["sizes"].double()
        own = statistics["sums"].double() / STEPS / sizes.clamp_min(1)[..., None]
        largest = torch.arange(self.parts) == sizes.argmax(1, keepdim=True)
        kept = (sizes > 0) & ((sizes >= self.least) | largest)
        mean = torch.where(kept[..., None], own, present["mean"].double())
        share = sizes * kept / (sizes * kept).sum(1, keepdim=True).clamp_min(1)
        weight = torch.where((counts > 0)[:, None], share, present["weight"].double())
        found = dict(present) | {"prior": counts / counts.sum().clamp_min(1), "weight": weight, "mean": mean}
        if "products" not in statistics:
            return found
        factor, rest = present["factor"].clone(), present["rest"].clone()
        for label in counts.nonzero()[:, 0].tolist():
            second = unfold_triangle(statistics["products"][label].double() / STEPS**2, mean.shape[2])
            covariances = find_covariances(sizes[label], mean[label], second, self.tying)
            found_factor, found_rest = (value.float() for value in find_components(covariances, self.rank))
            factor[label] = torch.where(kept[label][:, None, None], found_factor, factor[label])
            rest[label] = torch.where(kept[label], found_rest, rest[label])
        return found | {"factor": factor, "rest": rest}


def _find_nearest(rows: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Returns the place of the nearest mean [k, d] with a weight [k] above 0 for each row [n, d], given in whole steps.
    Means are rounded to whole steps too, so all sums are exact, and batches and split do not change it.
    """
    means = (means.double() * STEPS).round()
    scores = rows @ means.T - means.square().sum(1) / 2
    return scores.masked_fill(weights <= 0, -math.inf).argmax(1)


class LocalPCANetwork(PPCANetwork):
    """Parts of each class, and the number of passes that they are from."""

    done: Tensor

    def __init__(self, task: Task, reduced: Task, rank: int, parts: int) -> None:
        super().__init__(task, reduced, rank, parts)
        self.register_buffer("done", torch.tensor(0))
