"""Synthetic data sets: labelled images that a server generates once and writes to its store, one shard per chunk."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Phase, Reduced
from genfed.core.rng import derive
from genfed.core.store import Shard
from genfed.core.task import Data
from genfed.training.fit import batches
from genfed.training.pixels import denormalize_pixels

NO_CLIENT = -1
"""Client id of an image that belongs to no client."""


@dataclass(frozen=True)
class SampleRequest:
    """A request for n images.

    >>> import torch
    >>> from genfed import SampleRequest
    >>> request = SampleRequest(torch.tensor([0, 1]), torch.tensor([3, 3]), torch.tensor([10, 11]))
    >>> len(request), request[:1].labels
    (2, tensor([0]))
    """

    labels: Tensor
    """Class of each image, int64 [n]."""
    clients: Tensor
    """Client of each image, int64 [n]: an id or `NO_CLIENT`."""
    conditions: Tensor
    """Number of each image's condition in the method, such as a row of its embeddings, int64 [n]."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "SampleRequest":
        return SampleRequest(self.labels[rows], self.clients[rows], self.conditions[rows])


@dataclass(frozen=True)
class SyntheticBatch:
    """Images of a synthetic data set."""

    images: Tensor
    """Pixels, uint8 [n, C, H, W]."""
    request: SampleRequest
    """Requests of these images."""
    seeds: Tensor
    """Seed of each image's generator, int64 [n]."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "SyntheticBatch":
        return SyntheticBatch(self.images[rows], self.request[rows], self.seeds[rows])

    @property
    def data(self) -> Data:
        """Images and labels of the batch."""
        return Data(self.images, self.request.labels)


def join_batches(parts: Sequence[SyntheticBatch]) -> SyntheticBatch:
    """Joins batches, at least one, to one."""
    images, seeds = torch.cat([part.images for part in parts]), torch.cat([part.seeds for part in parts])
    return SyntheticBatch(images, _join_requests([part.request for part in parts]), seeds)


def _join_requests(parts: Sequence[SampleRequest]) -> SampleRequest:
    labels, clients, conditions = zip(*((part.labels, part.clients, part.conditions) for part in parts), strict=True)
    return SampleRequest(torch.cat(labels), torch.cat(clients), torch.cat(conditions))


@dataclass(frozen=True)
class SyntheticDataset:
    """The synthetic data set in a server's state: the names of its shards, in order. Image i is the ith of all shards.

    Every method that reads images raises RecordError if a shard is missing or damaged.

    >>> import torch
    >>> from genfed import SampleRequest, Server, SyntheticDataset, Task
    >>> from genfed.training.synthetic_dataset import SyntheticBatch
    >>> task, rng = Task("image", (1, 8, 8), ("cat", "dog")), torch.Generator()
    >>> server = Server(task, (), 0, rng, 0, torch.device("cpu"), "float32", lambda name, rng: torch.nn.Identity())
    >>> request = SampleRequest(torch.tensor([0, 1]), torch.tensor([3, 3]), torch.tensor([10, 11]))
    >>> batch = SyntheticBatch(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), request, torch.tensor([5, 6]))
    >>> dataset = SyntheticDataset().append(server, batch)
    >>> len(dataset), dataset.read(server, torch.tensor([1])).data.y
    (2, tensor([1]))
    """

    shards: tuple[Shard, ...] = ()

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def append(self, server: Server, batch: SyntheticBatch) -> "SyntheticDataset":
        """Writes the images to the server's store. Returns the data set with them at its end.

        Raises:
            GenfedError: they are not uint8 images of the task's shape, or an image lacks a label or a seed.
        """
        shape, n = server.task.shape, len(batch)
        if batch.images.dtype != torch.uint8 or batch.images.shape != (n, *shape):
            about = f"{batch.images.dtype} {tuple(batch.images.shape)}"
            raise GenfedError(f"a synthetic set takes torch.uint8 images of shape {shape} here, not {about}")
        _, *columns = _list_columns(batch)
        if any(column.dtype != torch.int64 or column.shape != (n,) for column in columns):
            raise GenfedError(f"{n} images take an int64 label, client, condition and seed each")
        return SyntheticDataset((*self.shards, server.store.append(batch, n)))

    def chunks(
        self, server: Server, *, client: int | None = None, label: int | None = None
    ) -> Iterator[SyntheticBatch]:
        """Yields the images shard by shard, with one shard in memory at a time.

        Args:
            server: The server.
            client: The client whose images are read; None: all.
            label: The class whose images are read; None: all.
        """
        for shard in self.shards:
            batch = server.store.read(SyntheticBatch, shard)
            chosen = torch.ones(len(batch), dtype=torch.bool)
            if client is not None:
                chosen &= batch.request.clients == client
            if label is not None:
                chosen &= batch.request.labels == label
            yield batch if bool(chosen.all()) else batch[chosen]

    def read(self, server: Server, rows: Tensor | None = None) -> SyntheticBatch:
        """Reads the images of these rows [n], in this order (None: all), with one shard in memory at a time."""
        rows = torch.arange(len(self)) if rows is None else rows
        batch = _new_batch(len(rows), server.task.shape)
        start = 0
        for shard in self.shards:
            places = torch.nonzero((rows >= start) & (rows < start + shard.count)).flatten()
            if len(places):
                stored = server.store.read(SyntheticBatch, shard)
                for target, source in zip(_list_columns(batch), _list_columns(stored), strict=True):
                    target[places] = source[rows[places] - start]
            start += shard.count
        return batch

    def requested(self, server: Server) -> SampleRequest:
        """Returns the requests of all images, without the images."""
        # Indexing by rows copies: a view of the labels would hold the shard's images in memory.
        parts = [batch.request[torch.arange(len(batch))] for batch in self.chunks(server)]
        return _join_requests([_new_batch(0, ()).request, *parts])

    def batches(self, server: Server, size: int, rng: torch.Generator) -> Iterator[SyntheticBatch]:
        """Yields the batches of one shuffled epoch without holding the whole data set in memory.

        Shards are read in random order; a batch takes random rows of the shards that were read last. The last batch may
        be smaller, or larger by one.

        Args:
            server: The server.
            size: The number of images in a batch.
            rng: The source of the order.
        """
        pool = _new_batch(0, server.task.shape)
        for place in torch.randperm(len(self.shards), generator=rng).tolist():
            pool = join_batches([pool, *SyntheticDataset((self.shards[place],)).chunks(server)])
            order = torch.randperm(len(pool), generator=rng)
            whole = max(len(pool) - 2, 0) // size * size  # two remain, since a last batch of one has no variance
            for rows in torch.split(order[:whole], size) if whole else ():
                yield pool[rows]
            pool = pool[order[whole:]]
        for rows in batches(len(pool), size, rng) if len(pool) else ():
            yield pool[rows]


def choose_in_turn(request: SampleRequest, n: int, rng: torch.Generator) -> Tensor:
    """Chooses at most n images at random, where all pairs of class and client take turns. Returns their rows."""
    order = torch.randperm(len(request), generator=rng)
    cell = torch.unique(torch.stack([request.labels, request.clients], 1), dim=0, return_inverse=True)[1][order]
    counts = torch.bincount(cell)
    by_cell = torch.argsort(cell, stable=True)
    turn = torch.empty_like(cell)
    turn[by_cell] = torch.arange(len(cell)) - (counts.cumsum(0) - counts)[cell[by_cell]]
    return order[torch.argsort(turn * len(counts) + cell)][:n]


def choose_as_many(labels: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Chooses as many rows of each class as y has, at random; all rows of a class if there are fewer.

    Args:
        labels: The classes to choose from, int64 [n].
        y: The classes whose numbers are matched, int64 [m].
        rng: The source of the draws.
    """
    order = torch.randperm(len(labels), generator=rng)
    return torch.cat([order[labels[order] == c][:n] for c, n in enumerate(torch.bincount(y).tolist())])


