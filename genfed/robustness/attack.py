"""Attacks that a run is given: some of its clients break the rules, and the run tells what came of it."""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client
from genfed.core.phase import Phase
from genfed.core.record import Packed
from genfed.core.rng import stream
from genfed.core.schedule import round_up_share
from genfed.core.settings import settings
from genfed.core.task import Data, Task


@settings
class Attack:
    """What bad clients do. They do their part of the protocol, so that nothing but the content of a reply is false."""

    about: ClassVar[str]
    """What a bad client does, after its number: "turns its updates round"."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the clients that attack, rounded up, drawn for each seed; the same ones in every round."""
    phases: tuple[str, ...] = ()
    """Names of the phases that are attacked; left out: all in which clients upload something."""

    def attackers(self, clients: Sequence[ClientInfo], seed: int) -> tuple[int, ...]:
        """The ids of those that attack, sorted."""
        count = round_up_share(self.share, len(clients))
        ids = sorted(info.id for info in clients)
        chosen = torch.randperm(len(ids), generator=stream(seed, "attack"))[:count].tolist()
        return tuple(sorted(ids[place] for place in chosen))

    def targets_phase(self, phase: "Phase[object]") -> bool:
        """Returns whether the phase is attacked."""
        return bool(phase.aggregate) and not phase.scores and (not self.phases or phase.name in self.phases)

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[object]]") -> str | None:
        """Why it cannot be made on the phases (those that it meets); None: it can."""
        return None

    def data(self, client: Client) -> Data:
        """The examples that a bad client works with."""
        return client.data

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        """What a bad client uploads in the place of its own."""
        return upload

    def triggered(self, held_out: Data, task: Task) -> tuple[Data, int] | None:
        """Held-out examples with a trigger, and the class that it is meant to give; None: there is no trigger."""
        return None


def find_paired_fields(phase: "Phase[object]") -> set[str]:
    """The upload fields of which a client is sent one of the same name: what it does to them is an update."""
    wire = phase.wire_types
    sent, uploaded = (set(getattr(kind, "__dataclass_fields__", {})) for kind in (wire.sent, wire.uploaded))
    return sent & uploaded


def replace_update(
    sent: Packed, upload: Packed, change: Callable[[Tensor, Tensor], Tensor], zero: bool = True
) -> Packed:
    """The upload with s + change(s, u − s), in double precision, in the place of every floating-point tensor u that was
    trained from s. Where nothing like it was sent, s is 0, or without `zero` u stays. A tensor that was nowhere below 0
    is not so afterwards: it may be a variance.
    """
    before = {_rest(path): tensor for path, tensor in sent.tensors.items()}

    def replaced(path: str, u: Tensor) -> Tensor:
        s = before.get(_rest(path))
        if s is None or s.shape != u.shape or s.dtype != u.dtype:
            if not zero:
                return u
            s = torch.zeros_like(u)
        new = s.double() + change(s.double(), u.double() - s.double())
        positive = bool((s >= 0).all()) and bool((u >= 0).all()) and bool(s.any())
        return (new.clamp_min(0) if positive else new).to(u.dtype)

    changed = {p: replaced(p, u) if u.is_floating_point() else u for p, u in upload.tensors.items()}
    return Packed(changed, upload.skeleton)


def _rest(path: str) -> str:
    """A path such as "Model.classifier['w']" without the record's name."""
    return path.partition(".")[2]
