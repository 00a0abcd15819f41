import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect, Mean, Sum
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.record import Packed, pack
from genfed.core.task import Task
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Engine, Failure, Job, Round, RoundRequest, check_reduced, check_upload

CLIENTS = tuple(ClientInfo(i, "ab"[i % 2], 10 + i) for i in range(5))
STEP = RoundId("train", 3, 8)


@dataclass(frozen=True)
class Sent:
    weights: dict[str, Tensor]
    bias: Tensor
    hint: float


@dataclass(frozen=True)
class Upload:
    weights: dict[str, Tensor]
    loss: float
    extra: Tensor


def work(client: Client, sent: Sent) -> Reply[Upload]:
    raise AssertionError("the fake engine answers for clients")


def phase() -> Phase[Any]:
    return Phase("train", keep, send, work, {"weights": Mean(), "loss": Mean(), "extra": Collect()})


def keep(server: Server, state: Any, reduced: Reduced) -> Any:
    return state


def send(server: Server, state: Any, info: ClientInfo) -> Sent:
    return Sent({"w": torch.full((2,), float(info.id)), "n": torch.tensor(1)}, torch.zeros(3), 0.5)


def server() -> Server:
    def none(architecture: str, rng: torch.Generator) -> torch.nn.Module:
        raise AssertionError

    task = Task("image", (1, 2, 2), ("a", "b"))
    return Server(task, CLIENTS, 3, torch.Generator(), 0, torch.device("cpu"), "float32", none)


def good(info: ClientInfo, **changes: Any) -> PackedReply:
    upload = Upload({"w": torch.full((2,), 2.0 * info.id), "n": torch.tensor(7)}, 1.0, torch.zeros(info.id))
    return PackedReply(pack(replace(upload, **changes)), 1.0, {"loss": 0.5}, 0.25)


class Fake:
    """Answers as it is told, in the order of `order`; takes jobs one at a time."""

    def __init__(
        self, answer: Callable[[ClientInfo], PackedReply | Failure], order: Iterable[int] | None = None
    ) -> None:
        self._answer, self._order = answer, order
        self.got: dict[int, Packed] = {}

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        assert step == STEP
        infos = {}
        for info, packed, _ in jobs:
            infos[info.id], self.got[info.id] = info, packed
        for place in self._order or infos:
            yield infos[place], self._answer(infos[place])

    def describe(self, info: ClientInfo, reason: str) -> str:
        return reason

    def lost(self) -> list[str]:
        return []


def request(engine: Engine, phase: Phase[Any], clients: tuple[ClientInfo, ...] = CLIENTS) -> RoundRequest:
    return RoundRequest(engine, phase, STEP, STEP.number, server(), None, clients)


def ask(answer: Callable[[ClientInfo], PackedReply | Failure], quorum: float = 0.0, order: Any = None) -> Round:
    return Round(request(Fake(answer, order), phase()), quorum)


def test_replies_are_reduced_whatever_their_order() -> None:
    for order in (None, [4, 0, 3, 1, 2]):
        asking = ask(good, 1.0, order)
        exchanges = list(asking)
        assert [e.info.id for e in exchanges] == list(order or range(5))
        assert asking.failures == {}
        assert asking.reduced["weights"]["w"].tolist() == [4.0, 4.0]
        assert asking.reduced["loss"] == 1.0
        assert [len(v) for v in asking.reduced["extra"].values()] == [0, 1, 2, 3, 4]
        assert asking.reduced.clients == CLIENTS
        assert asking.seconds > 0


def test_bytes_are_those_of_the_packed_records() -> None:
    (first, *_) = ask(good)
    down, up = pack(send(server(), None, CLIENTS[0])), good(CLIENTS[0]).upload
    assert first.down_bytes == len(down.skeleton) + 2 * 4 + 8 + 3 * 4
    assert first.up_bytes == len(up.skeleton) + 2 * 4 + 8 + 0
    assert (first.seconds, first.metrics) == (0.25, {"loss": 0.5})


