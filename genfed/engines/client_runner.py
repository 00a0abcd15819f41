"""Where a client's work is done: in this process, in a worker, or on a machine of its own."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from genfed.core.client import Client, ClientStorage
from genfed.core.errors import GenfedError, StorageError
from genfed.core.federated_data import FederatedData
from genfed.core.phase import Phase
from genfed.core.privacy import BudgetKeeper, allow_no_training
from genfed.core.record import Packed, pack, unpack
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.engines.client_storage import UNSETTLED, DiskStorage, load_reply, lock_folder, store_reply
from genfed.engines.flops import FlopCounter
from genfed.engines.messages import PackedReply, RoundId, check_reply
from genfed.robustness.attack import Attack

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float32", "bfloat16"]
NewNetwork = Callable[[str, Task, torch.Generator], "nn.Module"]
"""(architecture, task, rng) → a classifier initialised from rng."""


class ClientRunner:
    """Does the work of some clients of one trial."""

    def __init__(
        self,
        phases: Mapping[str, Phase[Any]],
        shards: FederatedData,
        kept: Path,
        seed: int,
        new_network: NewNetwork,
        device: str = "cpu",
        precision: Precision = "float32",
        counts_flops: bool = False,
        attack: Attack | None = None,
        guard: BudgetKeeper | None = None,
    ) -> None:
        """`kept` is the folder of what clients keep. A phase that scores may read every slot. `counts_flops`: in
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

    def work(self, step: RoundId, client: int, sent: Packed) -> PackedReply:
        """Has one client do its part of a step. Doing it again gives the same answer.

        Raises:
            GenfedError: clients do not work in such a phase, or the reply would spoil a mean.
        """
        phase = self._phases.get(step.phase)
        if phase is None or phase.work is None:
            asked = sorted(name for name, known in self._phases.items() if known.work)
            raise GenfedError(f"there is no phase {step.phase!r} in which clients work; there are: {', '.join(asked)}")
        if phase.exchange is None and (self._guard is None or phase.scores):
            return self._worked(step, phase, client, sent, remembers=False)
        folder = self._kept / str(client)
        with lock_folder(folder):
            if (before := load_reply(folder, step, phase.exchange)) is not None:
                return before
            try:
                answer = self._worked(step, phase, client, sent, remembers=True)
            except (Exception, SystemExit):  # that it failed is told, which may tell of examples; a kill tells nothing
                (folder / UNSETTLED).unlink(missing_ok=True)
                raise
            (folder / UNSETTLED).unlink(missing_ok=True)
            return answer

    def _worked(self, step: RoundId, phase: Phase[Any], client: int, sent: Packed, *, remembers: bool) -> PackedReply:
        started = time.perf_counter()
        folder, private = self._kept / str(client), None
        kept = DiskStorage(folder, step.number, None if phase.scores else phase.slots)
        if self._guard is not None:
            scores = phase.scores
            private = (
                allow_no_training()
                if scores
                else self._guard.admit(client, folder, step.phase, step.round, step.number)
            )
        about = self.client(replace(step, phase=phase.draws_as or step.phase), client, kept)
        bad = self._attack if client in self._attackers and not phase.scores else None
        bad = bad if bad and bad.targets_phase(phase) else None
        if bad:
            about = replace(about, data=bad.data(about))
        about = replace(about, privacy=private)
        sizes = [sum(t.numel() for t in sent.tensors.values() if t.is_floating_point())]

        def new_network(name: str, rng: torch.Generator) -> "nn.Module":
            network = about.new_network_of(name, rng)
            sizes.append(sum(p.numel() for p in network.parameters()))
            return network

        counts = self._counts_flops and step.round == 0 and not phase.scores
        assert phase.work is not None
        with FlopCounter() if counts else contextlib.nullcontext() as flops:
            reply = phase.work(replace(about, new_network_of=new_network), unpack(phase.wire_types.sent, sent))
        # Plain numbers, whatever the method took them from: an answer may have to travel.
        metrics = {name: float(value) for name, value in reply.metrics.items()}
        if flops is not None:
            metrics |= {"flops": float(flops.count), "parameters": float(max(sizes))}
        if private is not None:
            private.finish()
            if not phase.scores:
                metrics = {}  # losses and the like depend on the examples, and no noise was added to them
        upload = pack(reply.upload)
        if bad:
            upload = bad.upload(sent, upload, stream(self._seed, "attack", step.phase, step.round, client))
        answer = PackedReply(upload, float(reply.weight), metrics, time.perf_counter() - started)
        check_reply(answer)
        try:
            kept.commit(
                durable=remembers
            )  # only with a reply that can be used: moments that diverged would spoil every later round
            if remembers:
                store_reply(folder, step, answer)  # last: once it is there, nothing is trained or charged again
        except OSError as error:
            raise StorageError(f"client {client} cannot keep its records: {error}") from None
        return answer

    def evaluated(self, step: RoundId, client: int) -> Client:
        """One client as it is when it is scored after `step.number` rounds."""
        return self.client(step, client, DiskStorage(self._kept / str(client), step.number, None))

    def client(self, step: RoundId, client: int, kept: ClientStorage) -> Client:
        """All that one client's part of a step may touch."""
        task, place = self._shards.task, self._place[client]
        return Client(
            info=self._shards.clients[place],
            task=task,
            data=self._train[slice(*self._shards.ranges[place])],
            storage=kept,
            rng=stream(self._seed, step.phase, step.round, client),
            seed=self._seed,
            device=self._device,
            precision=self._precision,
            new_network_of=lambda name, rng: self._new_network(name, task, rng).to(self._device),
        )


@contextlib.contextmanager
def use_threads(count: int) -> Any:
    """Inside the block torch computes with `count` threads, which fixes the bits of its sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
