"""What a client keeps on its own disk."""

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
UNSETTLED, LOCK = "unsettled", ".lock"
"""In a client's folder: a round was charged, and nothing of it has left; and what one work at a time holds."""
REPLY = "last.reply"
"""The file of the last reply of a client that is protected by noise or masks."""


class DiskStorage:
    """A client's slots as files, one per step that wrote them; the last two survive, so a step that is asked for again
    still reads what was kept before it.
    """

    def __init__(self, folder: Path, number: int, slots: tuple[Slot[Any], ...] | None) -> None:
        """`slots` may be read and written; None: all may be read and none written."""
        self._folder, self._number = folder, number
        self._slots = None if slots is None else {s.name for s in slots}
        self._new: dict[str, object] = {}

    def get(self, slot: Slot[R]) -> R | None:
        """What was put there in an earlier step; None before the first."""
        self._check(slot.name, self._slots is None)
        earlier = [v for v in self._versions(slot.name) if v < self._number]
        return load(slot.kind, self._file(slot.name, max(earlier))) if earlier else None

    def put(self, slot: Slot[R], record: R) -> None:
        """Keeps the record as of this step, once `commit` is called."""
        self._check(slot.name, False)
        self._new[slot.name] = record

    def commit(self, durable: bool = False) -> None:
        """Writes what was put; what later steps kept, which are now to be done again, goes. It survives a kill of the
        process; unless `durable` it is not forced to the disk, so after a power cut a slot may be missing that a
        checkpoint counts on.
        """
        for slot, record in self._new.items():
            self._folder.mkdir(parents=True, exist_ok=True)
            save(record, self._file(slot, self._number), durable=durable)
            versions = self._versions(slot)
            older, later = sorted(v for v in versions if v < self._number), [v for v in versions if v > self._number]
            for void in (*older[:-1], *later):
                self._file(slot, void).unlink(missing_ok=True)

    def _check(self, slot: str, allowed: bool) -> None:
        if not allowed and slot not in (self._slots or ()):
            raise GenfedError(f"slot {slot!r} is not declared by the phase that asks for it")

    def _file(self, slot: str, number: int) -> Path:
        return self._folder / f"{slot}.{number}.safetensors"

    def _versions(self, slot: str) -> list[int]:
        return [int(file.name.split(".")[1]) for file in self._folder.glob(f"{slot}.*.safetensors")]


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Waits until nobody else is inside with the same folder: a letter may come again while the first is worked on."""
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / LOCK):
        yield


@dataclass(frozen=True)
class StoredReply:
    """A reply as a client keeps it, and to which step."""

    phase: str
    number: int
    tensors: dict[str, Tensor]
    skeleton: str
    weight: float
    seconds: float


def store_reply(folder: Path, step: RoundId, answer: PackedReply) -> None:
    """Puts a reply on the disk before it leaves, in place of the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    upload = answer.upload
    reply = StoredReply(step.phase, step.number, dict(upload.tensors), upload.skeleton, answer.weight, answer.seconds)
    save(reply, folder / REPLY)


def load_reply(folder: Path, step: RoundId, exchange: int | None = None) -> PackedReply | None:
    """The reply to this step, if it is the last that was kept; `exchange` is that of its phase.

    Raises:
        GenfedError: it is an exchange, not the first, and the client has answered a later step since: two answers to
            one question could uncover what masks hide.
    """
    if not (folder / REPLY).exists():
        return None
    kept = load(StoredReply, folder / REPLY)
    if (kept.phase, kept.number) != (step.phase, step.number):
        if exchange and kept.number >= step.number:
            raise GenfedError(
                f"it has answered {kept.phase} since, and answers {step.phase} of an earlier step no more"
            )
        return None
    return PackedReply(Packed(kept.tensors, kept.skeleton), kept.weight, {}, kept.seconds)
