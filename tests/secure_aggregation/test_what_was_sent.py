"""Masks cancel only between clients that were sent the same, as far as clients of two architectures can be. What they
were sent before must have been the same too, or it is forgotten.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Slot
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reply, flatten_phases
from genfed.methods.bases.federated_generator import GENERATOR_MEMORY, GeneratorMemory
from genfed.methods.gefl import GeFL
from genfed.secure_aggregation.crypto import new_signing_key, signer_of
from genfed.secure_aggregation.fixed_point import SCALE
from genfed.secure_aggregation.sent import HISTORY, ForgetfulStorage
from genfed.secure_aggregation.server_exchanges import ServerExchanges
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import state_keys
from genfed.training.optimizer_state import OptimizerState
from tests.secure_aggregation.federation import Federation, Kept, play_over

HOW = SecureAggregation()
INFOS = [ClientInfo(i, "a" if i < 4 else "b", 10) for i in range(8)]
HEADERS = {"a": 1.0, "b": 3.0}


@dataclass(frozen=True)
class Split:
    extractor: Tensor
    header: Tensor


def learn(client: Client, sent: Split) -> Reply[Split]:
    """The extractor changes by the header times a number of the client's own."""
    return Reply(Split(sent.extractor + sent.header * own(client.info.id), sent.header))


def own(client: int) -> float:
    return 0.25 * (client + 1)


def keep(server: Any, state: Any, reduced: Any) -> Any:
    raise AssertionError("the run's own business")


def send(server: Any, state: Any, info: ClientInfo) -> Split:
    return Split(torch.tensor([2.0]), torch.tensor([HEADERS[info.architecture]]))


PHASE: Phase[Any] = Phase("train", keep, send, learn, {"extractor": Mean(), "header": Mean(by="architecture")})


def send_header(header: Callable[[int], float | None]) -> Callable[[str, int, Any], Any]:
    """Sends each client the header that `header` gives, or its own if that is None."""

    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".masked") or (other := header(client)) is None:
            return record
        return replace(record, sent=replace(record.sent, header=torch.tensor([other])))

    return change


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """What the server finds by group, once it has removed all masks that it can."""
    found: dict[str, list[float]] = {}
    unmask = ServerExchanges._unmask

    def watched(self: ServerExchanges, server: Any, session: Any, group: str, shares: Any) -> Any:
        total = unmask(self, server, session, group, shares)
        found[group] = (total.numbers.double() / SCALE).tolist()
        return total

    monkeypatch.setattr(ServerExchanges, "_unmask", watched)
    return found


def sums(leave: tuple[int, ...] = (), headers: Mapping[str, float] = HEADERS) -> dict[str, list[float]]:
    """The sums of weights and of uploads, by group."""
    there = [info for info in INFOS if info.id not in leave]
    changes = sum(headers[info.architecture] * own(info.id) for info in there)
    found = {"": [len(there), 2.0 * len(there) + changes]}
    for architecture, header in headers.items():
        count = sum(info.architecture == architecture for info in there)
        found[architecture] = [count, count * header]
    return found


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("leave", [(), (3,), (3, 7)])
def test_clients_of_several_architectures_add_up_whoever_leaves(
    leave: tuple[int, ...], place: int, opened: dict[str, list[float]]
) -> None:
    play_over(Federation(INFOS, HOW, PHASE, {place: leave}), PHASE)
    assert opened == sums(leave if place < 3 else ())


@pytest.mark.parametrize("leave", [(), (3,), (7,)])
def test_a_server_that_sends_all_but_one_client_a_header_of_zeros_reads_no_extractor(
    leave: tuple[int, ...], opened: dict[str, list[float]]
) -> None:
    """The others would learn nothing, so that the sum of all extractors would be what one client learned."""
    lie = send_header(lambda client: None if client == 0 else 0.0)
    with pytest.raises(GenfedError, match="the weights"):
        play_over(Federation(INFOS, HOW, PHASE, {2: leave}, down=lie), PHASE)
    count = 8 - len(leave)
    assert opened[""][0] != count
    assert opened[""] != [count, 2.0 * count + own(0)]


def test_clients_of_one_architecture_alone_may_be_sent_another_header(opened: dict[str, list[float]]) -> None:
    """What does not hold: the sum then says most about the other architecture's clients, `minimum_group` or more."""
    play_over(Federation(INFOS, HOW, PHASE, down=send_header(lambda client: None if client < 4 else 0.0)), PHASE)
    assert opened == sums(headers={"a": 1.0, "b": 0.0})


