"""Shards: written whole or not at all, read back to the bit, and gone when no state holds them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genfed.core.errors import GenfedError, RecordError
from genfed.core.record import save
from genfed.core.store import FolderStore, MemoryStore, Shard, Store, find_shards


@dataclass(frozen=True)
class Item:
    x: Tensor


@dataclass(frozen=True)
class State:
    shards: tuple[Shard, ...]
    by_name: dict[str, Shard]
    last: Shard | None


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_is_appended_is_read(kind: str, tmp_path: Path) -> None:
    store: Store = FolderStore(tmp_path, "generate", 3) if kind == "folder" else MemoryStore()
    shards = [store.append(Item(torch.full((4,), float(i))), 4) for i in range(3)]
    assert [store.read(Item, shard).x.tolist() for shard in shards] == [[float(i)] * 4 for i in range(3)]
    assert len({shard.checksum for shard in shards}) == 3
    with pytest.raises(RecordError):
        store.read(Item, Shard("other", 1, ""))


def test_shards_are_named_by_phase_and_round(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "a/b", 3)
    assert [store.append(Item(torch.zeros(1)), 1).name for _ in range(2)] == ["a%2Fb.3.0", "a%2Fb.3.1"]
    names = {FolderStore(tmp_path, *path).append(Item(torch.zeros(1)), 1).name for path in (("init",), ("init", 0))}
    assert names == {"init.0", "init.0.0"}, "a phase may be called init"
    assert {file.name for file in (tmp_path / "store").iterdir()} == {
        f"{name}.safetensors" for name in ("a%2Fb.3.0", "a%2Fb.3.1", *names)
    }


def test_a_round_done_again_replaces_its_shard(tmp_path: Path) -> None:
    before = FolderStore(tmp_path, "p", 0).append(Item(torch.zeros(1)), 1)
    after = FolderStore(tmp_path, "p", 0).append(Item(torch.ones(1)), 1)
    assert before.name == after.name
    assert FolderStore(tmp_path).read(Item, after).x.item() == 1
    with pytest.raises(RecordError, match="is not the shard that the checkpoint names"):
        FolderStore(tmp_path).read(Item, before)


def test_who_may_only_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="only `init` and the `update` of a phase may append"):
        FolderStore(tmp_path).append(Item(torch.zeros(1)), 1)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "another's"])
def test_a_damaged_shard_is_one_line(how: str, tmp_path: Path) -> None:
    shard = FolderStore(tmp_path, "p", 0).append(Item(torch.arange(1000.0)), 1)
    file = tmp_path / "store" / "p.0.0.safetensors"
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-100])
    elif how == "flipped":
        file.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    else:
        save(Item(torch.zeros(1000)), file)
    with pytest.raises(GenfedError) as raised:
        FolderStore(tmp_path).read(Item, shard)
    line = str(raised.value)
    assert line.startswith(f"{file}")
    assert line.endswith(f"; delete {tmp_path} to do this trial again from its start")
    assert "\n" not in line


def test_what_no_state_holds_is_deleted(tmp_path: Path) -> None:
    shards = [FolderStore(tmp_path, "p", i).append(Item(torch.zeros(1)), 1) for i in range(5)]
    state = State((shards[0],), {"x": shards[2]}, shards[4])
    assert list(find_shards(state)) == [shards[0], shards[2], shards[4]]
    FolderStore(tmp_path).retain(state)
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [f"p.{i}.0.safetensors" for i in (0, 2, 4)]
    (tmp_path / "store" / "p.2.0.safetensors").unlink()
    with pytest.raises(RecordError, match=r"p\.2\.0\.safetensors: no such file; delete"):
        FolderStore(tmp_path).retain(state)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        if path.is_file():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("genfed.core.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        FolderStore(tmp_path, "p", 0).append(Item(torch.zeros(1)), 1)
    assert not list((tmp_path / "store").iterdir())
