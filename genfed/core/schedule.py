"""The participating clients of every round."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Phase, flatten_phases
from genfed.core.rng import stream


def round_up_share(share: float, count: int) -> int:
    """Returns ⌈share · count⌉. Rounding errors of a share such as 0.07 do not add one."""
    return math.ceil(round(share * count, 9))


def draw_participants(clients: Sequence[ClientInfo], sample: float, rng: torch.Generator) -> list[ClientInfo]:
    """Draws ⌈sample · n⌉ of the n clients without replacement, and returns them by id.

    Args:
        clients: the n clients.
        sample: the share that takes part. 1.0: all clients.
        rng: draws the clients.

    Raises:
        GenfedError: the number is 0, or larger than n.
    """
    count = round_up_share(sample, len(clients))
    if not 1 <= count <= len(clients):
        raise GenfedError(
            f"client_fraction = {sample} of {len(clients)} clients is {count}; at least one must take part"
        )
    if count == len(clients):
        return sorted(clients, key=lambda c: c.id)
    return sorted((clients[i] for i in torch.randperm(len(clients), generator=rng)[:count]), key=lambda c: c.id)


@dataclass(frozen=True)
class Schedule:
    """The participating clients of every round of a method. The server and every client derive it from the seed."""

    method: Method[Any]
    """The method."""
    clients: tuple[ClientInfo, ...]
    """All clients of the federation."""
    fraction: float
    """Share of the clients that take part in a round, in (0, 1]. In a reference or a pooled method, all clients do."""
    seed: int
    """The trial's seed."""
    selected_by: int | None = None
    """Seed from which the clients of a round are drawn. None: the trial's."""

    def participants(self, phase: str, round_: int) -> list[ClientInfo]:
        """Returns the clients of one round, by id. Rounds are counted per phase name over the whole method."""
        fraction = 1.0 if self.method.reference or self.method.pooled else self.fraction
        seed = self.seed if self.selected_by is None else self.selected_by
        return draw_participants(self.clients, fraction, stream(seed, phase, round_, "sample"))

    def rounds(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields the phase and the clients of every round, in order. A phase that decides its number of rounds only
        when it begins counts as one round.
        """
        done = Counter[str]()
        for phase in flatten_phases(self.method.phases()):
            for _ in range(1 if callable(phase.rounds) else phase.rounds):
                yield phase, self.participants(phase.name, done[phase.name])
                done[phase.name] += 1

    def uploads(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields the `rounds` in which clients upload."""
        return ((phase, clients) for phase, clients in self.rounds() if phase.aggregate)

    def different_uploads(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields the `uploads`. If all clients take part, yields only the first of each phase: the others are equal."""
        seen: set[str] = set()
        for phase, clients in self.uploads():
            if len(clients) < len(self.clients) or phase.name not in seen:
                yield phase, clients
            seen.add(phase.name)

    def open_ended_phases(self) -> list[Phase[Any]]:
        """Returns the phases that decide their number of rounds only when they begin."""
        return [phase for phase in flatten_phases(self.method.phases()) if callable(phase.rounds)]


def list_upload_phases(method: Method[Any]) -> list[Phase[Any]]:
    """Returns the phases in which clients upload, without those of 0 rounds."""
    return [phase for phase in flatten_phases(method.phases()) if phase.aggregate and phase.rounds != 0]
