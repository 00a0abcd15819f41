"""Masks cancel only between clients that were sent the same, as far as clients of two architectures can be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reply
from genfed.secure_aggregation.crypto import new_signing_key, signer_of
from genfed.secure_aggregation.fixed_point import SCALE
from genfed.secure_aggregation.server_exchanges import ServerExchanges
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import state_keys
from tests.secure_aggregation.federation import Federation, play_over

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


def test_a_client_says_its_own_architecture() -> None:
    """A server that changes it breaks the signature, and one that a client invents is refused."""

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

    def up(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".keys") or client != 3:
            return record
        signer, changed = signer_of(new_signing_key()), {}
        for group, keys in record.keys.items():
            other = replace(keys, architecture="b", signing=signer.public)
            changed[group] = replace(other, signature=signer.sign(state_keys("train", group, 3, other)))
        return replace(record, keys=changed)

    round_ = play_over(Federation(INFOS, HOW, PHASE, up=up), PHASE)
    assert round_.failures == {3: "its keys are for another architecture than its own"}