def test_each_architecture_has_as_many_clients_as_a_sum() -> None:
    """Else what is sent to one architecture would be sent to one client."""
    infos = [ClientInfo(i, "a" if i < 2 else "b", 10) for i in range(7)]
    federation = Federation(infos, HOW, PHASE)
    federation.how = SecureAggregation(minimum_group=2)  # what the server says of itself
    with pytest.raises(GenfedError):
        play_over(federation, PHASE)
    said = "secure aggregation: 2 clients of architecture a are left, and 3 are needed for a sum"
    assert federation.refusals == {("train.shares", i): said for i in range(7)}


@pytest.mark.parametrize("exchange", ["masked", "agree", "reveal"])
def test_clients_of_one_architecture_cannot_be_said_to_have_left(exchange: str) -> None:
    """In the group of all clients, while the architecture's own group is complete."""

    def down(name: str, client: int, record: Any) -> Any:
        if not name.endswith(exchange):
            return record
        if exchange == "masked":
            return replace(record, inbox={g: without(by) if not g else by for g, by in record.inbox.items()})
        survivors = {g: tuple(without(dict.fromkeys(by))) if not g else by for g, by in record.survivors.items()}
        gone = tuple(other for other in (2, 3) if other != client)
        return replace(record, survivors=survivors, dropped=record.dropped | {"": gone})

    def without(by: Mapping[int, Any]) -> dict[int, Any]:
        return {other: value for other, value in by.items() if other not in (2, 3)}

    federation = Federation(INFOS, HOW, PHASE, down=down)
    with pytest.raises(GenfedError):
        play_over(federation, PHASE)
    said = "secure aggregation: 2 clients of architecture a are left, and 3 are needed for a sum"
    assert {federation.refusals[f"train.{exchange}", i] for i in (0, 1, 4, 5, 6, 7)} == {said}


def test_where_all_are_sent_the_same_an_architecture_may_have_one_client() -> None:
    infos = [ClientInfo(i, f"only {i}", 10) for i in range(4)]
    phase = replace(
        PHASE,
        aggregate={"extractor": Mean(), "header": Mean()},
        send=lambda *_: Split(torch.tensor([2.0]), torch.tensor([1.0])),
    )
    found = play_over(Federation(infos, HOW, phase, {2: [3]}), phase).reduced
    assert found["extractor"].item() == pytest.approx(2.5)


def test_a_server_cannot_say_of_what_architecture_a_client_is() -> None:

    def down(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".shares"):
            return record
        return replace(
            record,
            neighbors={
                g: {o: replace(keys, architecture="b") for o, keys in near.items()}
                for g, near in record.neighbors.items()
            },
        )

    federation = Federation(INFOS, HOW, PHASE, down=down)
    with pytest.raises(GenfedError):
        play_over(federation, PHASE)
    assert federation.refusals["train.shares", 7] == "the keys of client 0 are not signed by it"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "b"}, "its keys are for another architecture than its own"),
        ({"before": "x" * 99}, "a fingerprint of what it was sent before is not 32 bytes in hexadecimal"),
    ],
)
def test_a_client_that_says_of_itself_what_cannot_be_is_excluded(change: dict[str, str], says: str) -> None:
    def up(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".keys") or client != 3:
            return record
        signer, changed = signer_of(new_signing_key()), {}
        for group, keys in record.keys.items():
            other = replace(keys, signing=signer.public, **change)
            changed[group] = replace(other, signature=signer.sign(state_keys("train", group, 3, other)))
        return replace(record, keys=changed)

    assert play_over(Federation(INFOS, HOW, PHASE, up=up), PHASE).failures == {3: says}


@dataclass(frozen=True)
class Memory:
    steps: float
    """As Adam's second moment: the larger it is, the less is learned."""
    personal: float
    """Number of rounds, which is never forgotten."""


MEMORY = Slot("memory", Memory, forget=lambda memory: replace(memory, steps=0.0))


@dataclass(frozen=True)
class Step:
    size: float


def learn_on(client: Client, sent: Step) -> Reply[Step]:
    """Uploads a number of the client's own, which what it was sent before makes smaller."""
    held = client.storage.get(MEMORY) or Memory(0.0, 0.0)
    client.storage.put(MEMORY, Memory(held.steps + sent.size, held.personal + 1))
    return Reply(Step(own(client.info.id) / (1 + held.steps)))


STEPS: Phase[Any] = Phase("step", keep, lambda *_: Step(1.0), learn_on, {"size": Mean()}, slots=(MEMORY,))
ALL = sum(own(i) for i in range(8))