ones = torch.ones(2)
n = torch.tensor(1)
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("nan", {"weights": {"w": torch.tensor([1.0, math.nan]), "n": n}}, r"weights\['w'\] holds numbers .* not finite"),
    ("inf", {"weights": {"w": torch.tensor([1.0, -math.inf]), "n": n}}, r"weights\['w'\] holds numbers .* not finite"),
    ("nan elsewhere", {"extra": torch.tensor(math.nan)}, r"Upload\.extra holds numbers that are not finite"),
    ("half inf", {"extra": torch.tensor(math.inf).half()}, r"Upload\.extra holds numbers that are not finite"),
    ("number nan", {"loss": math.nan}, "loss holds numbers that are not finite"),
    ("number inf", {"loss": -math.inf}, "loss holds numbers that are not finite"),
    ("missing", {"weights": {"w": ones}}, r"weights\['n'\] is missing"),
    ("all missing", {"weights": {}}, r"weights\['n'\] is missing"),
    ("extra", {"weights": {"w": ones, "n": n, "v": n}}, r"weights\['v'\] was not requested"),
    ("renamed", {"weights": {"w.": ones, "n": n}}, r"weights\['w"),
    ("shape", {"weights": {"w": torch.ones(3), "n": n}}, r"weights\['w'\] is torch.float32 \(3,\), not .* \(2,\)"),
    ("broadcasts", {"weights": {"w": torch.ones(1), "n": n}}, r"weights\['w'\] is torch.float32 \(1,\)"),
    ("dtype", {"weights": {"w": ones.double(), "n": n}}, r"weights\['w'\] is torch.float64 \(2,\), not torch.float32"),
    ("integer dtype", {"weights": {"w": ones, "n": n.int()}}, r"weights\['n'\] is torch.int32 \(\), not torch.int64"),
    ("wrong type", {"loss": "low"}, r"Upload\.loss: expected float, got str"),
    ("nothing", {"extra": None}, r"Upload\.extra: the tensor is missing"),
]


@pytest.mark.parametrize(("changes", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("who", [0, 3])
def test_a_reply_that_would_spoil_a_mean_is_left_out_and_named(changes: dict[str, Any], message: str, who: int) -> None:
    asking = ask(lambda info: good(info, **changes) if info.id == who else good(info), 0.8)
    assert who not in [e.info.id for e in asking]
    assert list(asking.failures) == [who]
    with pytest.raises(GenfedError, match=message):
        raise GenfedError(asking.failures[who])
    others = [i for i in range(5) if i != who]
    assert asking.reduced["weights"]["w"].tolist() == [sum(others) / 2] * 2  # 2·Σ/4
    assert [info.id for info in asking.reduced.clients] == others


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, -0.0])
def test_a_weight_is_finite_and_above_0(weight: float) -> None:
    asking = ask(lambda info: replace(good(info), weight=weight) if info.id == 1 else good(info))
    list(asking)
    assert asking.failures == {1: f"its weight is {weight}; a weight is above 0"}


@pytest.mark.parametrize("seconds", [-1e-9, -1.7e308, math.nan, math.inf, 1.7e308])
def test_a_duration_is_one_that_can_be_added_up(seconds: float) -> None:
    asking = ask(lambda info: replace(good(info), seconds=seconds) if info.id == 1 else good(info))
    list(asking)
    assert asking.failures == {1: f"its work took {seconds} seconds; 0 to 1e+15 are allowed"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1.7e308, -1.1e15])
def test_a_metric_that_cannot_be_added_up_is_none_and_costs_its_client_nothing_else(number: float) -> None:
    said = {"loss": number, "flops": 3.0, "parameters": -1e15}
    asking = ask(lambda info: replace(good(info), metrics=said) if info.id == 1 else good(info), 1.0)
    costs = {cost.info.id: cost.metrics for cost in asking}
    assert math.isnan(costs[1].pop("loss"))
    assert costs[1] == {"flops": 3.0, "parameters": -1e15}
    assert costs[2] == {"loss": 0.5}
    assert len(asking.reduced.clients) == 5


