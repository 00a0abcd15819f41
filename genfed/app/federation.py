"""From a data set to clients: shares the training part out, hands out architectures, refuses what cannot work."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genfed.app import registry
from genfed.app.config import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Data, Method, Task
from genfed.core.rng import stream
from genfed.data.checks import reason
from genfed.data.dataset import Dataset
from genfed.data.partition import subset
from genfed.engines.site import Own, Shards
from genfed.learn.fit import scaled
from genfed.learn.training import Training


def share_out(config: Config, dataset: Dataset, seed: int) -> Shards:
    """The clients of one seed: the same for every method of the run.

    Raises:
        GenfedError: the partition or an architecture does not fit the data.
    """
    federation = config.federation
    y, columns = dataset.train.y, dataset.columns
    rows = torch.arange(len(y))
    if federation.examples is not None:
        rows = subset(y, federation.examples, stream(seed, "examples"))
        columns = {name: tuple(values[i] for i in rows.tolist()) for name, values in columns.items()}
    parts = config.partition.split(y[rows], federation.clients, stream(seed, "partition"), columns)
    names = assign(federation.architectures, federation.clients)
    clients = tuple(ClientInfo(i, name, len(part)) for i, (name, part) in enumerate(zip(names, parts, strict=True)))
    stops = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    tested = config.evaluation.part == "test"
    held_out = dataset.test if tested else dataset.validation
    if len(held_out) == 0:
        raise GenfedError(f"evaluation.part = {config.evaluation.part!r}: the data set has no such part")
    return Shards(
        dataset.task,
        clients,
        tuple(zip([0, *stops[:-1]], stops, strict=True)),
        dataset.train[rows[torch.cat(parts)]],
        held_out,
        _own(parts, config.partition.natural, columns, dataset.test_columns if tested else dataset.validation_columns),
    )


def _own(
    parts: Sequence[Tensor],
    column: str | None,
    columns: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]],
) -> dict[int, tuple[Own, ...]]:
    """Each client for itself: with its values of the natural column, where the held-out part has that column."""
    if column is None or column not in held_out:
        return {i: (Own(i, (0, len(part))),) for i, part in enumerate(parts)}
    places = defaultdict(list)
    for row, value in enumerate(held_out[column]):
        places[value].append(row)
    own: dict[int, tuple[Own, ...]] = {}
    for i, part in enumerate(parts):
        values = tuple(sorted({columns[column][row] for row in part.tolist()}))
        rows = torch.tensor(sorted(row for value in values for row in places[value]), dtype=torch.int64)
        own[i] = (Own(i, (0, len(part)), values, rows),)
    return own


def pooled(shards: Shards) -> Shards:
    """One client per architecture, each holding all the training examples and scored for all who have it."""
    names = sorted({c.architecture for c in shards.clients})
    everything = (0, len(shards.train))
    clients = tuple(ClientInfo(i, name, len(shards.train)) for i, name in enumerate(names))
    own: dict[int, tuple[Own, ...]] = {pool.id: () for pool in clients}
    for info, place in zip(shards.clients, shards.ranges, strict=True):
        itself = tuple(dataclasses.replace(each, range=place) for each in shards.own.get(info.id, ()))
        own[names.index(info.architecture)] += itself
    return Shards(shards.task, clients, (everything,) * len(names), shards.train, shards.held_out, own)


def assign(architectures: tuple[str, ...] | dict[str, float], clients: int) -> list[str]:
    """One architecture per client: names in turn, or in blocks in proportion to their weights (largest remainders).

    Raises:
        GenfedError: no names, more names than clients, a weight that is not above 0, or one that comes to no client.
    """
    if not architectures:
        raise GenfedError("federation.architectures is empty: name at least one (`genfed list architectures`)")
    if len(architectures) > clients:
        raise GenfedError(
            f"federation.architectures names {len(architectures)} for federation.clients = {clients}: "
            "have at least as many clients as architectures"
        )
    if isinstance(architectures, tuple):
        return [architectures[i % len(architectures)] for i in range(clients)]
    if bad := [name for name, weight in architectures.items() if not 0 < weight < math.inf]:
        raise GenfedError(
            f"federation.architectures.{bad[0]} = {architectures[bad[0]]}: a weight is above 0 and finite"
        )
    total = sum(architectures.values())
    shares = {name: clients * weight / total for name, weight in architectures.items()}
    counts = {name: int(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda n: counts[n] - shares[n])[: clients - sum(counts.values())]:
        counts[name] += 1
    if idle := [name for name, count in counts.items() if count == 0]:
        raise GenfedError(
            f"federation.architectures.{idle[0]} = {architectures[idle[0]]} comes to none of {clients} clients: "
            "raise its weight or federation.clients, or leave it out"
        )
    return [name for name, count in counts.items() for _ in range(count)]


def class_counts(shards: Shards) -> tuple[tuple[int, ...], ...]:
    """For every client, its examples of each class."""
    classes = len(shards.task.classes)
    parts = (shards.train.y[slice(*r)] for r in shards.ranges)
    return tuple(tuple(torch.bincount(y, minlength=classes).tolist()) for y in parts)


def check(config: Config, shards: Shards) -> None:
    """Refuses before training what would fail in it.

    Raises:
        GenfedError: an architecture that does not fit the examples, a class missing where a method needs it,
            augmentation where there is none, a device that is not there.
    """
    check_device(config.compute.device)
    if config.federation.timeout is not None and config.compute.workers == 0:
        raise GenfedError("federation.timeout needs worker processes: compute.workers is 0")
    for name in sorted({c.architecture for c in shards.clients}):
        check_architecture(name, shards.task, shards.train)
    counts = class_counts(shards)
    few = min(shards.clients, key=lambda info: info.examples)
    for label, method in config.method.items():
        if few.examples < method.minimum_examples:
            raise GenfedError(
                f"{label} needs {method.minimum_examples} examples at every client, and client {few.id} has "
                f"{few.examples}: choose another partition, more examples or fewer clients"
            )
        check_augmentation(label, method, shards.task)
        if method.needs_public and config.public is None:
            raise GenfedError(f"{label} needs public examples: name a data source in the table [public]")
        if method.needs_every_class and (lacking := _lacking(counts)) is not None:
            client, place = lacking
            raise GenfedError(
                f"{label} needs every class at every client, and client {client} has no example of "
                f"{shards.task.classes[place]!r}: choose another partition or method"
            )


def check_augmentation(label: str, method: Method[Any], task: Task) -> None:
    """Refuses to augment what are no images, and where a method does not."""
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        training = getattr(method, field.name)
        if not isinstance(training, Training) or training.augmentation == "none":
            continue
        what = f'method.{label}.{field.name}.augmentation = "{training.augmentation}"'
        if field.name in method.unaugmented:
            raise GenfedError(f'{what}: this method does not augment there; "none" alone is allowed')
        if task.kind != "image":
            examples = "a table" if task.kind == "table" else "features"
            raise GenfedError(f'{what}: the examples are {examples}, where "none" alone is allowed')


def check_device(device: str) -> None:
    """Refuses a GPU that is not there."""
    if device.startswith("cuda"):
        count, place = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if place >= count:
            raise GenfedError(f'compute.device = {device!r}: this machine has {count} CUDA devices; use "cpu"')


def check_architecture(name: str, task: Task, data: Data) -> None:
    """Refuses a network that does not take two of these examples to one score per class."""
    network = registry.new_network(name, task, torch.Generator().manual_seed(0)).eval()
    try:
        with torch.no_grad():
            scores: object = network(scaled(data.x[:2]))
    except Exception as error:  # a user's own code may fail in any way
        about = f"{type(error).__name__}: {reason(error)}"
        raise GenfedError(f"architecture {name} does not fit examples of shape {task.shape} ({about})") from error
    expected = (min(2, len(data)), len(task.classes))
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        found = f"scores of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise GenfedError(f"architecture {name} gives {found} where scores of shape {expected} are expected")


def _lacking(counts: tuple[tuple[int, ...], ...]) -> tuple[int, int] | None:
    return next(((k, c) for k, row in enumerate(counts) for c, n in enumerate(row) if n == 0), None)
