"""Where a client's work is done: in this process, in a worker, or on a machine of its own."""

import contextlib
import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.attack import Attack
from genfed.core.errors import GenfedError, StorageError
from genfed.core.method import Client, Data, Kept, Phase, Slot, Task
from genfed.core.privacy import Guard, nothing_allowed
from genfed.core.record import Packed, load, pack, save, unpack
from genfed.core.rng import stream
from genfed.engines.flops import Flops

if TYPE_CHECKING:
    from torch import nn

R = TypeVar("R")
UNSETTLED, LOCK = "unsettled", ".lock"
"""In a client's folder: a round was charged, and nothing of it has left; and what one work at a time holds."""
REPLY = "last.reply"
"""The file of the last reply of a client that is protected by noise or masks."""
Precision = Literal["float32", "bfloat16"]
NewNetwork = Callable[[str, Task, torch.Generator], "nn.Module"]
"""(architecture, task, rng) → a classifier initialised from rng."""


@dataclass(frozen=True)
class Own:
    """What a client of the federation has, so that a classifier is scored on the like."""

    client: int
    range: tuple[int, int]
    """Its rows among the training examples of the client that scores: all of them, unless that one is a pool."""
    values: tuple[str, ...] = ()
    """Its values of the natural column by which the clients were made; empty: there is none."""
    rows: Tensor | None = None
    """The held-out rows that have one of these values, int64; None: all rows."""


@dataclass(frozen=True)
class Shards:
    """The clients and their data. Each client's examples are one range of rows of `train`."""

    task: Task
    clients: tuple[ClientInfo, ...]
    ranges: tuple[tuple[int, int], ...]
    train: Data
    held_out: Data
    """The common part on which classifiers are scored."""
    own: dict[int, tuple[Own, ...]] = field(default_factory=dict)
    """By client: those for whom its classifier is scored on data like their own. Itself, or those in its pool."""


@dataclass(frozen=True)
class Step:
    """One round of one phase."""

    phase: str
    round: int
    """Counted per phase name over the whole method."""
    number: int
    """Counted over all phases. A step reads what clients kept in earlier ones."""


@dataclass(frozen=True)
class Answer:
    """A client's reply, packed, and the seconds that its work took."""

    upload: Packed
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class KeptOnDisk:
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


