"""Generators whose training is a sum: what a client uploads are sufficient statistics of its examples.

The sum of all clients' statistics is that of all examples in one place, whichever client has them. Numbers are rounded
to whole steps before they are added up. So the sum has the same bits in any order and for any split of the examples,
also under masks, and a client's part can be subtracted again.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.privacy import SumBounds
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.generator import Generator

STEPS = 64
"""Steps per unit, to which features are rounded."""
LARGEST_FEATURE = 8
"""Largest absolute value of a feature; larger ones are clipped. Encoders give features of mean square about 1."""
_MOST_CLIPPED = 0.05
"""Largest share of clipped features with which examples are still added up."""
_SMALLEST = 8 / STEPS
"""Smallest size that the largest feature may have: smaller ones keep too little of what tells examples apart."""
_LARGEST_PRODUCT = (STEPS * LARGEST_FEATURE) ** 2


@settings
class StatisticsGenerator(Generator):
    """Settings of a generator that is estimated from sums over examples, rather than trained by gradients.

    >>> import torch
    >>> from genfed import Data, Task
    >>> from genfed.generators.gaussian import Gaussian
    >>> task = Task("features", (2,), ("cat", "dog"))
    >>> data = Data(torch.randn(40, 2), torch.arange(40) % 2)
    >>> one, other = (Gaussian().measure(part, task) for part in (data[:9], data[9:]))
    >>> both = merge(one, other)
    >>> torch.equal(both["products"], Gaussian().measure(data, task)["products"])
    True
    >>> Gaussian().estimate(task, both)["mean"].shape
    torch.Size([2, 2])
    """

    shares: ClassVar[int] = 1
    """Number of equal parts of an example that can be added to different sums."""
    largest: ClassVar[int] = _LARGEST_PRODUCT
    """Largest number that a part of an example adds to a sum."""

    minimum_class_count: Annotated[int, Field(ge=0)] = 0
    """Least number of examples of a class that a client adds up: it leaves out every class of which it has fewer, since
    the mean of very few examples shows them. 0: it leaves out none, so that the sums are the same for any split of the
    examples over clients. Refused where parts of a class are added up too (`divides_classes`)."""

    def __post_init__(self) -> None:
        if self.minimum_class_count and self.divides_classes:
            raise GenfedError(
                f"minimum_class_count = {self.minimum_class_count}: clients add up parts of a class too, which may be "
                "of one example; 0 is allowed, or another generator: ppca, or a gaussian with a number as shrinkage"
            )

    @property
    def divides_classes(self) -> bool:
        """Whether clients also add up parts of a class, which may be of one example."""
        return self.passes > 1

    @property
    def bounded(self) -> bool:
        """Whether `noise_scales` and `estimate_noisy` are there, so that privacy of sums supports the generator."""
        return False

    @property
    def joins_groups(self) -> bool:
        """Whether `join_groups` is there, so that robust rules for sums support the generator."""
        return False

    @property
    def passes(self) -> int:
        """Number of times that clients measure statistics, each time given the estimate of the time before."""
        return 1

    def check_examples(self, x: Tensor) -> None:
        """Checks examples before they are measured.

        Raises:
            GenfedError: more than 5 % of the features are beyond ±8 and would be clipped, or all are below 1/8 and
                would vanish in steps of 1/64.
        """
        size = x.abs()
        clipped = float((size > LARGEST_FEATURE).double().mean()) > _MOST_CLIPPED
        if clipped or (len(x) and float(size.max()) < _SMALLEST):
            raise GenfedError(
                f"its features are from {float(x.min()):.3g} to {float(x.max()):.3g}: they are added up within "
                f"±{LARGEST_FEATURE} in steps of 1/{STEPS}; scale the data (data.scale), or choose another encoder"
            )

    @abstractmethod
    def shapes(self, task: Task, done: int = 0) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each statistic by its name; `done`: the number of passes before."""

    @abstractmethod
    def measure(self, data: Data, task: Task, present: Weights | None = None) -> Weights:
        """Returns the statistics of examples: int64 tensors by name, among them "counts" int64 [classes], the number
        of examples of each class.

        Args:
            data: Examples, x float32 [n, *task.shape].
            task: Their task.
            present: Estimate of the pass before. None: this is the first pass.
        """

    @abstractmethod
    def check(self, statistics: Weights, task: Task, examples: int, done: int = 0) -> None:
        """Checks the statistics that a client uploaded.

        Args:
            statistics: The statistics.
            task: The task of the examples.
            examples: The client's number of examples.
            done: The number of passes before.

        Raises:
            GenfedError: no set of that many examples has these statistics.
        """

    @abstractmethod
    def estimate(
        self,
        task: Task,
        statistics: Weights,
        present: Weights | None = None,
        rng: torch.Generator | None = None,
    ) -> Weights:
        """Returns the state dict of the generator's network for these statistics of all examples.

        Args:
            task: The task of the examples.
            statistics: Their statistics.
            present: Estimate of the pass before. None: this is the first pass.
            rng: Source of random numbers in the first pass. None: a new generator, with the seed that torch gives it.

        Raises:
            GenfedError: there are no examples.
        """

    def join_groups(self, groups: Sequence[Weights]) -> Weights:
        """Returns statistics as `measure` gives them, from those of groups of clients, such that a minority of the
        groups cannot move far what is estimated from them. Of one group: its own.

        Raises:
            GenfedError: the generator cannot.
        """
        raise GenfedError(f"robust rules do not support {type(self).__name__}")

    def noise_scales(self, statistics: Weights, bounds: SumBounds) -> Weights:
        """Returns a positive scale for every number of these statistics. Divided by the scales, what one example adds
        has an L2 norm of at most 1, if its features are bounded by `bound_rows`.

        Raises:
            GenfedError: the generator has no such bound.
        """
        raise GenfedError(f"privacy of sums does not support {type(self).__name__}")

    def estimate_noisy(self, task: Task, statistics: Weights, deviations: Weights) -> Weights:
        """Returns what `estimate` does, for statistics with noise.

        Args:
            task: The task of the examples.
            statistics: Noisy statistics of all examples.
            deviations: Standard deviation of the noise on each of their numbers.

        Raises:
            GenfedError: the generator cannot.
        """
        raise GenfedError(f"privacy of sums does not support {type(self).__name__}")


