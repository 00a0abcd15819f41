"""The synthetic set: labelled images that a server makes once and keeps in its store, a shard per chunk."""

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
"""In the place of a client's id: the image stands for none."""


@dataclass(frozen=True)
class SampleRequest:
    """What images are to be, each int64 [n]."""

    labels: Tensor
    clients: Tensor
    """For whom each stands: a client's id, or `NO_CLIENT`."""
    conditions: Tensor
    """What each is made from, by a number that the method knows it by (a row of its embeddings, say)."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "SampleRequest":
        return SampleRequest(self.labels[rows], self.clients[rows], self.conditions[rows])


@dataclass(frozen=True)
class SyntheticBatch:
    """Images of a synthetic set."""

    images: Tensor
    """uint8 [n, C, H, W]."""
    wanted: SampleRequest
    seeds: Tensor
    """Of each image's own draws, int64 [n]."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "SyntheticBatch":
        return SyntheticBatch(self.images[rows], self.wanted[rows], self.seeds[rows])

    @property
    def data(self) -> Data:
        """Images and labels."""
        return Data(self.images, self.wanted.labels)


def join_requests(parts: Sequence[SyntheticBatch]) -> SyntheticBatch:
    """Several, at least one, as one."""
    wanted = _joined([part.wanted for part in parts])
    return SyntheticBatch(torch.cat([part.images for part in parts]), wanted, torch.cat([part.seeds for part in parts]))


def _joined(parts: Sequence[SampleRequest]) -> SampleRequest:
    labels, clients, conditions = zip(*((part.labels, part.clients, part.conditions) for part in parts), strict=True)
    return SampleRequest(torch.cat(labels), torch.cat(clients), torch.cat(conditions))


@dataclass(frozen=True)
class SyntheticDataset:
    """What a state holds of a synthetic set: the shards, in the order in which they were made. Image i is the ith over
    all of them. Whatever reads one raises RecordError where a shard is missing or damaged.
    """

    shards: tuple[Shard, ...] = ()

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def append(self, server: Server, made: SyntheticBatch) -> "SyntheticDataset":
        """The set with these images after its own.

        Raises:
            GenfedError: they are no uint8 images of the task's shape, or lack a label or a seed.
        """
        shape, n = server.task.shape, len(made)
        if made.images.dtype != torch.uint8 or made.images.shape != (n, *shape):
            about = f"{made.images.dtype} {tuple(made.images.shape)}"
            raise GenfedError(f"a synthetic set takes torch.uint8 images of shape {shape} here, not {about}")
        columns = (made.wanted.labels, made.wanted.clients, made.wanted.conditions, made.seeds)
        if any(column.dtype != torch.int64 or column.shape != (n,) for column in columns):
            raise GenfedError(f"{n} images take an int64 label, client, condition and seed each")
        return SyntheticDataset((*self.shards, server.store.append(made, n)))

    def chunks(
        self, server: Server, *, client: int | None = None, label: int | None = None
    ) -> Iterator[SyntheticBatch]:
        """Shard by shard, one in memory at a time: the images of a client, of a class, or (None) of all."""
        for shard in self.shards:
            made = server.store.read(SyntheticBatch, shard)
            chosen = torch.ones(len(made), dtype=torch.bool)
            if client is not None:
                chosen &= made.wanted.clients == client
            if label is not None:
                chosen &= made.wanted.labels == label
            yield made if bool(chosen.all()) else made[chosen]

    def read(self, server: Server, rows: Tensor | None = None) -> SyntheticBatch:
        """The images of these rows [n], in their order (None: all). Beside them one shard is in memory at a time."""
        rows = torch.arange(len(self)) if rows is None else rows
        made = _empty(len(rows), server.task.shape)
        start = 0
        for shard in self.shards:
            places = torch.nonzero((rows >= start) & (rows < start + shard.count)).flatten()
            if len(places):
                for to, of in zip(_columns(made), _columns(server.store.read(SyntheticBatch, shard)), strict=True):
                    to[places] = of[rows[places] - start]
            start += shard.count
        return made

    def requested(self, server: Server) -> SampleRequest:
        """What all the images were to be, without them."""
        # By rows, which copies: a view of the labels would hold the shard's images too.
        parts = [made.wanted[torch.arange(len(made))] for made in self.chunks(server)]
        return _joined([_empty(0, ()).wanted, *parts])

    def batches(self, server: Server, size: int, rng: torch.Generator) -> Iterator[SyntheticBatch]:
        """One shuffled epoch that never holds the whole set: shards come in random order, and rows in random order out
        of as many shards as fill a batch. The last batch may be smaller, or larger by one.
        """
        pool = _empty(0, server.task.shape)
        for place in torch.randperm(len(self.shards), generator=rng).tolist():
            pool = join_requests([pool, *SyntheticDataset((self.shards[place],)).chunks(server)])
            order = torch.randperm(len(pool), generator=rng)
            whole = max(len(pool) - 2, 0) // size * size  # two stay, for a last batch of one has no variance
            for rows in torch.split(order[:whole], size) if whole else ():
                yield pool[rows]
            pool = pool[order[whole:]]
        for rows in batches(len(pool), size, rng) if len(pool) else ():
            yield pool[rows]


