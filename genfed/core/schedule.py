"""Which clients take part in which round."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Phase, flatten_phases
from genfed.core.rng import stream


def round_up_share(share: float, count: int) -> int:
    """⌈share · count⌉, but for the last digits of a share such as 0.07, which would make it one more."""
    return math.ceil(round(share * count, 9))


def select_participants(
    clients: Sequence[ClientInfo], sample: float, seed: int, phase: str, round_: int
) -> list[ClientInfo]:
    """Who takes part in a round of a phase, numbered over the whole method: known to all who know the seed."""
    return draw_participants(clients, sample, stream(seed, phase, round_, "sample"))


def plan_rounds(
    method: Method[Any], clients: Sequence[ClientInfo], sample: float, seed: int
) -> Iterator[tuple[Phase[Any], list[ClientInfo]]]:
    """Who takes part in each round of each phase, in the order in which they run. A phase whose rounds are known only
    when it is entered is taken to have one.
    """
    done = Counter[str]()
    for phase in flatten_phases(method.phases()):
        for _ in range(1 if callable(phase.rounds) else phase.rounds):
            yield phase, select_participants(clients, sample, seed, phase.name, done[phase.name])
            done[phase.name] += 1


def draw_participants(clients: Sequence[ClientInfo], sample: float, rng: torch.Generator) -> list[ClientInfo]:
    """Who takes part in a round: ⌈sample · n⌉ clients without replacement, by id; 1.0 is everybody."""
    count = round_up_share(sample, len(clients))
    if not 1 <= count <= len(clients):
        raise GenfedError(f"sample = {sample} of {len(clients)} clients is {count}; at least one must take part")
    if count == len(clients):
        return sorted(clients, key=lambda c: c.id)
    return sorted((clients[i] for i in torch.randperm(len(clients), generator=rng)[:count]), key=lambda c: c.id)