class Site:
    """Does the work of some clients of one trial."""

    def __init__(
        self,
        phases: Mapping[str, Phase[Any]],
        shards: Shards,
        kept: Path,
        seed: int,
        new_network: NewNetwork,
        device: str = "cpu",
        precision: Precision = "float32",
        counts_flops: bool = False,
        attack: Attack | None = None,
        guard: Guard | None = None,
    ) -> None:
        """`kept` is the folder of what clients keep. A phase named "evaluate" may read every slot. `counts_flops`: in
        the first round of each other phase a reply's metrics get "flops", and "parameters": the numbers in what the
        client was sent, or in the largest network that it made, whichever is more. `attack`: what some clients do in
        the place of their part. With a `guard` each round is charged to the client's budget. Its reply is then kept, as
        is one to an exchange: asked again, the client gives the same, not one with other noise or masks.
        """
        self._guard = guard
        self._phases, self._shards, self._kept, self._seed = phases, shards, kept, seed
        self._new_network, self._precision, self._counts_flops = new_network, precision, counts_flops
        self._device = torch.device(device)
        self._attack = attack
        self._attackers = attack.attackers(shards.clients, seed) if attack else ()
        self._place = {info.id: i for i, info in enumerate(shards.clients)}
        self._train = shards.train if self._device.type == "cpu" else shards.train.to(self._device)

    def work(self, step: Step, client: int, sent: Packed) -> Answer:
        """Has one client do its part of a step. Doing it again gives the same answer.

        Raises:
            GenfedError: clients do not work in such a phase, or the reply would spoil a mean.
        """
        phase = self._phases.get(step.phase)
        if phase is None or phase.work is None:
            asked = sorted(name for name, known in self._phases.items() if known.work)
            raise GenfedError(f"there is no phase {step.phase!r} in which clients work; there are: {', '.join(asked)}")
        if phase.exchange is None and (self._guard is None or step.phase == "evaluate"):
            return self._worked(step, phase, client, sent, remembers=False)
        folder = self._kept / str(client)
        with alone(folder):
            if (before := replied(folder, step, phase.exchange)) is not None:
                return before
            try:
                answer = self._worked(step, phase, client, sent, remembers=True)
            except (Exception, SystemExit):  # that it failed is told, which may tell of examples; a kill tells nothing
                (folder / UNSETTLED).unlink(missing_ok=True)
                raise
            (folder / UNSETTLED).unlink(missing_ok=True)
            return answer

    def _worked(self, step: Step, phase: Phase[Any], client: int, sent: Packed, *, remembers: bool) -> Answer:
        started = time.perf_counter()
        folder, private = self._kept / str(client), None
        kept = KeptOnDisk(folder, step.number, None if step.phase == "evaluate" else phase.slots)
        if self._guard is not None:
            scores = step.phase == "evaluate"
            private = (
                nothing_allowed() if scores else self._guard.admit(client, folder, step.phase, step.round, step.number)
            )
        about = self.client(replace(step, phase=phase.draws_as or step.phase), client, kept)
        bad = self._attack if client in self._attackers and step.phase != "evaluate" else None
        bad = bad if bad and bad.meets(phase) else None
        if bad:
            about = replace(about, data=bad.data(about))
        about = replace(about, privacy=private)
        sizes = [sum(t.numel() for t in sent.tensors.values() if t.is_floating_point())]

        def new_network(name: str, rng: torch.Generator) -> "nn.Module":
            network = about.new_network_of(name, rng)
            sizes.append(sum(p.numel() for p in network.parameters()))
            return network

        counts = self._counts_flops and step.round == 0 and step.phase != "evaluate"
        assert phase.work is not None
        with Flops() if counts else contextlib.nullcontext() as flops:
            reply = phase.work(replace(about, new_network_of=new_network), unpack(phase.kinds[0], sent))
        # Plain numbers, whatever the method took them from: an answer may have to travel.
        metrics = {name: float(value) for name, value in reply.metrics.items()}
        if flops is not None:
            metrics |= {"flops": float(flops.count), "parameters": float(max(sizes))}
        if private is not None:
            private.finish()
            if step.phase != "evaluate":
                metrics = {}  # losses and the like depend on the examples, and no noise was added to them
        upload = pack(reply.upload)
        if bad:
            upload = bad.upload(sent, upload, stream(self._seed, "attack", step.phase, step.round, client))
        answer = Answer(upload, float(reply.weight), metrics, time.perf_counter() - started)
        sound(answer)
        try:
            kept.commit(
                durable=remembers
            )  # only with a reply that can be used: moments that diverged would spoil every later round
            if remembers:
                keep_reply(folder, step, answer)  # last: once it is there, nothing is trained or charged again
        except OSError as error:
            raise StorageError(f"client {client} cannot keep its records: {error}") from None
        return answer

    def evaluated(self, step: Step, client: int) -> Client:
        """One client as it is when it is scored after `step.number` rounds."""
        return self.client(step, client, KeptOnDisk(self._kept / str(client), step.number, None))

    def client(self, step: Step, client: int, kept: Kept) -> Client:
        """All that one client's part of a step may touch."""
        task, place = self._shards.task, self._place[client]
        return Client(
            info=self._shards.clients[place],
            task=task,
            data=self._train[slice(*self._shards.ranges[place])],
            kept=kept,
            rng=stream(self._seed, step.phase, step.round, client),
            seed=self._seed,
            device=self._device,
            precision=self._precision,
            new_network_of=lambda name, rng: self._new_network(name, task, rng).to(self._device),
        )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until nobody else is inside with the same folder: a letter may come again while the first is worked on."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Replied:
    """A reply as a client keeps it, and to which step."""

    phase: str
    number: int
    tensors: dict[str, Tensor]
    skeleton: str
    weight: float
    seconds: float


def keep_reply(folder: Path, step: Step, answer: Answer) -> None:
    """Puts a reply on the disk before it leaves, in place of the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    upload = answer.upload
    reply = Replied(step.phase, step.number, dict(upload.tensors), upload.skeleton, answer.weight, answer.seconds)
    save(reply, folder / REPLY)


def replied(folder: Path, step: Step, exchange: int | None = None) -> Answer | None:
    """The reply to this step, if it is the last that was kept; `exchange` is that of its phase.

    Raises:
        GenfedError: it is an exchange, not the first, and the client has answered a later step since: two answers to
            one question could uncover what masks hide.
    """
    if not (folder / REPLY).exists():
        return None
    kept = load(Replied, folder / REPLY)
    if (kept.phase, kept.number) != (step.phase, step.number):
        if exchange and kept.number >= step.number:
            raise GenfedError(
                f"it has answered {kept.phase} since, and answers {step.phase} of an earlier step no more"
            )
        return None
    return Answer(Packed(kept.tensors, kept.skeleton), kept.weight, {}, kept.seconds)


def sound(answer: Answer) -> None:
    """Refuses a reply whose numbers would spoil a mean.

    Raises:
        GenfedError: a weight that is not above 0, or numbers that are not finite.
    """
    if not (math.isfinite(answer.weight) and answer.weight > 0):
        raise GenfedError(f"its weight is {answer.weight}; a weight is above 0")
    for path, tensor in answer.upload.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GenfedError(f"{path} holds numbers that are not finite")
    for name, value in json.loads(answer.upload.skeleton).items():
        if not _finite(value):
            raise GenfedError(f"{name} holds numbers that are not finite")


def _finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@contextlib.contextmanager
def threads(count: int) -> Any:
    """Inside the block torch computes with `count` threads, which fixes the bits of its sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
