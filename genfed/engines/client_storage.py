"""A client's records on its own disk."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from genfed.core.client import Slot
from genfed.core.errors import GenfedError
from genfed.core.files import exclusive_lock
from genfed.core.record import Packed, load, save
from genfed.engines.messages import PackedReply, RoundId

R = TypeVar("R")
UNSETTLED = "unsettled"
"""File in a client's folder that says: a round was charged to its budget, and nothing of the round has left yet."""
LOCK = ".lock"
"""File in a client's folder that is locked while the client works."""
REPLY = "last.reply"
"""File of the last reply of a client that is protected by noise or masks."""


class DiskStorage:
    """A client's slots as files, one per round that wrote them. The last two files are kept, so that a repeated round
    reads the same records again.
    """

    def __init__(self, folder: Path, number: int, slots: tuple[Slot[Any], ...] | None) -> None:
        """Opens a client's records for one round.

        Args:
            folder: the client's folder.
            number: the round, counted over all phases.
            slots: the slots that may be read and written. None: all may be read and none written.
        """
        self._folder, self._number = folder, number
        self._slots = None if slots is None else {s.name for s in slots}
        self._new: dict[str, object] = {}

    def get(self, slot: Slot[R]) -> R | None:
        """Returns the record that an earlier round stored. None: there is none."""
        self._check(slot.name, self._slots is None)
        earlier = [v for v in self._versions(slot.name) if v < self._number]
        return load(slot.kind, self._file(slot.name, max(earlier))) if earlier else None

    def put(self, slot: Slot[R], record: R) -> None:
        """Stores a record in this round, once `commit` is called."""
        self._check(slot.name, False)
        self._new[slot.name] = record

    def commit(self, durable: bool = False) -> None:
        """Writes the records that were put, and deletes those of later rounds, which have to be repeated now.

        The records survive a kill of the process. Unless `durable` they are not forced to the disk, so that a power cut
        may lose a record that a checkpoint needs.
        """
        for slot, record in self._new.items():
            self._folder.mkdir(parents=True, exist_ok=True)
            save(record, self._file(slot, self._number), durable=durable)
            versions = self._versions(slot)
            older, later = sorted(v for v in versions if v < self._number), [v for v in versions if v > self._number]
            for obsolete in (*older[:-1], *later):
                self._file(slot, obsolete).unlink(missing_ok=True)

    def _check(self, slot: str, allowed: bool) -> None:
        if not allowed and slot not in (self._slots or ()):
            raise GenfedError(f"slot {slot!r} is not declared by the phase that uses it")

    def _file(self, slot: str, number: int) -> Path:
        return self._folder / f"{slot}.{number}.safetensors"

    def _versions(self, slot: str) -> list[int]:
        return [int(file.name.split(".")[1]) for file in self._folder.glob(f"{slot}.*.safetensors")]


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lets one block at a time work in a folder: a request may come again while the client works on the first one."""
    folder.mkdir(parents=True, exist_ok=True)
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
    seconds: float


def store_reply(folder: Path, step: RoundId, reply: PackedReply) -> None:
    """Writes a reply to the disk before it leaves, in place of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    upload = reply.upload
    stored = StoredReply(step.phase, step.number, dict(upload.tensors), upload.skeleton, reply.weight, reply.seconds)
    save(stored, folder / REPLY)


def load_reply(folder: Path, step: RoundId, exchange: int | None = None) -> PackedReply | None:
    """Returns the stored reply to a round. None: the last reply was to another one.

    Args:
        folder: the client's folder.
        step: the round.
        exchange: `Phase.exchange` of its phase.

    Raises:
        GenfedError: it is an exchange other than the first, and the client has replied to a later round since. Two
            different replies could reveal what masks hide.
    """
    if not (folder / REPLY).exists():
        return None
    stored = load(StoredReply, folder / REPLY)
    if (stored.phase, stored.number) != (step.phase, step.number):
        if exchange and stored.number >= step.number:
            raise GenfedError(f"it has replied to {stored.phase} since, and replies to no earlier {step.phase}")
        return None
    return PackedReply(Packed(stored.tensors, stored.skeleton), stored.weight, {}, stored.seconds)
