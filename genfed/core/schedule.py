"""Which clients take part in which round."""

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
    """Returns ⌈share · count⌉; the last digits of a share such as 0.07 do not make it one more."""
    return math.ceil(round(share * count, 9))


def draw_participants(clients: Sequence[ClientInfo], sample: float, rng: torch.Generator) -> list[ClientInfo]:
    """Returns ⌈sample · n⌉ clients, drawn without replacement, by id; 1.0: all of them.

    Raises:
        GenfedError: these are no client, or more than there are.
    """
    count = round_up_share(sample, len(clients))
    if not 1 <= count <= len(clients):
        raise GenfedError(f"sample = {sample} of {len(clients)} clients is {count}; at least one must take part")
    if count == len(clients):
        return sorted(clients, key=lambda c: c.id)
    return sorted((clients[i] for i in torch.randperm(len(clients), generator=rng)[:count]), key=lambda c: c.id)


@dataclass(frozen=True)
class Schedule:
    """Which clients take part in which round of a method; the server and every client derive the same from the seed."""

    method: Method[Any]
    """The method."""
    clients: tuple[ClientInfo, ...]
    """All clients of the federation."""
    fraction: float
    """Share of the clients that take part in a round, in (0, 1]. A pooled method has all in every round."""
    seed: int
    """The trial's seed."""

    def participants(self, phase: str, round_: int) -> list[ClientInfo]:
        """Returns the clients of one round, by id; rounds are counted per phase over the whole method."""
        fraction = 1.0 if self.method.pooled else self.fraction
        return draw_participants(self.clients, fraction, stream(self.seed, phase, round_, "sample"))

    def rounds(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields the phase and the clients of every round, in order. A phase whose rounds are known only when it begins
        is taken to have one.
        """
        done = Counter[str]()
        for phase in flatten_phases(self.method.phases()):
            for _ in range(1 if callable(phase.rounds) else phase.rounds):
                yield phase, self.participants(phase.name, done[phase.name])
                done[phase.name] += 1

    def uploads(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields those of the `rounds` in which clients upload."""
        return ((phase, clients) for phase, clients in self.rounds() if phase.aggregate)

    def different_uploads(self) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
        """Yields the `uploads`, but only the first of a phase if all clients take part: the others are the same."""
        seen: set[str] = set()
        for phase, clients in self.uploads():
            if len(clients) < len(self.clients) or phase.name not in seen:
                yield phase, clients
            seen.add(phase.name)

    def open_ended_phases(self) -> list[Phase[Any]]:
        """Returns the phases whose number of rounds is known only when they begin."""
        return [phase for phase in flatten_phases(self.method.phases()) if callable(phase.rounds)]


def list_upload_phases(method: Method[Any]) -> list[Phase[Any]]:
    """Returns the phases in which clients upload."""
    return [phase for phase in flatten_phases(method.phases()) if phase.aggregate]
