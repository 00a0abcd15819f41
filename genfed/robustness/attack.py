"""Simulated attacks: some clients of a run are malicious, and the report says how the methods fare."""

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
    """An attack by some of a run's clients. They follow the protocol: only the content of their replies is false.

    An attack is the `core.behavior.Behavior` of each attacker.
    """

    about: ClassVar[str]
    """Words that complete "3 of 10 clients …", for the report."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of clients that attack, rounded up, drawn once per seed."""
    phases: tuple[str, ...] = ()
    """Names of the attacked phases. Unset: all in which clients upload."""

    def attackers(self, clients: Sequence[ClientInfo], seed: int) -> tuple[int, ...]:
        """Returns the ids of the clients that attack, sorted."""
        count = round_up_share(self.share, len(clients))
        ids = sorted(info.id for info in clients)
        selected = torch.randperm(len(ids), generator=stream(seed, "attack"))[:count].tolist()
        return tuple(sorted(ids[place] for place in selected))

    def targets_phase(self, phase: "Phase[object]") -> bool:
        """Returns whether the phase is attacked."""
        return bool(phase.aggregate) and not phase.scores and (not self.phases or phase.name in self.phases)

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[object]]") -> str | None:
        """Returns why the attack cannot be made on the phases that it targets. None: it can."""
        return None

    def data(self, client: Client) -> Data:
        """Returns the examples that an attacker works with."""
        return client.data

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        """Returns what an attacker uploads instead of the result of its work."""
        return upload

    def triggered(self, held_out: Data, task: Task) -> tuple[Data, int] | None:
        """Returns held-out examples with a trigger, and the class that it means. None: there is no trigger."""
        return None


def find_paired_fields(phase: "Phase[object]") -> set[str]:
    """Returns the upload fields that a client is also sent: their change is an update."""
    wire = phase.wire_types
    sent, uploaded = (set(getattr(kind, "__dataclass_fields__", {})) for kind in (wire.sent, wire.uploaded))
    return sent & uploaded


def find_exact_sum(phases: "Sequence[Phase[object]]") -> str | None:
    """Returns why an attack on updates does nothing in one of these phases: its clients add up whole numbers, which
    `replace_update` leaves as they are. None: it acts in all of them.
    """
    exact = next((phase.name for phase in phases if phase.expected is not None), None)
    if exact is None:
        return None
    return f"in phase {exact} clients add up whole numbers, not updates; use label_flip, or set attack.phases to others"


def replace_update(
    sent: Packed, upload: Packed, change: Callable[[Tensor, Tensor], Tensor], zero: bool = True
) -> Packed:
    """Returns the upload with every floating-point tensor u, trained from s, replaced by s + change(s, u − s).

    It is computed in double precision. A tensor of variances stays at 0 or above: one that was so before, and not 0.
    Of a product of two factors (`FactoredWeights`) the left one alone is replaced, and with it the product.

    Args:
        sent: the record that the client was sent.
        upload: the record that it would upload.
        change: gives the new update, from s and the update.
        zero: whether s is 0 for a tensor that was not sent. False: such a tensor is unchanged.
    """
    sent_by_path = {_strip_record(path): tensor for path, tensor in sent.tensors.items()}

    def replace_tensor(path: str, u: Tensor) -> Tensor:
        s = sent_by_path.get(_strip_record(path))
        if s is None or s.shape != u.shape or s.dtype != u.dtype:
            if not zero:
                return u
            s = torch.zeros_like(u)
        new = s.double() + change(s.double(), u.double() - s.double())
        positive = bool((s >= 0).all()) and bool((u >= 0).all()) and bool(s.any())
        return (new.clamp_min(0) if positive else new).to(u.dtype)

    kept = {p for p, u in upload.tensors.items() if not u.is_floating_point() or _is_right_factor(p, upload)}
    changed = {p: u if p in kept else replace_tensor(p, u) for p, u in upload.tensors.items()}
    return Packed(changed, upload.skeleton)


def _is_right_factor(path: str, upload: Packed) -> bool:
    return ".right[" in path and path.replace(".right[", ".left[") in upload.tensors


def _strip_record(path: str) -> str:
    """Returns a path such as "Model.classifier['w']" without the record's name."""
    return path.partition(".")[2]
