"""A client's records on its own disk.

A client's folder has a file for each record, and index.safetensors, which names them with their checksums. The index is
written last in a round: a round that it does not know has not been, and a file that it names must be there.

At a site, with a privacy budget and under masks storage is *durable*: all is on the disk before the reply leaves, since
a reply that has left must not be given anew. Otherwise what a client stores may still be in memory when its reply
leaves. The process that runs the trial then waits for the disk once a round, before the checkpoint that counts on it. A
power cut can damage only what was stored in the round that has to be repeated, its index too; so the index before it is
kept, which names what the checkpoint counts on.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from genfed.core.client import Slot
from genfed.core.errors import GenfedError, RecordError, StorageError
from genfed.core.files import exclusive_lock, make_folder, sync
from genfed.core.record import load, save
from genfed.engines.messages import PackedReply, RoundId

R = TypeVar("R")
INDEX = "index.safetensors"
"""File in a client's folder that says what the client has stored (`ClientIndex`)."""
BEFORE = "index.before.safetensors"
"""File in a client's folder with its index as it was before the last round, where storage is not durable."""
LOCK = ".lock"
"""File in a client's folder that is locked while the client works."""
LEDGER = "ledger.safetensors"
"""File in a client's folder with the charges to its privacy budget."""


@dataclass(frozen=True)
class StoredFile:
    """A file that a client has stored."""

    number: int
    """The round that wrote it, counted over all phases."""
    checksum: str


@dataclass(frozen=True)
class ClientIndex:
    """What a client has stored."""

    last: int = -1
    """The last round that stored something, counted over all phases. −1: there was none."""
    slots: dict[str, tuple[StoredFile, ...]] = field(default_factory=dict)
    """The last two files of each slot, the older one first."""
    first: dict[str, int] = field(default_factory=dict)
    """The first round that wrote each slot."""
    reply: StoredFile | None = None
    """The last reply, of a client that is protected by noise or masks. None: no reply is stored."""
    charges: int = 0
    """Number of charges to its privacy budget of which something may have left the client. A charge after these is for
    a round of which nothing has left."""


def read_index(folder: Path, since: int | None = None) -> ClientIndex:
    """Returns what the client with this folder has stored, with durable storage.

    Args:
        folder: the client's folder.
        since: the last round of which the server knows that the client stored something. None: it knows of none.

    Raises:
        StorageError: the index is damaged, or lacks that round.
    """
    return _find_index(folder, since, durable=True)[0]


def _find_index(folder: Path, since: int | None, *, durable: bool) -> tuple[ClientIndex, bool]:
    """Returns what the client has stored, and whether the newest index says so. A damaged index that is not durable is
    of a round that has to be repeated, unless the server knows of that round.
    """
    index, newest, damage = ClientIndex(), False, ""
    for name in (INDEX,) if durable else (INDEX, BEFORE):
        try:
            if (folder / name).exists():
                index, newest = load(ClientIndex, folder / name), name == INDEX
                break
        except RecordError as error:
            damage = damage or str(error)
    if damage and durable:
        raise explain_loss(folder, damage)
    if since is not None and index.last < since:
        lost = "is missing" if index.last < 0 else f"ends with round {index.last}"
        short = f"{folder / INDEX} {lost}, and the run counts on what the client stored in round {since}"
        raise explain_loss(folder, damage or short)
    return index, newest


def explain_loss(folder: Path, what: str) -> StorageError:
    """Returns the error that says that files of a client are lost, and what to do. `folder`: the client's."""
    trial = folder.parent.parent
    return StorageError(f"{what}; put {folder} back as it was, or delete {trial} to do this trial again from its start")


