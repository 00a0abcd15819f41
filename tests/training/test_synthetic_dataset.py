"""The synthetic set: what goes in comes out, whatever the shards; an image's draws are its own; memory."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced
from genfed.core.rng import stream
from genfed.core.store import FolderStore
from genfed.core.task import Task
from genfed.training.synthetic_dataset import (
    NO_CLIENT,
    SampleRequest,
    SyntheticBatch,
    SyntheticDataset,
    choose_in_turn,
    keeps_synthetic_dataset,
    synthesis,
)
from tests.toys import Draws, Noise

TASK = Task("image", (1, 2, 3), ("a", "b", "c"))


def unused(name: str, rng: torch.Generator) -> nn.Module:
    raise AssertionError


def server(folder: Path | None = None, *path: str | int, task: Task = TASK, seed: int = 0) -> Server:
    made = Server(task, (), 0, stream(0), seed, torch.device("cpu"), "float32", unused)
    return made if folder is None else Server(**{**vars(made), "store": FolderStore(folder, *path)})


def made(first: int, n: int, shape: tuple[int, ...] = TASK.shape) -> SyntheticBatch:
    """Image i is full of i, of class i mod 3, for client i mod 2 (or nobody), from condition 10·i."""
    i = torch.arange(first, first + n)
    images = i.to(torch.uint8).reshape(-1, *(1 for _ in shape)).expand(n, *shape).contiguous()
    return SyntheticBatch(images, SampleRequest(i % 3, torch.where(i % 2 == 0, 0, NO_CLIENT), 10 * i), 1000 + i)


def filled(at: Server, *counts: int) -> SyntheticDataset:
    kept, first = SyntheticDataset(), 0
    for n in counts:
        kept = kept.append(at, made(first, n))
        first += n
    return kept


def rows_of(chunk: SyntheticBatch) -> list[int]:
    return chunk.images[:, 0, 0, 0].tolist()


def test_a_set_is_read_as_it_was_appended(tmp_path: Path) -> None:
    kept = filled(server(tmp_path, "draw", 0), 4, 1, 5)
    at = server(tmp_path)
    assert len(kept) == 10
    whole = kept.read(at)
    assert rows_of(whole) == list(range(10))
    assert whole.request.labels.tolist() == [i % 3 for i in range(10)]
    assert whole.request.conditions.tolist() == [10 * i for i in range(10)]
    assert whole.seeds.tolist() == [1000 + i for i in range(10)]
    assert torch.equal(whole.data.y, whole.request.labels)
    some = kept.read(at, torch.tensor([9, 0, 4, 4]))
    assert rows_of(some) == [9, 0, 4, 4]
    assert some.seeds.tolist() == [1009, 1000, 1004, 1004]
    assert torch.equal(kept.requested(at).clients, whole.request.clients)


def test_a_client_or_a_class_is_selected() -> None:
    at = server()
    kept = filled(at, 4, 1, 5)
    assert [rows_of(chunk) for chunk in kept.chunks(at, client=0)] == [[0, 2], [4], [6, 8]]
    assert [rows_of(chunk) for chunk in kept.chunks(at, client=NO_CLIENT, label=0)] == [[3], [], [9]]
    assert [rows_of(chunk) for chunk in kept.chunks(at)] == [[0, 1, 2, 3], [4], [5, 6, 7, 8, 9]]


def test_an_empty_set_is_a_set() -> None:
    at, kept = server(), SyntheticDataset()
    assert len(kept.read(at)) == len(kept.requested(at)) == len(list(kept.batches(at, 4, stream(0)))) == 0


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (1, 10, 2), (12,), (1,) * 12, (13,)])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_epoch_of_batches_has_every_image_once(counts: tuple[int, ...], size: int) -> None:
    at = server()
    kept = filled(at, *counts)
    epochs = [[rows_of(batch) for batch in kept.batches(at, size, stream(0, i))] for i in range(2)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(len(kept)))
        assert all(len(batch) == size for batch in epoch[:-1])
        assert size == 1 or all(len(batch) > 1 for batch in epoch)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (made(0, 2, (1, 3, 3)), r"images of shape \(1, 2, 3\) here, not torch.uint8 \(2, 1, 3, 3\)"),
        (SyntheticBatch(torch.zeros(2, 1, 2, 3), made(0, 2).request, made(0, 2).seeds), "not torch.float32"),
        (
            SyntheticBatch(made(0, 2).images, made(0, 3).request, made(0, 2).seeds),
            "2 images take an int64 label, client",
        ),
    ],
)
def test_what_is_no_part_of_a_set_is_refused(spoilt: SyntheticBatch, says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        SyntheticDataset().append(server(), spoilt)


def test_every_class_and_client_has_its_turn() -> None:
    wanted = SampleRequest(torch.tensor([0] * 6 + [1] * 3), torch.tensor([0] * 4 + [1] * 5), torch.zeros(9).long())
    for n in range(10):
        rows = choose_in_turn(wanted, n, stream(n))
        pairs = list(zip(wanted.labels[rows].tolist(), wanted.clients[rows].tolist(), strict=True))
        turns = [(0, 0), (0, 1), (1, 1)]
        assert pairs == [*turns, *turns, (0, 0), (1, 1), (0, 0)][:n]
        assert len(set(rows.tolist())) == n
    assert choose_in_turn(wanted, 3, stream(0)).tolist() != choose_in_turn(wanted, 3, stream(1)).tolist()


@dataclass(frozen=True)
class State:
    synthetic: SyntheticDataset = field(default_factory=SyntheticDataset)


def wanted_images(state: State) -> SampleRequest:
    i = torch.arange(10)
    return SampleRequest(i % 3, i % 4, i)


def noise(at: Server, state: State, wanted: SampleRequest, rngs: Sequence[torch.Generator]) -> Tensor:
    assert len(rngs) == len(wanted)
    return torch.stack([torch.rand(at.task.shape, generator=rng) * 2 - 1 for rng in rngs])


def run(phase: Phase[State], state: State, at: Server) -> State:
    assert callable(phase.rounds)
    for _ in range(phase.rounds(state)):
        state = phase.update(at, state, Reduced({}, ()))
    return state


def test_another_chunk_size_makes_the_same_images() -> None:
    at, whole = server(), None
    for chunk, rounds in ((1, 10), (3, 4), (10, 1), (99, 1)):
        state = run(synthesis("draw", wanted_images, noise, chunk), State(), at)
        assert len(state.synthetic.shards) == rounds
        made = state.synthetic.read(at)
        assert len(set(map(bytes, made.images.numpy()))) == len(set(made.seeds.tolist())) == 10
        assert made.request.conditions.tolist() == list(range(10))
        if whole is not None:
            assert torch.equal(made.images, whole.images)
            assert torch.equal(made.seeds, whole.seeds)
        whole = made
    assert whole is not None
    for name, seed in (("other", 0), ("draw", 1)):
        other = server(seed=seed)
        again = run(synthesis(name, wanted_images, noise, 5), State(), other).synthetic.read(other)
        assert not torch.equal(again.images, whole.images)


def test_a_phase_that_comes_again_makes_what_is_missing() -> None:
    at = server()
    phase = synthesis("draw", wanted_images, noise, 4)
    state = run(phase, State(), at)
    assert callable(phase.rounds)
    assert phase.rounds(state) == 0
    more = synthesis("draw", lambda s: SampleRequest(*(torch.zeros(13).long() for _ in range(3))), noise, 2)
    assert [shard.count for shard in run(more, state, at).synthetic.shards] == [4, 4, 2, 2, 1]


def test_images_that_are_not_finite_are_named() -> None:
    def spoilt(at: Server, state: State, wanted: SampleRequest, rngs: Sequence[torch.Generator]) -> Tensor:
        images = noise(at, state, wanted, rngs)
        images[wanted.conditions == 7, 0, 0, 0] = float("nan")
        return images

    with pytest.raises(
        GenfedError, match=r"phase 'draw' generated images that are not finite: image 7, class 1, client 3"
    ):
        run(synthesis("draw", wanted_images, spoilt, 4), State(), server())


def test_a_shard_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are mapped are counted, without a collector that would hide a cycle."""
    task = Task("image", (1, 100, 100), ("a", "b", "c"))
    at = server(tmp_path, "draw", 0, task=task)
    kept = SyntheticDataset()
    for i in range(20):
        kept = kept.append(at, made(5 * i, 5, task.shape))
    most = 0
    read = FolderStore.read

    def mapped() -> int:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return len({line.split()[-1] for line in maps if str(tmp_path) in line})

    def watched(self: FolderStore, kind: Any, shard: Any) -> Any:
        nonlocal most
        record = read(self, kind, shard)
        most = max(most, mapped())
        return record

    monkeypatch.setattr(FolderStore, "read", watched)
    gc.disable()
    try:
        assert sum(len(chunk) for chunk in kept.chunks(at)) == 100
        kept.requested(at)
        kept.read(at, torch.tensor([0, 50, 99]))
        assert sum(len(batch) for batch in kept.batches(at, 7, stream(0))) == 100
        assert mapped() == 0
        assert 1 <= most <= 2, "the next is read while a loop still holds the last"
    finally:
        gc.enable()


def test_who_keeps_a_set_is_seen_from_the_state() -> None:
    assert keeps_synthetic_dataset(Draws())
    assert not keeps_synthetic_dataset(Noise())
