"""The work of clients: in this process, in a worker process, or on a machine of their own."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from genfed.core.behavior import Behavior
from genfed.core.client import Client, ClientStorage, Slot
from genfed.core.errors import GenfedError, StorageError
from genfed.core.federated_data import FederatedData
from genfed.core.phase import Phase, Reply
from genfed.core.privacy import BudgetKeeper, NoTraining, PrivateTrainer
from genfed.core.record import Packed, pack, unpack
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.engines.client_storage import DiskStorage, StoredReply, lock_folder, to_stored
from genfed.engines.flops import FlopCounter
from genfed.engines.messages import PackedReply, RoundId, check_reply

if TYPE_CHECKING:
    from torch import nn

NewNetwork = Callable[[str, Task, torch.Generator], "nn.Module"]
"""(architecture, task, rng) → a classifier initialized from rng."""


@dataclass(frozen=True)
class ClientRuntime:
    """The means with which clients compute."""

    new_network: NewNetwork
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    counts_flops: bool = False
    """Whether the first round of each phase that does not score adds two metrics: "flops", and "parameters", the count
    of floating-point numbers that the client was sent or of the largest network that it made, whichever is larger. Not
    in the exchanges of secure aggregation."""


class ClientRunner:
    """Does the work of some clients of one trial."""

    def __init__(
        self,
        phases: Mapping[str, Phase[Any]],
        federation: FederatedData,
        folder: Path,
        seed: int,
        runtime: ClientRuntime,
        behaviors: Mapping[int, Behavior] | None = None,
        budgets: BudgetKeeper | None = None,
        *,
        durable: bool = True,
    ) -> None:
        """Takes over the clients of a trial.

        Args:
            phases: all phases in which clients may work, by name.
            federation: the clients and their data.
            folder: the folder in which each client has one for its storage.
            seed: the trial's seed.
            runtime: the means with which clients compute.
            behaviors: the behavior of each client that is not honest, by id. None: all are honest.
            budgets: charges each round to the client's privacy budget. Replies are then stored, as are those to an
                exchange: a repeated request gets the same reply, not one with new noise or masks. None: no budgets.
            durable: whether what clients store is on the disk before a reply leaves.
        """
        self._phases, self._federation, self._folder, self._seed = phases, federation, folder, seed
        self._runtime, self._behaviors, self._budgets = runtime, behaviors or {}, budgets
        self._durable = durable
        self._device = torch.device(runtime.device)
        self._place = {info.id: i for i, info in enumerate(federation.clients)}
        self._train = federation.train if self._device.type == "cpu" else federation.train.to(self._device)

    def work(self, step: RoundId, client: int, sent: Packed) -> PackedReply:
        """Has one client do its part of a round. A repeated request gets the same reply.

        Raises:
            GenfedError: clients do not work in such a phase, there is no such client, or the reply would spoil a mean.
            StorageError: what the client has stored is lost, or it cannot store more.
        """
        phase = self._find_phase(step.phase)
        if client not in self._place:
            raise GenfedError(f"there is no client {client}")
        folder = self._folder / str(client)
        repeats = phase.follows is not None or (self._budgets is not None and not phase.scores)
        if phase.scores or not (repeats or phase.slots):
            storage = self._open_storage(step, client, None if phase.scores else ())
            return self._reply(step, phase, client, sent, storage)
        with lock_folder(folder):
            storage = self._open_storage(step, client, phase.slots)
            if (stored := self._recall(step, phase, storage.load_reply())) is not None:
                storage.remove_unnamed()  # the round may have been killed after its index was written
                return stored
            try:
                reply = self._reply(step, phase, client, sent, storage)
                self._store(step, client, storage, reply, stores_reply=repeats)
            except KeyboardInterrupt:  # as a kill, it reveals nothing
                raise
            except BaseException:  # a failure is reported, which may reveal something
                storage.settle(self._count_charges(client))
                raise
            return reply

    def _recall(self, step: RoundId, phase: Phase[Any], last: StoredReply | None) -> PackedReply | None:
        """Returns the last stored reply if it is to this round. None: the round is to be done.

        Raises:
            GenfedError: under masks, a request that is not in the order of rounds. It could make the client reply once
                more with secrets of which something is known, and reveal what masks hide.
        """
        if last is not None and (last.phase, last.number) == (step.phase, step.number):
            return PackedReply(Packed(last.tensors, last.skeleton), last.weight)
        if phase.follows:
            if last is None or (last.phase, last.number) != (phase.follows, step.number - 1):
                said = "it has replied to none" if last is None else f"its last reply was to {last.phase}"
                raise GenfedError(f"it answers {step.phase} only after {phase.follows} of the same round; {said}")
        elif phase.follows is None and last is not None and step.number <= last.number:
            answered = self._phases.get(last.phase)
            if answered is not None and answered.follows is not None:
                raise GenfedError(f"it has replied to {last.phase} since, and does no earlier {step.phase}")
        return None

    def _open_storage(self, step: RoundId, client: int, slots: tuple[Slot[Any], ...] | None) -> DiskStorage:
        return DiskStorage(self._folder / str(client), step.number, slots, step.since, durable=self._durable)

    def _find_phase(self, name: str) -> Phase[Any]:
        phase = self._phases.get(name)
        if phase is None or phase.work is None:
            known = sorted(name for name, known in self._phases.items() if known.work)
            raise GenfedError(f"there is no phase {name!r} in which clients work; there are: {', '.join(known)}")
        return phase

    def _reply(self, step: RoundId, phase: Phase[Any], client: int, sent: Packed, storage: DiskStorage) -> PackedReply:
        started = time.perf_counter()
        trainer = self._admit(step, phase, client, storage.settled)
        worker = self.make_client(replace(step, phase=phase.draws_as or step.phase), client, storage)
        behavior = self._behaviors.get(client)
        if behavior and not behavior.targets_phase(phase):
            behavior = None
        data = behavior.data(worker) if behavior else worker.data
        reply, metrics = self._work(step, phase, replace(worker, data=data, privacy=trainer), sent)
        if trainer is not None:
            trainer.finish(reply.upload, sent.tensors.values())
            if not phase.scores:
                metrics = {}  # losses and the like depend on the examples, and have no noise
                if reply.weight not in (1, worker.info.examples):
                    raise GenfedError("under DP-SGD the weight of a reply is 1, or the client's number of examples")
        upload = pack(reply.upload)
        if behavior:
            upload = behavior.upload(sent, upload, stream(self._seed, "attack", step.phase, step.round, client))
        packed = PackedReply(upload, float(reply.weight), metrics, time.perf_counter() - started)
        check_reply(packed)  # before storing: an optimizer state that diverged would spoil every later round
        return packed

    def _admit(self, step: RoundId, phase: Phase[Any], client: int, settled: int) -> PrivateTrainer | None:
        """Charges the round to the client's budget, and returns what it may train with. None: there are no budgets."""
        if self._budgets is None:
            return None
        if phase.scores:
            return NoTraining()
        return self._budgets.admit(client, self._folder / str(client), step.phase, step.round, step.number, settled)

    def _count_charges(self, client: int) -> int:
        return 0 if self._budgets is None else self._budgets.count(self._folder / str(client))

    def _work(
        self, step: RoundId, phase: Phase[Any], client: Client, sent: Packed
    ) -> tuple[Reply[Any], dict[str, float]]:
        """Does the work itself; returns the reply, and its metrics as plain numbers with those of the arithmetic."""
        sizes = [sum(t.numel() for t in sent.tensors.values() if t.is_floating_point())]

        def new_network(name: str, rng: torch.Generator, task: Task = client.task) -> "nn.Module":
            network: nn.Module = client.new_network_of(name, rng, task)
            sizes.append(sum(p.numel() for p in network.parameters()))
            return network

        # Under masks a count is one more upload without a mask: the arithmetic may depend on the examples.
        counts = self._runtime.counts_flops and step.round == 0 and not phase.scores and phase.follows is None
        assert phase.work is not None
        with FlopCounter() if counts else contextlib.nullcontext() as flops:
            reply = phase.work(replace(client, new_network_of=new_network), unpack(phase.wire_types.sent, sent))
        metrics = {name: float(value) for name, value in reply.metrics.items()}
        if flops is not None:
            metrics |= {"flops": float(flops.count), "parameters": float(max(sizes))}
        return reply, metrics

    def _store(
        self, step: RoundId, client: int, storage: DiskStorage, reply: PackedReply, *, stores_reply: bool
    ) -> None:
        try:
            storage.commit(to_stored(step, reply) if stores_reply else None, self._count_charges(client))
        except OSError as error:
            raise StorageError(f"client {client} cannot keep its records: {error}") from None

    def make_scored_client(self, step: RoundId, client: int) -> Client:
        """Returns one client as it is evaluated after `step.number` rounds.

        Raises:
            StorageError: what it has stored is lost.
        """
        return self.make_client(step, client, self._open_storage(step, client, None))

    def make_client(self, step: RoundId, client: int, storage: ClientStorage) -> Client:
        """Returns all that one client's part of a round may touch."""
        task, place = self._federation.task, self._place[client]
        return Client(
            info=self._federation.clients[place],
            task=task,
            data=self._train[slice(*self._federation.ranges[place])],
            storage=storage,
            rng=stream(self._seed, step.phase, step.round, client),
            seed=self._seed,
            device=self._device,
            precision=self._runtime.precision,
            new_network_of=lambda name, rng, task=task: self._runtime.new_network(name, task, rng).to(self._device),
        )


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Lets torch compute with `count` threads inside the block, which fixes the bits of its sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
