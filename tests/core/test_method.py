from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect, Mean
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Repeat, Reply, Wire, flatten_phases
from genfed.core.rng import stream
from genfed.core.schedule import draw_participants
from genfed.core.task import Data

T = TypeVar("T")


def clients(count: int) -> list[ClientInfo]:
    return [ClientInfo(2 * i + 1, "a", 1) for i in range(count)]


# Who takes part.


@given(st.integers(1, 40), st.floats(0.001, 1.0), st.integers(0, 2**32), st.randoms())
def test_participants_are_distinct_sorted_and_as_many_as_asked(
    count: int, sample: float, seed: int, order: Any
) -> None:
    everybody = clients(count)
    order.shuffle(everybody)
    some = draw_participants(everybody, sample, torch.Generator().manual_seed(seed))
    assert sample * count - 1e-6 <= len(some) <= sample * count + 1
    assert len(set(some)) == len(some)
    assert set(some) <= set(everybody)
    assert some == sorted(some, key=lambda c: c.id)


@pytest.mark.parametrize(
    ("sample", "count", "size"),
    [(1.0, 7, 7), (0.5, 7, 4), (0.1, 10, 1), (0.1, 11, 2), (0.3, 10, 3), (0.07, 100, 7), (0.29, 100, 29), (0.01, 3, 1)],
)
def test_how_many_take_part(sample: float, count: int, size: int) -> None:
    assert len(draw_participants(clients(count), sample, stream(0))) == size


def test_everybody_is_drawn_equally_often() -> None:
    times = Counter(
        c.id for i in range(4000) for c in draw_participants(clients(5), 0.4, stream(0, "train", i, "sample"))
    )
    assert set(times) == {1, 3, 5, 7, 9}
    for drawn in times.values():  # 1600 ± 31
        assert abs(drawn - 1600) < 155


@pytest.mark.parametrize(("sample", "count"), [(0.0, 5), (-0.5, 5), (1.5, 5), (1.0, 0), (0.5, 0)])
def test_a_sample_of_nobody_or_of_too_many_is_refused(sample: float, count: int) -> None:
    with pytest.raises(GenfedError, match=rf"client_fraction = {sample} of {count} clients"):
        draw_participants(clients(count), sample, stream(0))


# The plan.


def keep(server: Server, state: Any, reduced: Reduced) -> Any:
    return state


def alone(name: str) -> Phase[Any]:
    return Phase(name, keep)


def names(plan: list[Any]) -> list[str]:
    return [phase.name for phase in flatten_phases(plan)]


def test_repeats_are_unrolled_in_order() -> None:
    a, b, c = alone("a"), alone("b"), alone("c")
    assert names([]) == []
    assert names([a, Repeat(2, [b, c]), a]) == ["a", "b", "c", "b", "c", "a"]
    assert names([Repeat(2, [a, Repeat(3, [b]), c])]) == ["a", "b", "b", "b", "c"] * 2
    assert names([Repeat(0, [a]), b, Repeat(3, [])]) == ["b"]


def test_leaves_are_drawn_one_by_one() -> None:
    walk = flatten_phases([Repeat(10**12, [alone("a")])])
    assert isinstance(walk, Iterator)
    assert next(walk).name == "a"


# The wire protocol is read from the annotations.


@dataclass(frozen=True)
class Sent:
    x: Tensor


@dataclass(frozen=True)
class Upload:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Boxed(Generic[T]):
    x: T


def work(client: Client, sent: Sent) -> Reply[Upload]:
    raise NotImplementedError


def quoted(client: "Client", given: "Sent") -> "Reply[Upload]":
    raise NotImplementedError


def boxed(client: Client, sent: Boxed[int]) -> Reply[Boxed[Tensor]]:
    raise NotImplementedError


def silent(client: Client, sent: Empty) -> Reply[Empty]:
    raise NotImplementedError


class Owner:
    def work(self, client: Client, sent: Sent) -> Reply[Upload]:
        raise NotImplementedError


BOTH = {"x": Mean(), "y": Collect()}


def test_the_kinds_of_a_phase() -> None:
    assert Phase("p", keep, None, work, BOTH).wire_types == Wire(Sent, Upload)
    assert Phase("p", keep, None, quoted, BOTH).wire_types == Wire(Sent, Upload)
    assert Phase("p", keep, None, Owner().work, BOTH).wire_types == Wire(Sent, Upload)
    assert Phase("p", keep, None, silent).wire_types == Wire(Empty, Empty)
    assert Phase("p", keep, None, boxed, {"x": Mean()}).wire_types == Wire(Boxed[int], Boxed[Tensor])


def test_types_on_the_wire_can_be_given_instead() -> None:
    def relay(client: Client, sent: Any) -> Any:
        raise NotImplementedError

    assert Phase("p", keep, None, relay, BOTH, wire=Wire(Boxed[int], Upload)).wire_types == Wire(Boxed[int], Upload)
    with pytest.raises(GenfedError, match=r"^phase 'p': 'y' is uploaded, and no aggregate says how it is reduced$"):
        Phase("p", keep, None, relay, {"x": Mean()}, wire=Wire(Sent, Upload))


def test_every_upload_field_says_how_it_is_reduced() -> None:
    with pytest.raises(GenfedError, match=r"^phase 'p': 'y' is uploaded, and no aggregate says how it is reduced$"):
        Phase("p", keep, None, work, {"x": Mean()})
    with pytest.raises(GenfedError, match=r"^phase 'p': 'z' is no upload field$"):
        Phase("p", keep, None, work, BOTH | {"z": Mean()})
    with pytest.raises(GenfedError, match=r"^phase 'p': 'x' is no upload field$"):
        Phase("p", keep, None, silent, {"x": Mean()})


def test_a_slot_has_a_name_and_a_kind() -> None:
    slot = Slot("kept-Moments_2", Sent)
    assert (slot.name, slot.kind) == ("kept-Moments_2", Sent)


# Small records.


def test_data_is_counted_and_cut_by_rows() -> None:
    data = Data(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))
    assert len(data) == 3
    assert data[torch.tensor([2, 0])].y.tolist() == [2, 0]
    assert data[1:].x.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert len(data[:0]) == 0
    assert data.to(torch.device("cpu")).y.tolist() == [0, 1, 2]


def test_what_came_of_a_round_is_read_by_field() -> None:
    reduced = Reduced({"x": 3}, ())
    assert reduced["x"] == 3
    with pytest.raises(KeyError):
        reduced["y"]
