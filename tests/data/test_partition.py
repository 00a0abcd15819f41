import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.data.partition import (
    IID,
    ByColumn,
    Dirichlet,
    DisjointLabels,
    OverlappingLabels,
    Partitioner,
    Pathological,
    QuantitySkew,
    draw_subset,
)

NONE: Mapping[str, Sequence[str]] = {}
SITES = {"site": [str(i % 7) for i in range(90)]}
EVERY: list[Partitioner] = [
    IID(),
    Dirichlet(alpha=1.0),
    Pathological(),
    DisjointLabels(),
    OverlappingLabels(own=2, shared=2),
    QuantitySkew(),
    ByColumn(column="site"),
]
labels = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)
seeds = st.integers(0, 2**62)
few = settings(max_examples=60, deadline=None)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(rows: list[Tensor], y: Tensor) -> list[set[int]]:
    return [set(y[r].tolist()) for r in rows]


def check(rows: list[Tensor], y: Tensor, clients: int, held: set[int] | None = None) -> None:
    """Sorted, not empty, disjoint; all rows of the classes `held` (None: of all) are with someone."""
    assert len(rows) == clients
    for r in rows:
        assert r.dtype == torch.int64
        assert len(r) >= 1
        assert bool((r[1:] > r[:-1]).all())
    together = torch.cat(rows).tolist()
    assert len(together) == len(set(together))
    assert sorted(together) == [i for i, label in enumerate(y.tolist()) if held is None or label in held]


