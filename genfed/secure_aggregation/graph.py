"""The graph of clients that share masks and secrets, and the probability that it does not hide an upload.

Bell, Bonawitz, Gascón, Lepoint, Raykova, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020,
section 3: a Harary graph (a ring in which each is tied to the nearest on either side) over a random order.
"""

import math
import random
from collections.abc import Sequence

from genfed.core.errors import GenfedError
from genfed.secure_aggregation.settings import SecureAggregation

BOUND = 2.0**-40
"""Largest probability of a readable upload: 2^-σ with the σ = 40 of the paper."""


def neighbor_graph(members: Sequence[int], neighbors: int | None) -> dict[int, tuple[int, ...]]:
    """Returns each member's neighbors: all others, or the nearest on either side of a ring in random order (a Harary
    graph).

    Args:
        members: the ids of a group's clients.
        neighbors: the number of neighbors, even. None: all others.
    """
    if neighbors is None or neighbors >= len(members) - 1:
        return {one: tuple(other for other in sorted(members) if other != one) for one in sorted(members)}
    ring = random.SystemRandom().sample(sorted(members), len(members))
    reach = [step for step in range(-(neighbors // 2), neighbors // 2 + 1) if step]
    return {
        one: tuple(sorted(ring[(i + s) % len(ring)] for s in reach))
        for i, one in sorted(enumerate(ring), key=lambda p: p[1])
    }


def probability_by_shares(members: int, how: SecureAggregation) -> float:
    """Returns the probability that one honest client's neighbors give the server its key: those that cooperate with it
    hold enough shares, or are all of them. (Exact; the paper's section 3.4 bounds it.)
    """
    count, corrupt = _neighbors(members, how), math.floor(how.corrupt_share * members)
    return _tail(members - 1, corrupt, count, min(how.needed(count), count))


def probability_of_cut(members: int, how: SecureAggregation) -> float:
    """Returns a bound on the probability that the ring is cut: that at two places as many clients in a row as each is
    tied to on one side either cooperate with the server or have left, 1 − threshold of all at most. Then the server
    learns the sum of those in between. (The paper bounds one such row; counts in rows apart are negatively associated.)
    """
    count = _neighbors(members, how)
    if count == members - 1:
        return 0.0
    gone = min(members, math.floor((how.corrupt_share + 1 - how.threshold) * members))
    return min(1.0, math.comb(members, 2) * _tail(members, gone, count // 2, count // 2) ** 2)


def exposure(members: int, how: SecureAggregation) -> float:
    """Returns a bound on the probability that a server which follows the protocol, with the clients that cooperate with
    it, reads the upload of any honest client of a group, or the sum of a part of the group.
    """
    honest = members - math.floor(how.corrupt_share * members)
    return min(1.0, honest * probability_by_shares(members, how) + probability_of_cut(members, how))


def check_neighbors(members: int, how: SecureAggregation, where: str) -> None:
    """Refuses a number of neighbors that hides uploads too badly.

    Args:
        members: the number of a group's clients.
        how: the settings.
        where: the group, for the message.

    Raises:
        GenfedError: an upload is readable with a probability above `BOUND`; the message names the smallest number that
            suffices.
    """
    if how.neighbors is None or (found := exposure(members, how)) <= BOUND:
        return
    enough = (each for each in range(how.neighbors + 2, members - 1, 2) if _would_do(members, how, each))
    instead = next((f"set neighbors = {each} or more, or remove it" for each in enough), "remove it")
    raise GenfedError(
        f"secure_aggregation.neighbors = {how.neighbors}: {where} an upload of one of {members} clients could be read "
        f"with a probability of up to {found:.2g}, above 2^-40, if {how.corrupt_share:g} of them cooperate with the "
        f"server (corrupt_share) and {1 - how.threshold:.2g} leave; {instead}"
    )


def _would_do(members: int, how: SecureAggregation, neighbors: int) -> bool:
    other = SecureAggregation(
        threshold=how.threshold,
        neighbors=neighbors,
        minimum_group=how.minimum_group,
        corrupt_share=how.corrupt_share,
    )
    return exposure(members, other) <= BOUND


def _neighbors(members: int, how: SecureAggregation) -> int:
    return min(members - 1, how.neighbors or members - 1)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Returns the probability that at least `least` of `drawn` members are marked (hypergeometric)."""
    marked = min(marked, population)
    ways = sum(math.comb(marked, i) * math.comb(population - marked, drawn - i) for i in range(least, drawn + 1))
    return ways / math.comb(population, drawn)
