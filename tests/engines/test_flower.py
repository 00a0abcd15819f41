"""Messages and the loop that sends them, on a fake grid; Flower's simulation; no federation."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch

from genfed.core.errors import GenfedError
from genfed.core.record import Packed, digest, pack
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job
from tests.conftest import left_by, start, tiny
from tests.engines.test_round import CLIENTS, Sent

flower = pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from flwr.app import Array, ConfigRecord, Message, RecordDict  # noqa: E402
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError  # noqa: E402

from genfed.engines.flower import simulation  # noqa: E402
from genfed.engines.flower.client import answer_message  # noqa: E402
from genfed.engines.flower.engine import LATE, PATIENCE, FlowerEngine, MessageLink  # noqa: E402
from genfed.engines.flower.messages import ArrayCache, decode_message, encode_message  # noqa: E402

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages say who sent them."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


STEP = RoundId("train", 3, 8)


def record(value: float = 1.0) -> Packed:
    bits = torch.tensor([1.0, -0.0, 3.1415926, float("inf")], dtype=torch.bfloat16)
    return pack(Sent({"w": torch.full((3,), value), "half": bits, "none": torch.zeros(0, 2)}, torch.tensor(7), 0.5))


def test_a_letter_keeps_every_bit() -> None:
    head, body = decode_message(encode_message({"step": [1, "ü"]}, record()))
    assert head == {"step": [1, "ü"]}
    assert digest(body) == digest(record())


def test_what_is_no_letter_is_refused() -> None:
    good = encode_message({}, record())
    foreign = RecordDict({"message": ConfigRecord({"head": "[", "skeleton": "{}"})})
    listed = encode_message({}, record())
    listed.config_records["message"]["head"] = "[]"
    broken = encode_message({}, record())
    broken.array_records["tensors"]["weights"] = Array("uint8", (3,), "safetensors", b"abc")
    nested = encode_message({}, record())
    nested.config_records["message"]["head"] = "[" * 100_000
    for content in (RecordDict({}), foreign, listed, broken, nested):
        with pytest.raises(GenfedError):
            decode_message(content)
    decode_message(good)


def test_a_field_that_all_are_sent_is_made_once() -> None:
    once, weights = ArrayCache(), torch.zeros(4)
    made = [once("weights", Packed({"Sent.weights": weights}, "")) for _ in range(2)]
    assert made[0] is made[1]
    assert once("weights", Packed({"Sent.weights": torch.ones(4)}, "")) is not made[0]


class Grid:
    """Answers as it is told, each message after so many looks."""

    def __init__(self, answer: Any, after: int = 0) -> None:
        self._answer, self._after = answer, after
        self._due: dict[str, int] = {}
        self._content: dict[str, Any] = {}
        self.most = self.pushed = 0

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        names = []
        for message in messages:
            name = f"message-{self.pushed}"
            self.pushed += 1
            self._due[name], self._content[name] = self._after, message
            names.append(name)
        self.most = max(self.most, len(self._due))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        replies = []
        for name in names:
            self._due[name] -= 1
            if self._due[name] < 0 and (reply := self._answer(self._content[name])) is not None:
                del self._due[name]
                reply.metadata = SimpleNamespace(reply_to_message_id=name)
                replies.append(reply)
        return replies

    def get_node_ids(self) -> list[int]:
        return [100 + info.id for info in CLIENTS]


def replied(content: Any) -> Any:
    return SimpleNamespace(has_error=lambda: False, content=content)


def failed(code: int, reason: str = "") -> Any:
    return SimpleNamespace(has_error=lambda: True, error=SimpleNamespace(code=code, reason=reason))


def echo(message: Any) -> Any:
    _, body = decode_message(message.content)
    return replied(encode_message({"weight": 2.0, "metrics": {"loss": 0.5}, "seconds": 0.1}, body))


def exchange(grid: Grid, node_of: Any = lambda client: 100 + client, **post: Any) -> dict[int, PackedReply | Failure]:
    engine = FlowerEngine(MessageLink(grid, pause=0.001, **post), node_of)
    answers = list(engine.exchange(STEP, (Job(info, record(float(info.id))) for info in CLIENTS)))
    assert sorted(info.id for info, _ in answers) == [info.id for info in CLIENTS], "each is given once"
    return {info.id: answer for info, answer in answers}


def test_every_client_is_asked_at_its_node_and_its_answer_given_back() -> None:
    grid = Grid(echo, after=2)
    for client, answer in exchange(grid).items():
        assert isinstance(answer, PackedReply)
        assert (answer.weight, answer.metrics, answer.seconds) == (2.0, {"loss": 0.5}, 0.1)
        assert digest(answer.upload) == digest(record(float(client)))
    assert {m.metadata.dst_node_id for m in grid._content.values()} == {100, 101, 102, 103, 104}
    assert {m.metadata.ttl for m in grid._content.values()} == {PATIENCE + LATE}


def test_letters_on_their_way_are_bounded_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = Grid(echo, after=3)
    exchange(bounded, at_once=2)
    assert bounded.most == 2
    monkeypatch.setattr("genfed.engines.flower.engine.IN_FLIGHT", 3 * record().nbytes)
    by_size = Grid(echo, after=3)
    exchange(by_size)
    assert by_size.most == 3
    monkeypatch.setattr("genfed.engines.flower.engine.IN_FLIGHT", 1)
    alone = Grid(echo, after=1)
    exchange(alone)
    assert alone.most == 1


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({}, "its answer lacks a weight, metrics or seconds that are numbers"),
        ({"weight": "1", "metrics": {}, "seconds": 0}, "its answer lacks a weight"),
        ({"weight": True, "metrics": {}, "seconds": 0}, "its answer lacks a weight"),
        ({"weight": 1, "metrics": {"loss": None}, "seconds": 0}, "its answer lacks a weight"),
        ({"weight": 1, "metrics": [], "seconds": 0}, "its answer lacks a weight"),
        ({"weight": 10**400, "metrics": {}, "seconds": 0}, "its answer lacks a weight"),
        ({"weight": 1, "metrics": {"loss": -(10**400)}, "seconds": 0}, "its answer lacks a weight"),
        ({"weight": 1, "metrics": {}, "seconds": 10**400}, "its answer lacks a weight"),
        ({"failed": "no such phase"}, "no such phase"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(head: dict[str, Any], says: str) -> None:
    for answer in exchange(Grid(lambda _: replied(encode_message(head, record())))).values():
        assert isinstance(answer, Failure)
        assert answer.reason.startswith(says)
        assert not answer.fatal


def test_rubbish_is_a_failure() -> None:
    for answer in exchange(Grid(lambda _: replied(RecordDict({})))).values():
        assert isinstance(answer, Failure)
        assert "no message of genfed" in answer.reason


def test_a_client_whose_node_was_lost_is_asked_once_more() -> None:
    seen: list[int] = []

    def once(message: Any) -> Any:
        seen.append(message.metadata.dst_node_id)
        return failed(5) if seen.count(message.metadata.dst_node_id) == 1 else echo(message)

    engine = FlowerEngine(MessageLink(Grid(once), pause=0.001), lambda client: 100 + client)
    answers = list(engine.exchange(STEP, [Job(CLIENTS[0], record())]))
    assert isinstance(answers[0][1], PackedReply)
    assert engine.lost() == ["client 0: its node was lost; sent again"]
    assert engine.lost() == []
    always = exchange(Grid(lambda _: failed(8)))
    assert always == dict.fromkeys(range(5), Failure("its process died"))
    raised = exchange(Grid(lambda _: failed(2, "ValueError\nin line 3")))
    assert raised[0] == Failure("its node failed (Flower's code 2): ValueError in line 3")


def test_who_takes_too_long_or_is_not_there_is_left_out() -> None:
    begun = time.monotonic()
    late = exchange(Grid(lambda m: None if m.metadata.dst_node_id == 103 else echo(m)), timeout=0.2)
    assert time.monotonic() - begun < 5
    assert late.pop(3) == Failure("took longer than 0.2 s", late=True)
    assert all(isinstance(answer, PackedReply) for answer in late.values())
    absent = exchange(Grid(echo), node_of=lambda client: None if client == 2 else 100)
    assert absent.pop(2) == Failure("it is not connected")
    assert all(isinstance(answer, PackedReply) for answer in absent.values())


def test_a_client_that_comes_back_in_time_is_asked() -> None:
    back = time.monotonic() + 0.5
    engine = FlowerEngine(
        MessageLink(Grid(echo), pause=0.001), lambda _: 100 if time.monotonic() > back else None, patience=30.0
    )
    assert isinstance(dict(engine.exchange(STEP, [Job(CLIENTS[0], record())]))[CLIENTS[0]], PackedReply)


def test_a_link_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(echo)

    def gone(*words: Any) -> Any:
        raise ConnectionError("refused\nat line 7")

    for name in ("push_messages", "pull_messages"):
        with monkeypatch.context() as cut:
            cut.setattr(grid, name, gone)
            with pytest.raises(
                GenfedError, match=r"^the SuperLink does not answer \(ConnectionError: refused\); go on"
            ):
                exchange(grid)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_message_that_a_link_took_in_part_is_sent_again(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A link that was started again no longer knows what it waits for, and refuses what the server still sends."""
    grid, pushed = Grid(echo), list[str]()
    push = grid.push_messages

    def interrupted(messages: Any) -> Any:
        pushed.extend(message.object_id for message in messages)
        if len(pushed) <= times:
            raise ObjectPushError("object", 1, "session")
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", interrupted)
    if times == 3:
        with pytest.raises(GenfedError, match=r"^the SuperLink does not answer \(ObjectPushError"):
            exchange(grid)
    else:
        assert exchange(grid)
        assert len(set(pushed[: times + 1])) == 1, "the same message, which Flower keeps once"


