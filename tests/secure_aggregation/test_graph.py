"""The stated probability of a readable upload, against drawn graphs and drawn clients that help the server."""

import math
import random

import pytest

from genfed.core.errors import GenfedError
from genfed.secure_aggregation.graph import (
    BOUND,
    check_neighbors,
    exposure,
    neighbor_graph,
    probability_by_shares,
    probability_of_cut,
)
from genfed.secure_aggregation.settings import SecureAggregation


def read_by_shares(graph: dict[int, tuple[int, ...]], corrupt: set[int], needed: int) -> list[int]:
    """Honest clients whose key the corrupt neighbors recover."""
    return [
        one for one, near in graph.items() if one not in corrupt and len(corrupt & set(near)) >= min(needed, len(near))
    ]


def in_pieces(graph: dict[int, tuple[int, ...]], gone: set[int]) -> bool:
    """Whether the graph without some clients is not connected."""
    left = set(graph) - gone
    if not left:
        return False
    reached, todo = set(), [min(left)]
    while todo:
        one = todo.pop()
        if one not in reached:
            reached.add(one)
            todo += [other for other in graph[one] if other in left]
    return reached != left


@pytest.mark.parametrize(("members", "neighbors", "corrupt", "threshold"), [(50, 8, 0.45, 0.73), (40, 6, 0.4, 0.71)])
def test_the_probability_is_that_of_drawn_graphs(
    members: int, neighbors: int, corrupt: float, threshold: float
) -> None:
    how = SecureAggregation(neighbors=neighbors, threshold=threshold, corrupt_share=corrupt)
    draws, found = 600, 0
    random.seed(0)
    for _ in range(draws):
        graph = neighbor_graph(range(members), neighbors)
        bad = set(random.sample(range(members), math.floor(corrupt * members)))
        found += len(read_by_shares(graph, bad, how.needed(neighbors)))
    honest = members - math.floor(corrupt * members)
    expected = draws * honest * probability_by_shares(members, how)
    assert expected > 50
    assert abs(found - expected) < 6 * math.sqrt(expected * neighbors)  # neighbors of a corrupt group are dependent


@pytest.mark.parametrize(("members", "neighbors"), [(40, 6), (60, 8)])
def test_a_ring_is_cut_no_oftener_than_stated(members: int, neighbors: int) -> None:
    how = SecureAggregation(neighbors=neighbors, threshold=0.72, corrupt_share=0.25)
    gone = math.floor((0.25 + 0.28) * members)
    random.seed(1)
    draws = 800
    cut = sum(
        in_pieces(neighbor_graph(range(members), neighbors), set(random.sample(range(members), gone)))
        for _ in range(draws)
    )
    assert 0 < cut / draws <= probability_of_cut(members, how) + 3 * math.sqrt(0.25 / draws)


def test_five_of_fifty_uploads_that_were_read() -> None:
    """Half of 100 clients cooperate with the server, and 20 neighbors are far too few."""
    how = SecureAggregation(neighbors=20, threshold=0.76, corrupt_share=0.5)
    assert 50 * probability_by_shares(100, how) > 0.1
    with pytest.raises(GenfedError, match=r"neighbors = 20: in phase p an upload of one of 100 clients could be read"):
        check_neighbors(100, how, "in phase p")


@pytest.mark.parametrize("members", [50, 100, 1000])
def test_the_number_that_a_refusal_names_is_the_smallest_that_suffices(members: int) -> None:
    with pytest.raises(GenfedError, match=r"set neighbors = \d+ or more, or remove it") as caught:
        check_neighbors(members, SecureAggregation(neighbors=10), "here")
    enough = int(str(caught.value).partition("set neighbors = ")[2].partition(" ")[0])
    check_neighbors(members, SecureAggregation(neighbors=enough), "here")
    assert exposure(members, SecureAggregation(neighbors=enough)) <= BOUND
    with pytest.raises(GenfedError, match=f"set neighbors = {enough} or more"):
        check_neighbors(members, SecureAggregation(neighbors=enough - 2), "here")


def test_all_neighbors_are_read_by_no_fewer_than_the_threshold() -> None:
    check_neighbors(30, SecureAggregation(), "here")
    assert exposure(30, SecureAggregation()) == 0.0
    assert exposure(30, SecureAggregation(neighbors=40)) == 0.0  # the same graph
    assert probability_of_cut(30, SecureAggregation(neighbors=40)) == 0.0
