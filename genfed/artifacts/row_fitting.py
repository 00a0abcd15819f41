"""Generators of rows, fitted to silos: by sums, by the mean of networks, or by each silo alone."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Annotated

import torch
from pydantic import Field

from genfed.artifacts.silos import EncodedSilos
from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Data, Task, Weights
from genfed.generators.pooled_rows import pool
from genfed.generators.row_generator import Binned, LocalRowGenerator, RowGenerator, SummedRowGenerator
from genfed.generators.statistics_generator import merge
from genfed.training.fit import fit
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state

Silos = EncodedSilos | Sequence[Data]
"""The rows of each silo."""
Notify = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all."""


@settings
class Averaging:
    """Rounds in which silos train a network, and their networks are averaged by the numbers of their rows (FedAvg).
    Optimizers stay with the silos.
    """

    rounds: Annotated[int, Field(ge=1)] = 80
    """Number of rounds."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Times in a round that a silo uses each of its rows."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Rows in a step. None: a tenth of the silo's rows, from 16 to 256, so that few rows make enough steps."""

    def batch_of(self, rows: int) -> int:
        """Returns the rows in a step of a silo with this many rows."""
        return min(max(rows // 10, 16), 256) if self.batch_size is None else self.batch_size


def fit_together(
    generator: RowGenerator, task: Task, silos: Silos, averaging: Averaging, seed: int, notify: Notify
) -> Weights:
    """Returns the weights of a generator that silos fit together.

    Args:
        generator: The generator.
        task: The task.
        silos: The rows of each silo.
        averaging: How networks are averaged.
        seed: Seed of all draws.
        notify: See `Notify`.

    Raises:
        GenfedError: each silo can only fit it alone.
    """
    if isinstance(generator, SummedRowGenerator):
        return _fit_sums(generator, task, silos, seed, notify)
    if isinstance(generator, LocalRowGenerator):
        raise GenfedError(f"{type(generator).__name__} of several silos can be pooled, and not be fitted together")
    return _fit_mean(generator, task, silos, averaging, seed, notify)


def fit_alone(
    generator: RowGenerator, task: Task, silos: Silos, averaging: Averaging, seed: int, notify: Notify
) -> Weights:
    """Returns the weights of generators that each silo fits alone, pooled; for the arguments see `fit_together`."""
    parts, rows = list[Weights](), list[int]()
    for place, data in enumerate(silos):
        rows.append(len(data))
        if isinstance(generator, LocalRowGenerator):
            parts.append(generator.fit(data, task, stream(seed, "generator", place)))
        else:
            parts.append(fit_together(generator, task, [data], averaging, seed, lambda done, of: None))
        notify(place + 1, len(silos))
    return pool(parts, rows)


def _fit_sums(generator: SummedRowGenerator, task: Task, silos: Silos, seed: int, notify: Notify) -> Weights:
    present: Weights | None = None
    for done in range(generator.passes):
        total = reduce(merge, (generator.measure(data, task, present) for data in silos))
        present = generator.estimate(task, total, present, stream(seed, "generator"))
        notify(done + 1, generator.passes)
    assert present is not None, "a generator measures at least once"
    return present


def _fit_mean(
    generator: RowGenerator, task: Task, silos: Silos, averaging: Averaging, seed: int, notify: Notify
) -> Weights:
    network = generator.new(task, stream(seed, "generator"))
    moments: list[tuple[OptimizerState, ...]] = [()] * len(silos)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    for done in range(averaging.rounds):
        total, rows = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}, 0
        for place, data in enumerate(silos):
            network.load_state_dict(weights)
            objectives = network.objectives()
            for objective, state in zip(objectives, moments[place], strict=False):  # there are none at first
                load_optimizer_state(objective.optimizer, state)
            for objective in objectives:
                for group in objective.optimizer.param_groups:
                    group["lr"] *= network.learning_rate_factor(done / averaging.rounds)
            rng = stream(seed, "train", done, place)
            fit(objectives, data, epochs=averaging.epochs, batch_size=averaging.batch_of(len(data)), rng=rng)
            moments[place] = tuple(optimizer_state(objective.optimizer) for objective in objectives)
            for name, value in network.state_dict().items():
                total[name] += value.double() * len(data)
            rows += len(data)
        weights = {name: (value / rows).to(weights[name].dtype) for name, value in total.items()}
        notify(done + 1, averaging.rounds)
    return weights | _count(network.binned, silos, len(task.classes))


def _count(binned: Binned, silos: Silos, classes: int) -> Weights:
    """Returns what a network takes from counts that silos add up: the shares of classes, and which values rows have."""
    rows = torch.zeros(classes, dtype=torch.int64)
    values = torch.zeros(binned.values + 1, dtype=torch.int64)
    for data in silos:
        rows += torch.bincount(data.y, minlength=classes)
        values += torch.bincount(binned.read(data.x).flatten(), minlength=binned.values + 1)
    return {"prior": (rows / rows.sum()).float(), "possible": binned.may_occur(values[:-1]).float()}