@pytest.mark.parametrize("error", [ValueError("no\nlines"), GenfedError("known"), SystemExit(3), MemoryError()])
def test_a_node_answers_whatever_its_handler_does(error: BaseException) -> None:
    def handle(head: Any, body: Any, node: Any) -> Any:
        raise error

    message = Message(encode_message({}, record()), 1, "train", ttl=10)
    message.metadata.__dict__["_message_id"] = "x"
    reply = answer_message(handle, message, SimpleNamespace(node_config={}))
    head, _ = decode_message(reply.content)
    assert head["failed"].partition("; test_flower.py, line ")[0] in (
        "ValueError: no",
        "known",
        "SystemExit: 3",
        "MemoryError",
    )
    rubbish = answer_message(lambda *_: 3, message, SimpleNamespace(node_config={}))  # type: ignore[arg-type]
    assert "failed" in decode_message(rubbish.content)[0]


@pytest.mark.parametrize("version", ["1.40.2", "1.43.0", "2.0"])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(GenfedError, match=f"^Flower {version} is installed, and genfed needs 1.41 up to below 1.43; "):
        flower.check_version(version)


def test_without_flower_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny("fedavg")))
    start_without = "import sys; sys.modules['flwr'] = None; from genfed.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start_without, "run", str(tmp_path / "tiny.toml"), "--engine", "flower"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "genfed: Flower is not installed; install it with: pip install 'genfed[flower]'\n"


def test_ray_takes_no_calls_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes listen on all networks of the machine."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    simulation._demand_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(token := os.environ["RAY_AUTH_TOKEN"]) == 64
    simulation._demand_token()
    assert os.environ["RAY_AUTH_TOKEN"] == token, "a second simulation has the processes' first secret"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    simulation._demand_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # Ray's and Flower's own
def test_a_simulation_gives_the_bits_of_the_embedded_engine(tmp_path: Path) -> None:
    """FedAvg, GeFL and a client that fails."""
    changes = {"architectures": ["linear", "linear", "linear", "tests.toys:Raises"]}
    config = tiny("fedavg", "gefl", compute={"workers": 2}, federation=changes)
    start(config, tmp_path / "embedded")
    report = start(config, tmp_path / "flower", engine="flower")
    assert left_by(tmp_path / "flower") == left_by(tmp_path / "embedded")
    excluded = "train round 1: client 3 excluded: ValueError: this network cannot be trained; toys.py, line "
    assert any(line.startswith(excluded) for line in report.trials[0].failures)