def bound_rows(x: Tensor, norm: float) -> Tensor:
    """Returns features x [n, d] whose rows have an L2 norm of at most `norm` after `round_features`.

    >>> bound_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), norm=1.0).norm(dim=1)
    tensor([0.9890, 0.5000], dtype=torch.float64)

    Raises:
        GenfedError: the norm is so small that rounding could exceed it.
    """
    within = norm - x.shape[1] ** 0.5 / (2 * STEPS)  # rounding moves a row by at most the rest
    if within <= 0:
        raise GenfedError(
            f"privacy.clip_norm = {norm:g}: {x.shape[1]} features in steps of 1/{STEPS} need a larger one"
        )
    x = x.double()
    factors = (within / x.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    bounded: Tensor = x * factors
    return bounded


def estimate_alone(generator: StatisticsGenerator, data: Data, task: Task, rng: torch.Generator) -> Weights:
    """Returns the state dict of the generator's network for examples in one place.

    Args:
        generator: The generator.
        data: Examples, x float32 [n, *task.shape].
        task: Their task.
        rng: Source of random numbers in the first pass.

    Raises:
        GenfedError: there are no examples.
    """
    present: Weights | None = None
    for _ in range(generator.passes):
        present = generator.estimate(task, generator.measure(data, task, present), present, rng)
    assert present is not None, "a generator measures at least once"
    return present


def merge(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Weights:
    """Returns the statistics of the examples of both."""
    return {name: one[name].long() + other[name].long() for name in one}


def subtract(whole: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> Weights:
    """Returns the statistics of the examples of `whole` without those of `part`."""
    return {name: whole[name].long() - part[name].long() for name in whole}


def drop_small_classes(counts: Tensor, minimum: int) -> Tensor:
    """Returns a client's numbers of examples of each class, with 0 for a class of fewer than `minimum`.

    >>> drop_small_classes(torch.tensor([4, 1, 0, 3]), minimum=3)
    tensor([4, 0, 0, 3])
    """
    return torch.where(counts >= minimum, counts, 0)


def count_examples(statistics: Mapping[str, Tensor], examples: int, minimum: int) -> int:
    """Returns the number of examples that uploaded counts must add up to: all of the client's, or as many as they say
    and not more, if it leaves out classes of fewer than `minimum`.
    """
    counts = statistics.get("counts")
    return examples if not minimum or counts is None else min(examples, int(counts.sum()))


def narrow(statistics: Mapping[str, Tensor], largest: int) -> Weights:
    """Returns the statistics as int32 if that holds sums of this size, otherwise as they are."""
    return {name: value.to(narrow_type(largest)) for name, value in statistics.items()}


def narrow_type(largest: int) -> torch.dtype:
    """Returns the type that `narrow` gives for sums of this size."""
    return torch.int32 if largest < 2**31 else torch.int64


def round_features(x: Tensor, shares: int = 1) -> Tensor:
    """Returns features x [n, …] in whole steps of 1/64, clipped to ±8: float64 [n, d].

    Args:
        x: The features.
        shares: Number of equal parts in which an example is added.

    Raises:
        GenfedError: one client has more examples than have exact sums in double precision.
    """
    if len(x) * shares * _LARGEST_PRODUCT >= 2**53:
        most = (2**53 - 1) // (shares * _LARGEST_PRODUCT)
        raise GenfedError(f"{len(x)} examples of one client: at most {most} have exact sums")
    return x.flatten(1).double().clamp(-LARGEST_FEATURE, LARGEST_FEATURE).mul(STEPS).round()


def require_examples(statistics: Mapping[str, Tensor], purpose: str) -> Tensor:
    """Returns the numbers of examples of each class, float64 [classes].

    Args:
        statistics: Statistics of all examples.
        purpose: What they are for, for the error message, such as "estimate a Gaussian".

    Raises:
        GenfedError: there are no examples.
    """
    counts = statistics["counts"].double()
    if not bool((counts >= 0).all()) or not bool((counts > 0).any()):
        raise GenfedError(f"no client has an example: there is nothing to {purpose} from")
    return counts


def check_counts_and_forms(statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
    """Checks names, types and shapes of statistics, and the numbers of examples.

    Args:
        statistics: What a client uploaded.
        shapes: What `StatisticsGenerator.shapes` returns.
        count: The client's number of examples.

    Raises:
        GenfedError: one is missing, or of another type or shape, or the counts do not add up to the client's examples.
    """
    if unlike := statistics.keys() ^ shapes.keys():
        raise GenfedError(f"its statistics have {min(unlike)!r} too many or too few; {', '.join(shapes)} are allowed")
    for name, shape in shapes.items():
        found = statistics[name]
        if found.shape != shape or found.dtype not in (torch.int32, torch.int64):
            raise GenfedError(f"its {name} are {found.dtype} {tuple(found.shape)}; whole numbers {shape} are allowed")
    counts = statistics["counts"].long()
    if bool((counts < 0).any()) or sum(counts.tolist()) != count:
        raise GenfedError(f"its counts do not add up to its {count} examples, each 0 or more")
