"""Where a server puts what is too large for a state that is written anew after every round: records in shards. The
state holds their names and checksums alone (`Shard`), and what it names is what there is.
"""

import dataclasses
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genfed.core.errors import GenfedError, RecordError
from genfed.core.record import digest, from_bytes, load, pack, save, to_bytes, unpack

R = TypeVar("R")


@dataclass(frozen=True)
class Shard:
    """One record in a store. A state that holds this keeps the shard; one that no checkpoint holds is deleted."""

    name: str
    count: int
    """How many things are in it, as whoever appended it says."""
    checksum: str
    """Of the whole record."""


class Store(Protocol):
    """What `Server.store` offers. A shard is never changed: the store grows by shards."""

    def append(self, record: object, count: int) -> Shard:
        """Puts a record there, on the disk before this returns. It lasts if the new state holds what is returned: a
        round that is done again writes the same shards again.
        """

    def read(self, kind: type[R], shard: Shard) -> R:
        """The record that was appended.

        Raises:
            RecordError: it is missing or damaged.
        """


class MemoryStore:
    """A store of a server that has no folder: it ends with the process."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    def append(self, record: object, count: int) -> Shard:
        packed = pack(record)
        shard = Shard(str(len(self._records)), count, digest(packed))
        self._records[shard.name] = to_bytes(packed)
        return shard

    def read(self, kind: type[R], shard: Shard) -> R:
        if shard.name not in self._records:
            raise RecordError(f"shard {shard.name} is in no store")
        return unpack(kind, from_bytes(self._records[shard.name]))


class FolderStore:
    """A store of files, store/NAME.safetensors in a trial's folder."""

    def __init__(self, trial: Path, *path: str | int) -> None:
        """`path` names the shards that are appended, e.g. ("generate", 3) for a round of a phase: generate.3.0,
        generate.3.1 and so on; without one nothing can be appended.
        """
        self._folder, self._appended = trial / "store", 0
        self._prefix = ".".join(urllib.parse.quote(str(part), safe="") for part in path)

    def append(self, record: object, count: int) -> Shard:
        if not self._prefix:
            raise GenfedError("only `init` and the `update` of a phase may append to the store: it would be lost")
        name = f"{self._prefix}.{self._appended}"
        self._folder.mkdir(parents=True, exist_ok=True)
        save(record, self._file(name))
        self._appended += 1
        return Shard(name, count, digest(pack(record)))

    def read(self, kind: type[R], shard: Shard) -> R:
        """The record, its tensors mapped from the file."""
        file = self._file(shard.name)
        try:
            record = load(kind, file)
        except RecordError as error:
            raise self._lost(str(error)) from None
        if digest(pack(record)) != shard.checksum:
            raise self._lost(f"{file} is damaged (it is not the shard that the checkpoint names)")
        return record

    def retain(self, state: object) -> None:
        """Deletes every shard that `state` does not hold: of a round that was interrupted, or given up.

        Raises:
            RecordError: one that it holds is missing.
        """
        held = {shard.name for shard in find_shards(state)}
        there = {file.name.removesuffix(".safetensors"): file for file in self._folder.glob("*.safetensors")}
        if missing := sorted(held - there.keys()):
            raise self._lost(f"{self._file(missing[0])}: no such file")
        for name in there.keys() - held:
            there[name].unlink()

    def _lost(self, what: str) -> RecordError:
        return RecordError(f"{what}; delete {self._folder.parent} to do this trial again from its start")

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def find_shards(value: Any) -> Iterator[Shard]:
    """Every shard that a record holds, however deep."""
    if isinstance(value, Shard):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from find_shards(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from find_shards(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from find_shards(getattr(value, field.name))