class Rounds:
    """Rounds of one federation, of which the server may give up some."""

    def __init__(self, opened: dict[str, list[float]], how: SecureAggregation = HOW) -> None:
        self.opened, self.lies = opened, dict[int, float]()
        self.federation = Federation(INFOS, how, STEPS, down=self.down)

    def down(self, exchange: str, client: int, record: Any) -> Any:
        return replace(record, sent=Step(self.lies[client])) if exchange == "step.masked" and self.lies else record

    def play(self, size: float = 1.0, leave: tuple[int, ...] = ()) -> float:
        """Plays a round, and returns the sum of its uploads."""
        self.lies, self.federation.leaving = {}, {2: leave}
        play_over(self.federation, replace(STEPS, send=lambda *_: Step(size)))
        return self.opened[""][1]

    def give_up(self) -> None:
        """Spoils what all but client 0 remember, in a round whose sum does not open."""
        self.lies = dict.fromkeys(range(8), 1e6) | {0: 1.0}
        with pytest.raises(GenfedError, match="the weights"):
            play_over(self.federation, STEPS)
        self.lies = {}

    def personal(self) -> list[float]:
        return [self.federation.kept[i].records[MEMORY.name].personal for i in range(8)]


def test_what_all_clients_were_sent_before_is_remembered(opened: dict[str, list[float]]) -> None:
    rounds = Rounds(opened)
    for number in range(3):
        assert rounds.play() == pytest.approx(ALL / (1 + number), abs=1e-5)


def test_a_round_that_is_given_up_makes_no_upload_stand_out(opened: dict[str, list[float]]) -> None:
    """The server spoils what all but client 0 remember. Then all are sent the same, and all forget."""
    rounds = Rounds(opened)
    rounds.give_up()
    assert rounds.play() == pytest.approx(ALL, abs=1e-5)
    assert rounds.play() == pytest.approx(ALL / 2, abs=1e-5)
    assert rounds.personal() == [3.0] * 8


def test_a_client_that_is_left_out_of_a_round_does_not_stand_out_in_the_next(opened: dict[str, list[float]]) -> None:
    rounds = Rounds(opened)
    assert rounds.play(1e6, leave=(0,)) == pytest.approx(ALL - own(0), abs=1e-5)
    assert rounds.play() == pytest.approx(ALL, abs=1e-5)
    assert rounds.play() == pytest.approx(ALL / 2, abs=1e-5)
    assert rounds.personal() == [2.0, *[3.0] * 7]


def test_a_server_cannot_say_that_clients_were_sent_the_same_before(opened: dict[str, list[float]]) -> None:
    rounds = Rounds(opened)
    rounds.give_up()

    def down(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".shares"):
            return record
        near, mine = record.neighbors[""], rounds.federation.kept[client].record.groups[""].public.before
        return replace(record, neighbors={"": {o: replace(keys, before=mine) for o, keys in near.items()}})

    rounds.federation.down = down
    with pytest.raises(GenfedError):
        play_over(rounds.federation, STEPS)
    assert rounds.federation.refusals["step.shares", 0] == "the keys of client 1 are not signed by it"


def test_a_client_works_only_with_the_memory_that_it_signed(opened: dict[str, list[float]]) -> None:
    """A server that gives an exchange the number of one before has a client sign what it remembered then, and work with
    what it was made to remember since.
    """
    rounds = Rounds(opened)
    rounds.play()
    signed = {i: dict(kept.records) for i, kept in rounds.federation.kept.items()}
    rounds.give_up()
    since = {i: dict(kept.records) for i, kept in rounds.federation.kept.items()}

    def down(exchange: str, client: int, record: Any) -> Any:
        kept = rounds.federation.kept[client]
        shown = {"step.keys": signed, "step.masked": since}.get(exchange, {}).get(client, {})
        kept.records |= {name: record for name, record in shown.items() if name in (HISTORY.name, MEMORY.name)}
        return record

    rounds.federation.down = down
    with pytest.raises(GenfedError):
        play_over(rounds.federation, STEPS)
    said = rounds.federation.refusals["step.masked", 0]
    assert said == "what it remembers is not what it signed in this round: it makes new keys first"


def test_with_few_neighbors_all_is_remembered(opened: dict[str, list[float]]) -> None:
    """It withstands no server that lies, and which clients are neighbors must change no sum."""
    rounds = Rounds(opened, SecureAggregation(neighbors=4, threshold=0.8, corrupt_share=0.2))
    rounds.play(leave=(0,))
    assert rounds.play() == pytest.approx(own(0) + (ALL - own(0)) / 2, abs=1e-5)


def test_clients_of_gefl_forget_the_moments_of_adam_and_keep_what_they_do_not_upload() -> None:
    weights = {"encoder": torch.ones(2)}
    memory = GeneratorMemory((OptimizerState({0: {"exp_avg": torch.ones(2)}}),), weights)
    storage = Kept()
    storage.put(GENERATOR_MEMORY, memory)
    held = ForgetfulStorage(storage).get(GENERATOR_MEMORY)
    assert held is not None
    assert held.moments == ()
    assert torch.equal(held.weights["encoder"], weights["encoder"])
    assert GENERATOR_MEMORY in next(iter(flatten_phases(GeFL().phases()))).slots