@pytest.mark.parametrize("how", EVERY)
def test_is_the_same_for_the_same_draws_and_other_for_others(how: Partitioner) -> None:
    y = torch.arange(90) % 6
    first, again, other = (how.split(y, 3, rng(seed), SITES) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("how", EVERY)
def test_global_random_state_is_neither_read_nor_written(how: Partitioner) -> None:
    before = torch.get_rng_state()
    how.split(torch.arange(90) % 6, 3, rng(), SITES)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("how", EVERY)
def test_fewer_examples_than_clients_are_refused(how: Partitioner) -> None:
    with pytest.raises(GenfedError, match="2 examples are too few for 3 clients"):
        how.split(torch.tensor([0, 1]), 3, rng(), NONE)
    with pytest.raises(GenfedError, match="clients is 0"):
        how.split(torch.tensor([0, 1]), 0, rng(), NONE)


@pytest.mark.parametrize("how", EVERY)
def test_one_client_gets_what_there_is(how: Partitioner) -> None:
    y = torch.arange(90) % 6
    held = {Pathological: 2, OverlappingLabels: 4}.get(type(how), 6)
    (rows,) = how.split(y, 1, rng(), SITES)
    assert len(rows) == 15 * held


@few
@given(labels, st.integers(1, 12), seeds)
def test_iid_sizes_differ_by_at_most_one(y: Tensor, clients: int, seed: int) -> None:
    clients = min(clients, len(y))
    rows = IID().split(y, clients, rng(seed), NONE)
    check(rows, y, clients)
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@few
@given(st.integers(1, 8), st.integers(1, 4), st.sampled_from([0.3, 1.0, 100.0]), seeds)
def test_dirichlet_uses_every_example_and_keeps_the_minimum(clients: int, least: int, alpha: float, seed: int) -> None:
    y = torch.arange(200) % 5
    rows = Dirichlet(alpha=alpha, minimum=least).split(y, clients, rng(seed), NONE)
    check(rows, y, clients)
    assert min(map(len, rows)) >= least


def test_dirichlet_with_a_large_alpha_is_even_and_with_a_small_one_is_not() -> None:
    y = torch.arange(1000) % 5
    counts = [[int((y[r] == c).sum()) for c in range(5)] for r in Dirichlet(alpha=1e6).split(y, 4, rng(), NONE)]
    assert all(abs(count - 50) <= 1 for row in counts for count in row)
    skewed = Dirichlet(alpha=0.01).split(y, 4, rng(), NONE)
    top = [int(y[r].bincount().max()) / len(r) for r in skewed]
    assert sum(top) / 4 > 0.5


def test_dirichlet_gives_up_with_advice() -> None:
    with pytest.raises(GenfedError, match=r"raise alpha \(0.01\), or lower minimum or clients \(20\)"):
        Dirichlet(alpha=0.01, minimum=40).split(torch.zeros(1000, dtype=torch.int64), 20, rng(), NONE)
    with pytest.raises(GenfedError, match="100 examples are too few for 20 clients with at least 6 each"):
        Dirichlet(minimum=6).split(torch.zeros(100, dtype=torch.int64), 20, rng(), NONE)


@few
@given(st.integers(1, 6), st.integers(1, 15), st.integers(1, 6), seeds)
def test_pathological_gives_each_client_exactly_k_classes(classes: int, clients: int, k: int, seed: int) -> None:
    k = min(k, classes)
    y = torch.arange(classes * clients) % classes  # enough of each class for every client
    rows = Pathological(labels=k).split(y, clients, rng(seed), NONE)
    got = shares(rows, y)
    assert [len(s) for s in got] == [k] * clients
    held = set().union(*got)
    assert len(held) == min(classes, clients * k)
    check(rows, y, clients, held)
    times = [sum(c in s for s in got) for c in range(classes)]
    assert max(times) - min(times) <= 1


@few
@given(labels, st.integers(1, 20), st.integers(1, 6), seeds)
def test_pathological_copes_with_rare_classes(y: Tensor, clients: int, k: int, seed: int) -> None:
    clients, classes = min(clients, len(y)), len(set(y.tolist()))
    k = min(k, classes)
    rows = Pathological(labels=k).split(y, clients, rng(seed), NONE)
    got = shares(rows, y)
    check(rows, y, clients, set().union(*got))
    possible = sum(min(clients, int((y == c).sum())) for c in set(y.tolist()))
    assert sum(map(len, got)) == min(possible, clients * k)
    assert max(map(len, got)) - min(map(len, got)) <= 1
    if clients * k >= classes:
        assert set().union(*got) == set(y.tolist())


def test_pathological_refuses_more_labels_than_classes() -> None:
    with pytest.raises(GenfedError, match="labels is 3; there are 2 classes"):
        Pathological(labels=3).split(torch.tensor([0, 1, 0]), 2, rng(), NONE)


@few
@given(labels, st.integers(1, 6), seeds)
def test_disjoint_labels_are_disjoint_and_complete(y: Tensor, clients: int, seed: int) -> None:
    clients = min(clients, len(set(y.tolist())))
    rows = DisjointLabels().split(y, clients, rng(seed), NONE)
    check(rows, y, clients)
    got = shares(rows, y)
    assert all(not a & b for a, b in itertools.combinations(got, 2))
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_disjoint_labels_refuse_more_clients_than_classes() -> None:
    with pytest.raises(GenfedError, match="3 clients cannot share 2 classes"):
        DisjointLabels().split(torch.tensor([0, 1, 0]), 3, rng(), NONE)


def test_overlapping_labels_by_hand() -> None:
    y = torch.arange(40) % 5
    rows = OverlappingLabels(own=2, shared=1).split(y, 3, rng(), NONE)
    assert shares(rows, y) == [{0, 1, 2}, {2, 3, 4}, {4, 0, 1}]
    assert [y[r].bincount(minlength=5).tolist() for r in rows] == [[4, 4, 4, 0, 0], [0, 0, 4, 8, 4], [4, 4, 0, 0, 4]]
    check(rows, y, 3)
    assert shares(OverlappingLabels(own=1, shared=0).split(y, 3, rng(), NONE), y) == [{0}, {1}, {2}]


@few
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 4), st.integers(0, 4), seeds)
def test_overlapping_labels_are_windows_of_the_ring(classes: int, clients: int, own: int, shared: int, s: int) -> None:
    own = min(own, classes)
    shared = min(shared, classes - own)
    y = torch.arange(classes * clients) % classes
    rows = OverlappingLabels(own=own, shared=shared).split(y, clients, rng(s), NONE)
    windows = [{(i * own + j) % classes for j in range(own + shared)} for i in range(clients)]
    assert shares(rows, y) == windows
    check(rows, y, clients, set().union(*windows))
    for c in range(classes):
        counts = [int((y[r] == c).sum()) for r, w in zip(rows, windows, strict=True) if c in w]
        assert not counts or max(counts) - min(counts) <= 1