def choose_in_turn(wanted: SampleRequest, n: int, rng: torch.Generator) -> Tensor:
    """Rows of at most n images: at random, but every class and client in turn while they last."""
    order = torch.randperm(len(wanted), generator=rng)
    cell = torch.unique(torch.stack([wanted.labels, wanted.clients], 1), dim=0, return_inverse=True)[1][order]
    counts = torch.bincount(cell)
    by_cell = torch.argsort(cell, stable=True)
    turn = torch.empty_like(cell)
    turn[by_cell] = torch.arange(len(cell)) - (counts.cumsum(0) - counts)[cell[by_cell]]
    return order[torch.argsort(turn * len(counts) + cell)][:n]


def choose_as_many(labels: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Rows of `labels` at random, class by class: as many of each as in y, or all where there are fewer."""
    order = torch.randperm(len(labels), generator=rng)
    return torch.cat([order[labels[order] == c][:n] for c, n in enumerate(torch.bincount(y).tolist())])


def _empty(n: int, shape: tuple[int, ...]) -> SyntheticBatch:
    labels, clients, conditions, seeds = (torch.empty(n, dtype=torch.int64) for _ in range(4))
    return SyntheticBatch(torch.empty(n, *shape, dtype=torch.uint8), SampleRequest(labels, clients, conditions), seeds)


def _columns(made: SyntheticBatch) -> tuple[Tensor, ...]:
    return made.images, made.wanted.labels, made.wanted.clients, made.wanted.conditions, made.seeds


class KeepsSyntheticDataset(Protocol):
    """A state record that holds a synthetic set, under this name."""

    @property
    def synthetic(self) -> SyntheticDataset:
        """What has been made so far."""


K = TypeVar("K", bound=KeepsSyntheticDataset)
Make = Callable[[Server, K, SampleRequest, Sequence[torch.Generator]], Tensor]
"""(server, state, n wanted, a generator each) → images float [n, C, H, W] on the scale of `normalize_pixels`."""


def synthesis(name: str, wanted: Callable[[K], SampleRequest], make: Make[K], chunk: int) -> Phase[K]:
    """A phase of the server that makes all that is wanted and not yet in the set: a round per chunk of that many, and
    a shard per round. Image i draws from a generator named after i, so that its draws are the same for any chunk.

    Raises:
        GenfedError: (while it runs) images that are not finite; what was made before them stays.
    """

    def rounds(state: K) -> int:
        return math.ceil((len(wanted(state)) - len(state.synthetic)) / chunk)

    def update(server: Server, state: K, reduced: Reduced) -> K:
        first = len(state.synthetic)
        now = wanted(state)[first : first + chunk]
        seeds = [derive(server.seed, name, "image", first + i) for i in range(len(now))]
        images = make(server, state, now, [torch.Generator().manual_seed(seed) for seed in seeds])
        if len(bad := torch.nonzero(~images.isfinite().flatten(1).all(1))):
            i = int(bad[0])
            about = f"image {first + i}, class {int(now.labels[i])}, client {int(now.clients[i])}"
            raise GenfedError(f"phase {name!r} made images that are not finite: {about} is the first")
        made = SyntheticBatch(denormalize_pixels(images).cpu(), now, torch.tensor(seeds, dtype=torch.int64))
        grown = dataclasses.replace(typing.cast(Any, state), synthetic=state.synthetic.append(server, made))
        return typing.cast(K, grown)

    return Phase(name, update, rounds=rounds, changes_classifier=False)


def keeps_synthetic_dataset(method: Method[Any]) -> bool:
    """Whether the method's state holds a synthetic set, as `KeepsSyntheticDataset` says."""
    state = typing.get_origin(method.state) or method.state
    return typing.get_type_hints(state).get("synthetic") is SyntheticDataset
