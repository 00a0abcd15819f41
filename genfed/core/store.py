"""A server's store for data too large for a state, which is written again after every round: records in shards. The
state holds only their names and checksums (`Shard`); a shard that the state does not name does not exist.
"""

import dataclasses
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genfed.core.errors import GenfedError, RecordError
from genfed.core.files import make_folder
from genfed.core.record import digest, from_bytes, load, pack, save, to_bytes, unpack

R = TypeVar("R")


@dataclass(frozen=True)
class Shard:
    """The name of one record in a store. A shard stays as long as the state holds this; other shards are deleted.

    >>> from genfed import Shard
    >>> from genfed.core.store import MemoryStore
    >>> from genfed.training.optimizer_state import OptimizerState
    >>> store = MemoryStore()
    >>> shard = store.append(OptimizerState({}), 1)
    >>> shard.name, shard.count
    ('0', 1)
    >>> store.read(OptimizerState, shard)
    OptimizerState(values={})
    """

    name: str
    """Name of the record in the store."""
    count: int
    """Number of items in the record, as given to `append`."""
    checksum: str
    """Digest of the whole record."""


class Store(Protocol):
    """The interface of `Server.store`. Shards are only appended, never changed."""

    def append(self, record: object, count: int) -> Shard:
        """Writes a record with `count` items to the store, on the disk before this returns. The shard stays if the new
        state holds the result; a round that is repeated writes the same shards again.
        """

    def read(self, kind: type[R], shard: Shard) -> R:
        """Reads a record that was appended.

        Raises:
            RecordError: the shard is missing or damaged.
        """


class MemoryStore:
    """A store in memory, for a server without a folder."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    def append(self, record: object, count: int) -> Shard:
        """See `Store`."""
        packed = pack(record)
        shard = Shard(str(len(self._records)), count, digest(packed))
        self._records[shard.name] = to_bytes(packed)
        return shard

    def read(self, kind: type[R], shard: Shard) -> R:
        """See `Store`.

        Raises:
            RecordError: the shard is missing.
        """
        if shard.name not in self._records:
            raise RecordError(f"shard {shard.name} is in no store")
        return unpack(kind, from_bytes(self._records[shard.name]))


class FolderStore:
    """A store of files store/NAME.safetensors in a trial's folder."""

    def __init__(self, trial: Path, *path: str | int) -> None:
        """Opens the store in the folder `trial`. `path` gives the names of new shards, e.g. ("generate", 3) for a round
        of a phase: generate.3.0, generate.3.1 and so on. Empty: nothing can be appended.
        """
        self._folder, self._appended = trial / "store", 0
        self._prefix = ".".join(urllib.parse.quote(str(part), safe="") for part in path)

    def append(self, record: object, count: int) -> Shard:
        """See `Store`.

        Raises:
            GenfedError: the store was opened without a path.
        """
        if not self._prefix:
            raise GenfedError("only `init` and the `update` of a phase may append to the store: it would be lost")
        name = f"{self._prefix}.{self._appended}"
        make_folder(self._folder)
        save(record, self._locate(name))
        self._appended += 1
        return Shard(name, count, digest(pack(record)))

    def read(self, kind: type[R], shard: Shard) -> R:
        """Reads a record; its tensors are mapped from the file.

        Raises:
            RecordError: the shard is missing or damaged.
        """
        file = self._locate(shard.name)
        try:
            record = load(kind, file)
        except RecordError as error:
            raise self._explain_loss(str(error)) from None
        if digest(pack(record)) != shard.checksum:
            raise self._explain_loss(f"{file} is damaged (it is not the shard that the checkpoint names)")
        return record

    def retain(self, state: object) -> None:
        """Deletes every shard that `state` does not hold, left by a round that was interrupted or discarded.

        Raises:
            RecordError: a shard that the state holds is missing.
        """
        held = {shard.name for shard in find_shards(state)}
        files = {file.name.removesuffix(".safetensors"): file for file in self._folder.glob("*.safetensors")}
        if missing := sorted(held - files.keys()):
            raise self._explain_loss(f"{self._locate(missing[0])}: no such file")
        for name in files.keys() - held:
            files[name].unlink()

    def _explain_loss(self, what: str) -> RecordError:
        return RecordError(f"{what}; delete {self._folder.parent} to do this trial again from its start")

    def _locate(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def find_shards(value: Any) -> Iterator[Shard]:
    """Yields every shard in a record, at any depth."""
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