def test_overlapping_labels_refuse_too_wide_a_window_and_too_rare_a_class() -> None:
    with pytest.raises(GenfedError, match=r"own \+ shared is 3; there are 2 classes"):
        OverlappingLabels(own=2, shared=1).split(torch.tensor([0, 1, 0, 1]), 2, rng(), NONE)
    with pytest.raises(GenfedError, match="class 1 has 1 examples for 2 clients"):
        OverlappingLabels(own=1, shared=1).split(torch.tensor([0, 0, 1]), 2, rng(), NONE)


@few
@given(labels, st.integers(1, 10), st.integers(1, 4), st.sampled_from([0.01, 0.5, 50.0]), seeds)
def test_quantity_skew_keeps_the_minimum(y: Tensor, clients: int, least: int, alpha: float, seed: int) -> None:
    clients = min(clients, len(y))
    least = min(least, len(y) // clients)
    rows = QuantitySkew(alpha=alpha, minimum=least).split(y, clients, rng(seed), NONE)
    check(rows, y, clients)
    assert min(map(len, rows)) >= least


def test_quantity_skew_skews_more_for_a_small_alpha() -> None:
    y = torch.zeros(1000, dtype=torch.int64)
    wide, even = (sorted(map(len, QuantitySkew(alpha=a).split(y, 5, rng(), NONE))) for a in (0.1, 1e6))
    assert wide[-1] > 400
    assert 195 <= even[0] <= even[-1] <= 205
    with pytest.raises(GenfedError, match="1000 examples are too few for 5 clients with at least 201 each"):
        QuantitySkew(minimum=201).split(y, 5, rng(), NONE)


def test_by_column_makes_a_client_per_value_in_sorted_order() -> None:
    y, sites = torch.arange(5), {"site": ["b", "a", "b", "c", "a"]}
    rows = ByColumn(column="site").split(y, 3, rng(), sites)
    assert [r.tolist() for r in rows] == [[1, 4], [0, 2], [3]]


@few
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 6), seeds)
def test_by_column_never_divides_a_value(values: list[str], clients: int, seed: int) -> None:
    clients, y = min(clients, len(set(values))), torch.zeros(len(values), dtype=torch.int64)
    rows = ByColumn(column="site").split(y, clients, rng(seed), {"site": values})
    check(rows, y, clients)
    got = [{values[i] for i in r.tolist()} for r in rows]
    assert all(not a & b for a, b in itertools.combinations(got, 2))
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_by_column_refuses_an_unknown_column_and_too_many_clients() -> None:
    y, sites = torch.arange(3), {"site": ["a", "b", "a"]}
    with pytest.raises(GenfedError, match="natural column 'sites' is not there; did you mean 'site'"):
        ByColumn(column="sites").split(y, 2, rng(), sites)
    with pytest.raises(GenfedError, match="there are: none"):
        ByColumn(column="site").split(y, 2, rng(), NONE)
    with pytest.raises(GenfedError, match="3 clients cannot be made of 2 values of 'site'"):
        ByColumn(column="site").split(y, 3, rng(), sites)


def test_subset_draws_so_many_rows() -> None:
    y = torch.arange(20)
    rows = draw_subset(y, 8, rng(1))
    assert len(set(rows.tolist())) == 8
    assert (
        rows.tolist()
        == sorted(rows.tolist())
        == draw_subset(y, 8, rng(1)).tolist()
        != draw_subset(y, 8, rng(2)).tolist()
    )
    assert draw_subset(y, 20, rng()).tolist() == y.tolist()
    for wrong in (0, 21):
        with pytest.raises(GenfedError, match=f"examples is {wrong}; 1 to 20"):
            draw_subset(y, wrong, rng())


def test_a_dirichlet_of_many_clients_and_few_classes_each() -> None:
    y = torch.arange(10).repeat_interleave(600)
    with pytest.raises(
        GenfedError, match=r"1000 draws left a client with fewer than 1 of 6000 .*lower minimum or clients"
    ):
        Dirichlet(alpha=0.01).split(y, 60, rng(), NONE)
    parts = Dirichlet(alpha=0.01).split(y, 20, rng(), NONE)
    assert torch.cat(parts).sort().values.equal(torch.arange(len(y)))
    assert min(map(len, parts)) >= 1
    many = torch.arange(200).repeat_interleave(30)
    parts = Dirichlet(alpha=0.01).split(many, 60, rng(), NONE)
    assert torch.cat(parts).sort().values.equal(torch.arange(len(many)))
    assert len(parts) == 60