class DiskStorage:
    """A client's slots as files, one per round that wrote them. The last two files are kept, so that a repeated round
    reads the same records again.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        slots: tuple[Slot[Any], ...] | None,
        since: int | None = None,
        *,
        durable: bool = True,
    ) -> None:
        """Opens a client's records for one round.

        Args:
            folder: the client's folder.
            number: the round, counted over all phases.
            slots: the slots that may be read and written. None: all may be read and none written.
            since: see `read_index`.
            durable: whether all is on the disk when `commit` returns.

        Raises:
            StorageError: see `read_index`.
        """
        self._folder, self._number, self._durable = folder, number, durable
        self._slots = None if slots is None else {s.name for s in slots}
        self._new: dict[str, object] = {}
        self._index, newest = _find_index(folder, since, durable=durable)
        self._keeps_before = newest and not durable and self._index.last < number

    @property
    def settled(self) -> int:
        """See `ClientIndex.charges`."""
        return self._index.charges

    def get(self, slot: Slot[R]) -> R | None:
        """Returns the record that an earlier round stored. None: no earlier round stored any.

        Raises:
            StorageError: the record is missing or damaged.
        """
        self._check(slot.name, self._slots is None)
        if earlier := self._earlier(slot.name):
            return self._load(slot.kind, self._file(slot.name, earlier[-1].number), earlier[-1])
        if self._index.first.get(slot.name, self._number) < self._number:
            raise explain_loss(self._folder, f"{slot.name} as it was before round {self._number} is stored no longer")
        return None

    def put(self, slot: Slot[R], record: R) -> None:
        """Stores a record in this round, once `commit` is called."""
        self._check(slot.name, False)
        self._new[slot.name] = record

    def commit(self, reply: "StoredReply | None" = None, charges: int = 0) -> None:
        """Writes the records that were put, and deletes those of later rounds, which have to be repeated now. A process
        that is killed before this returns has stored nothing. If storage is durable, all is on the disk then.

        Args:
            reply: the reply of this round, to store as well. None: none is stored.
            charges: see `ClientIndex.charges`.
        """
        make_folder(self._folder)
        before, first = self._index.slots, dict(self._index.first)
        slots = {slot: tuple(old for old in files if old.number <= self._number) for slot, files in before.items()}
        slots |= {slot: self._earlier(slot)[-1:] for slot in self._new}
        if any(old.number == self._number for slot in self._new for old in before.get(slot, ())):
            self._write_index(replace(self._index, last=self._number - 1, slots=slots))  # its files are written again
        for slot, record in self._new.items():
            slots[slot] = (*slots[slot], self._save(record, self._file(slot, self._number)))
            first[slot] = min(first.get(slot, self._number), self._number)
        answered = self._index.reply
        if reply is not None:
            answered = self._save(reply, self._reply_file(self._number))
            if self._durable:  # else the index could outlast the reply, which must never be given anew
                sync(self._folder)
        self._write_index(ClientIndex(self._number, slots, first, answered, charges))

    def settle(self, charges: int) -> None:
        """Notes that something may have left the client of all these charges, since a failure is reported."""
        if charges != self._index.charges:
            self._write_index(replace(self._index, charges=charges))

    def load_reply(self) -> "StoredReply | None":
        """Returns the last reply that was stored. None: there is none.

        Raises:
            StorageError: the reply is missing or damaged.
        """
        if (last := self._index.reply) is None:
            return None
        return self._load(StoredReply, self._reply_file(last.number), last)

    def remove_unnamed(self) -> None:
        """Deletes what the index does not name: older files, and those of rounds that were killed."""
        index = self._index
        named = {self._file(slot, each.number).name for slot, files in index.slots.items() for each in files}
        if index.reply is not None:
            named.add(self._reply_file(index.reply.number).name)
        for file in self._folder.iterdir():
            if file.name not in named | {INDEX, BEFORE, LOCK, LEDGER}:
                file.unlink(missing_ok=True)

    def _earlier(self, slot: str) -> tuple[StoredFile, ...]:
        """Returns the files that earlier rounds wrote for a slot."""
        return tuple(stored for stored in self._index.slots.get(slot, ()) if stored.number < self._number)

    def _check(self, slot: str, allowed: bool) -> None:
        if not allowed and slot not in (self._slots or ()):
            raise GenfedError(f"slot {slot!r} is not declared by the phase that uses it")

    def _save(self, record: object, file: Path) -> StoredFile:
        checksum = save(record, file, durable=False)
        if self._durable:
            sync(file)
        return StoredFile(self._number, checksum)

    def _load(self, kind: type[R], file: Path, stored: StoredFile) -> R:
        try:
            return load(kind, file, checksum=stored.checksum)
        except RecordError as error:
            raise explain_loss(self._folder, str(error)) from None

    def _write_index(self, index: ClientIndex) -> None:
        make_folder(self._folder)
        if self._keeps_before:
            (self._folder / INDEX).replace(self._folder / BEFORE)
            self._keeps_before = False
        save(index, self._folder / INDEX, durable=self._durable)
        self._index = index
        self.remove_unnamed()

    def _file(self, slot: str, number: int) -> Path:
        return self._folder / f"{slot}.{number}.safetensors"

    def _reply_file(self, number: int) -> Path:
        return self._folder / f"reply.{number}"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lets one block at a time work in a folder: a request may come again while the client works on the first one."""
    make_folder(folder)
    with exclusive_lock(folder / LOCK):
        yield


@dataclass(frozen=True)
class StoredReply:
    """A reply as a client stores it."""

    phase: str
    """The phase of the round that it replies to."""
    number: int
    """Number of this round, counted over all phases."""
    tensors: dict[str, Tensor]
    skeleton: str
    weight: float


def to_stored(step: RoundId, reply: PackedReply) -> StoredReply:
    """Returns a reply to a round as it is stored."""
    upload = reply.upload
    return StoredReply(step.phase, step.number, dict(upload.tensors), upload.skeleton, reply.weight)