def test_bytes_of_another_record_are_left_out() -> None:
    asking = ask(lambda info: PackedReply(Packed({}, "{"), 1.0) if info.id == 1 else good(info))
    list(asking)
    assert asking.failures.keys() == {1}
    assert "Upload: the skeleton is not JSON" in asking.failures[1]


def test_a_field_that_was_not_sent_is_held_against_most_of_its_group() -> None:
    @dataclass(frozen=True)
    class Pair:
        counts: Tensor

    def pair(client: Client, sent: Empty) -> Reply[Pair]:
        raise AssertionError

    counting: Phase[Any] = Phase("train", keep, lambda *_: Empty(), pair, {"counts": Sum()})
    for order in (None, [4, 0, 1, 2, 3]):  # whoever replies first
        fake = Fake(lambda info: PackedReply(pack(Pair(torch.ones(1 + info.id // 4))), 1.0), order)
        asking = Round(request(fake, counting), 0.8)
        list(asking)
        assert asking.failures.keys() == {4}
        assert "uploads of one group have different shapes" in asking.failures[4]
        assert asking.reduced["counts"].tolist() == [4.0]
        assert [info.id for info in asking.reduced.clients] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"w": torch.full((2,), 3e38), "n": n}},
        {"weights": {"w": torch.full((2,), -1.1e6), "n": n}},
        {"extra": torch.tensor([0, 2**62])},
        {"loss": 1e300},
    ],
)
def test_numbers_that_would_overflow_are_left_out(changes: dict[str, Any]) -> None:
    asking = ask(lambda info: good(info, **changes) if info.id == 1 else good(info), 0.8)
    list(asking)
    assert asking.failures.keys() == {1}
    (name,) = changes
    assert asking.failures[1].endswith(f"{name} holds numbers beyond ±1e+06 (whole ones: ±1e+15)")


def test_a_phase_may_allow_larger_numbers() -> None:
    for largest, failed in ((1e6, {1}), (1e9, set())):
        fake = Fake(lambda info: good(info, loss=1e8 if info.id == 1 else 1.0))
        asking = Round(request(fake, replace(phase(), largest={"loss": largest})), 0.8)
        list(asking)
        assert asking.failures.keys() == failed
    with pytest.raises(GenfedError, match="phase 'train': largest has 'los', which is no upload field"):
        replace(phase(), largest={"los": 1.0})


def test_a_sum_is_bounded_for_each_example_and_reduced_values_as_uploads() -> None:
    """Under masks the server sees the reduced values alone."""

    @dataclass(frozen=True)
    class Added:
        sums: Tensor

    def added(client: Client, sent: Empty) -> Reply[Added]:
        raise AssertionError

    adding: Phase[Any] = Phase("train", keep, lambda *_: Empty(), added, {"sums": Sum()})
    fake = Fake(lambda info: PackedReply(pack(Added(torch.full((1,), 1.05e7))), 1.0))
    asking = Round(request(fake, adding), 0.8)
    list(asking)
    assert asking.failures.keys() == {0}  # of 10 examples
    examples = sum(info.examples for info in CLIENTS)
    for values, bounded, most in (
        ({"loss": 1.0, "weights": {"w": torch.ones(2)}, "extra": {}}, phase(), 1e6),
        ({"sums": torch.ones(2)}, adding, 1e6 * examples),
    ):
        name = next(iter(values))
        check_reduced(STEP, values | {name: torch.tensor([most])}, bounded, CLIENTS)
        with pytest.raises(GenfedError, match=f"the reduced {name} holds numbers that are not finite or far too large"):
            check_reduced(STEP, values | {name: torch.tensor([1.1 * most])}, bounded, CLIENTS)


@pytest.mark.parametrize("claimed", [1e30, 1e308, 11.5])
def test_a_weight_counts_up_to_the_declared_examples(claimed: float, caplog: pytest.LogCaptureFixture) -> None:
    honest = [float(info.examples) for info in CLIENTS]
    asking = ask(lambda info: replace(good(info), weight=claimed if info.id == 1 else honest[info.id]))
    list(asking)
    expected = sum(w * 2.0 * i for i, w in enumerate(honest)) / sum(honest)
    assert asking.reduced["weights"]["w"].tolist() == pytest.approx([expected] * 2)
    assert f"client 1 claims the weight {claimed:g}, and its 11 examples count" in caplog.text


def test_a_mean_that_is_not_finite_never_becomes_state() -> None:
    """Each upload is finite, and their sum in half precision is not."""

    @dataclass(frozen=True)
    class Halves:
        counts: Tensor

    def halves(client: Client, sent: Empty) -> Reply[Halves]:
        raise AssertionError

    counting: Phase[Any] = Phase("train", keep, lambda *_: Empty(), halves, {"counts": Sum()})
    fake = Fake(lambda info: PackedReply(pack(Halves(torch.full((1,), 6e4).half())), 1.0))
    asking = Round(request(fake, counting), 0.8)
    list(asking)
    with pytest.raises(GenfedError, match=r"^train round 4: the reduced counts holds numbers that are not finite"):
        _ = asking.reduced


def test_an_upload_that_no_check_expects_excludes_its_client_alone() -> None:
    """A method's own check may fail in any way about what another party sent."""

    def check(server: Server, info: ClientInfo, upload: Any) -> None:
        if info.id == 2:
            raise KeyError("w")

    asking = Round(request(Fake(good), replace(phase(), check=check)), 0.8)
    list(asking)
    assert asking.failures == {2: "its upload cannot be used (KeyError)"}
    assert len(asking.reduced.clients) == 4


def test_what_is_screened_excludes_its_client_too() -> None:
    def screen(server: Server, info: ClientInfo, upload: Any) -> None:
        if info.id == 2:
            raise GenfedError("no honest client makes it")

    asking = Round(request(Fake(good), replace(phase(), screen=screen)), 0.8)
    list(asking)
    assert asking.failures == {2: "no honest client makes it"}


def test_nothing_sent_holds_nothing_against_an_upload() -> None:
    check_upload(pack(Empty()), good(CLIENTS[0]))


@pytest.mark.parametrize(
    ("quorum", "failing", "enough"),
    [
        (1.0, 0, True),
        (1.0, 1, False),
        (0.8, 1, True),  # 4 of 5, and 0.8 · 5 is no more than 4 in floating point either
        (0.8, 2, False),
        (0.5, 2, True),  # ⌈2.5⌉ = 3
        (0.5, 3, False),
        (0.6, 2, True),  # 0.6 · 5 = 3 exactly
        (0.0, 4, True),
        (0.0, 5, False),  # at least one
        (0.01, 5, False),
    ],
)
def test_the_quorum(quorum: float, failing: int, enough: bool) -> None:
    asking = ask(lambda info: Failure("lost") if info.id < failing else good(info), quorum)
    assert len(list(asking)) == 5 - failing
    assert asking.failures == dict.fromkeys(range(failing), "lost")
    if enough:
        assert len(asking.reduced.clients) == 5 - failing
    else:
        needed = max(1, math.ceil(quorum * 5))
        message = f"^train round 4: {5 - failing} of 5 clients answered and the quorum is {needed}; client 0: lost$"
        with pytest.raises(GenfedError, match=message):
            _ = asking.reduced


def test_a_quorum_that_is_whole_but_for_rounding() -> None:
    """0.07 · 100 is 7.000000000000001 in floating point."""
    many = tuple(ClientInfo(i, "a", 1) for i in range(100))
    fake = Fake(lambda info: good(info) if info.id < 7 else Failure("lost"))
    asking = Round(request(fake, phase(), many), 0.07)
    list(asking)
    assert len(asking.reduced.clients) == 7


def test_jobs_are_made_as_they_are_drawn() -> None:
    made: list[int] = []

    class Lazy(Fake):
        def exchange(self, step: RoundId, jobs: Any) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
            for info, *_ in jobs:
                assert made == list(range(info.id + 1))
                yield info, good(info)

    def counted(server: Server, state: Any, info: ClientInfo) -> Sent:
        made.append(info.id)
        return send(server, state, info)

    asking = Round(request(Lazy(good), replace(phase(), send=counted)), 1.0)
    assert len(list(asking)) == 5