def _new_batch(n: int, shape: tuple[int, ...]) -> SyntheticBatch:
    labels, clients, conditions, seeds = (torch.empty(n, dtype=torch.int64) for _ in range(4))
    return SyntheticBatch(torch.empty(n, *shape, dtype=torch.uint8), SampleRequest(labels, clients, conditions), seeds)


def _list_columns(batch: SyntheticBatch) -> tuple[Tensor, ...]:
    return batch.images, batch.request.labels, batch.request.clients, batch.request.conditions, batch.seeds


class KeepsSyntheticDataset(Protocol):
    """A state record with a field `synthetic`."""

    @property
    def synthetic(self) -> SyntheticDataset:
        """Images generated so far."""


K = TypeVar("K", bound=KeepsSyntheticDataset)
Make = Callable[[Server, K, SampleRequest, Sequence[torch.Generator]], Tensor]
"""(server, state, request of n images, n generators) → images float [n, C, H, W] on the scale of `normalize_pixels`."""


def synthesis(name: str, wanted: Callable[[K], SampleRequest], make: Make[K], chunk: int) -> Phase[K]:
    """Returns a phase in which the server generates the requested images that the data set lacks.

    Each round generates one chunk and writes it as one shard. Image i draws from a generator derived from i, so its
    draws do not depend on the size of the chunks. A round raises GenfedError if an image is not finite; the images of
    earlier rounds stay.

    >>> import torch
    >>> from genfed import SampleRequest, synthesis
    >>> def request(state):
    ...     return SampleRequest(torch.arange(10), torch.full((10,), -1), torch.arange(10))
    >>> def draw(server, state, request, rngs):
    ...     return torch.stack([2 * torch.rand(server.task.shape, generator=rng) - 1 for rng in rngs])
    >>> synthesis("draw", request, draw, chunk=4).name
    'draw'

    Args:
        name: The name of the phase.
        wanted: A function of the state that requests all images.
        make: A function that generates the images of a request.
        chunk: The number of images per round.
    """

    def rounds(state: K) -> int:
        return math.ceil((len(wanted(state)) - len(state.synthetic)) / chunk)

    def update(server: Server, state: K, reduced: Reduced) -> K:
        first = len(state.synthetic)
        request = wanted(state)[first : first + chunk]
        seeds = [derive(server.seed, name, "image", first + i) for i in range(len(request))]
        images = make(server, state, request, [torch.Generator().manual_seed(seed) for seed in seeds])
        if len(invalid := torch.nonzero(~images.isfinite().flatten(1).all(1))):
            i = int(invalid[0])
            about = f"image {first + i}, class {int(request.labels[i])}, client {int(request.clients[i])}"
            raise GenfedError(f"phase {name!r} generated images that are not finite: {about} is the first")
        batch = SyntheticBatch(denormalize_pixels(images).cpu(), request, torch.tensor(seeds, dtype=torch.int64))
        synthetic = state.synthetic.append(server, batch)
        return typing.cast(K, dataclasses.replace(typing.cast(Any, state), synthetic=synthetic))

    return Phase(name, update, rounds=rounds, changes_classifier=False)


def keeps_synthetic_dataset(method: Method[Any]) -> bool:
    """Returns whether the method's state is a `KeepsSyntheticDataset`."""
    state = typing.get_origin(method.state) or method.state
    return typing.get_type_hints(state).get("synthetic") is SyntheticDataset
