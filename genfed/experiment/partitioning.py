"""From a data set to clients: divides the training examples, and assigns architectures."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genfed.config.settings import Config, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData, PersonalTestSet
from genfed.core.rng import stream
from genfed.data.dataset import Dataset
from genfed.data.partition import draw_subset


def partition_data(config: Config, dataset: Dataset, seed: int) -> FederatedData:
    """Returns the clients of one seed; they are the same for every method of the run.

    Raises:
        GenfedError: the partition does not fit the data, or there are no held-out examples.
    """
    federation = config.federation
    y, columns = dataset.train.y, dataset.columns
    rows = torch.arange(len(y))
    if federation.max_examples is not None:
        rows = draw_subset(y, federation.max_examples, stream(seed, "examples"))
        columns = {name: tuple(values[i] for i in rows.tolist()) for name, values in columns.items()}
    parts = config.partition.split(y[rows], federation.clients, stream(seed, "partition"), columns)
    names = assign_architectures(federation.architectures, federation.clients)
    kept = list_kept(federation)
    clients = tuple(ClientInfo(i, names[i], len(parts[i])) for i in kept)
    stops = torch.tensor([len(parts[i]) for i in kept]).cumsum(0).tolist()
    tested = config.evaluation.split == "test"
    held_out = dataset.test if tested else dataset.validation
    held_out_columns = dataset.test_columns if tested else dataset.validation_columns
    if len(held_out) == 0:
        raise GenfedError(f"evaluation.split = {config.evaluation.split!r}: the data set has no such part")
    return FederatedData(
        dataset.task,
        clients,
        tuple(zip([0, *stops[:-1]], stops, strict=True)),
        dataset.train[rows[torch.cat([parts[i] for i in kept])]],
        held_out,
        _personal_test_sets({i: parts[i] for i in kept}, config.partition.natural, columns, held_out_columns),
    )


def list_kept(federation: Federation) -> list[int]:
    """Returns the numbers of the clients that are not excluded.

    Raises:
        GenfedError: there is no such client, or all are excluded.
    """
    excluded = federation.excluded or ()
    if unknown := [i for i in excluded if i >= federation.clients]:
        raise GenfedError(
            f"federation.excluded: there is no client {unknown[0]}; they are 0 to {federation.clients - 1}"
        )
    kept = [i for i in range(federation.clients) if i not in excluded]
    if not kept:
        raise GenfedError("federation.excluded names all clients: at least one must remain")
    return kept


def _personal_test_sets(
    parts: Mapping[int, Tensor],
    column: str | None,
    columns: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]],
) -> dict[int, tuple[PersonalTestSet, ...]]:
    """Returns the personal test set of each client: held-out rows with the client's values of the natural column, or
    all of them where the held-out part lacks that column.
    """
    if column is None or column not in held_out:
        return {i: (PersonalTestSet(i, (0, len(part))),) for i, part in parts.items()}
    places = defaultdict(list)
    for row, value in enumerate(held_out[column]):
        places[value].append(row)
    own: dict[int, tuple[PersonalTestSet, ...]] = {}
    for i, part in parts.items():
        values = tuple(sorted({columns[column][row] for row in part.tolist()}))
        rows = torch.tensor(sorted(row for value in values for row in places[value]), dtype=torch.int64)
        own[i] = (PersonalTestSet(i, (0, len(part)), values, rows),)
    return own


def pool_clients(shards: FederatedData) -> FederatedData:
    """Returns one client per architecture. Each holds all training examples, and is evaluated for all clients of its
    architecture.
    """
    names = sorted({c.architecture for c in shards.clients})
    all_rows = (0, len(shards.train))
    clients = tuple(ClientInfo(i, name, len(shards.train)) for i, name in enumerate(names))
    own: dict[int, tuple[PersonalTestSet, ...]] = {pool.id: () for pool in clients}
    for info, place in zip(shards.clients, shards.ranges, strict=True):
        itself = tuple(dataclasses.replace(each, range=place) for each in shards.own.get(info.id, ()))
        own[names.index(info.architecture)] += itself
    return FederatedData(shards.task, clients, (all_rows,) * len(names), shards.train, shards.held_out, own)


def assign_architectures(architectures: tuple[str, ...] | dict[str, float], clients: int) -> list[str]:
    """Returns one architecture per client: names in turn, or in blocks in proportion to their weights (largest
    remainders).

    Raises:
        GenfedError: there are no names or more names than clients, a weight is not above 0, or a name gets no client.
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
    if invalid := [name for name, weight in architectures.items() if not 0 < weight < math.inf]:
        raise GenfedError(
            f"federation.architectures.{invalid[0]} = {architectures[invalid[0]]}: a weight is above 0 and finite"
        )
    total = sum(architectures.values())
    shares = {name: clients * weight / total for name, weight in architectures.items()}
    counts = {name: int(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda n: counts[n] - shares[n])[: clients - sum(counts.values())]:
        counts[name] += 1
    if idle := [name for name, count in counts.items() if count == 0]:
        raise GenfedError(
            f"federation.architectures.{idle[0]} = {architectures[idle[0]]} comes to none of {clients} clients: "
            "raise its weight or federation.clients, or remove it"
        )
    return [name for name, count in counts.items() for _ in range(count)]


def count_classes(shards: FederatedData) -> tuple[tuple[int, ...], ...]:
    """Returns the number of examples of each client and class."""
    classes = len(shards.task.classes)
    parts = (shards.train.y[slice(*r)] for r in shards.ranges)
    return tuple(tuple(torch.bincount(y, minlength=classes).tolist()) for y in parts)
