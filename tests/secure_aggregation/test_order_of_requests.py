"""A server that numbers and orders its requests as it likes learns no upload from clients that store what they do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Server, Slot
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.record import pack, unpack
from genfed.core.task import Data, Task
from genfed.engines.client_runner import ClientRunner, ClientRuntime
from genfed.engines.client_storage import DiskStorage
from genfed.engines.messages import RoundId
from genfed.secure_aggregation.client_exchanges import pair_seed, signed_mask
from genfed.secure_aggregation.crypto import expand_mask, is_signed, recover_secret, signer_of
from genfed.secure_aggregation.fixed_point import SCALE
from genfed.secure_aggregation.messages import SECRETS, Neighbors, RevealRequest, SealedShare, SecureWork, Survivors
from genfed.secure_aggregation.protocol import make_secure, name_exchanges
from genfed.secure_aggregation.sent import fingerprint_sent
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import state_survivors

N = 4
HOW = SecureAggregation()
NEEDED = HOW.needed(N - 1)
VICTIM = 0
OTHERS = range(1, N)


@dataclass(frozen=True)
class Upload:
    w: Tensor


@dataclass(frozen=True)
class Own:
    number: int


OWN = Slot("own", Own)


def upload(client: Client, sent: Empty) -> Reply[Upload]:
    return Reply(Upload(torch.full((3,), client.info.id + 0.25)))


def stay(client: Client, sent: Empty) -> Reply[Empty]:
    before = client.storage.get(OWN)
    client.storage.put(OWN, Own(before.number + 1 if before else 0))
    return Reply(Empty())


def update(server: Server, state: Any, reduced: Reduced) -> Any:
    raise AssertionError("the server's own business")


def send(server: Server, state: Any, info: ClientInfo) -> Empty:
    return Empty()


class LyingServer:
    """A server over clients as runs have them, with their storage: phases "p" and "q" are summed up under masks, and
    "l" stores something and uploads nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.summed = [Phase[Any](name, update, send, upload, {"w": Mean()}) for name in "pq"]
        parts = [part for phase in self.summed for part in make_secure(phase, HOW, N)]
        self.folder = folder
        self.phases = {part.name: part for part in parts} | {"l": Phase[Any]("l", update, send, stay, slots=(OWN,))}
        data = Data(torch.zeros(N, 1, 2, 2), torch.zeros(N).long())
        infos = tuple(ClientInfo(i, "a", 1) for i in range(N))
        federation = FederatedData(
            Task("image", (1, 2, 2), ("x", "y")), infos, tuple((i, i + 1) for i in range(N)), data, data
        )
        network: Any = None
        self.runner = ClientRunner(self.phases, federation, folder, 0, ClientRuntime(network))

    def ask(self, name: str, number: int, client: int, sent: Any) -> Any:
        reply = self.runner.work(RoundId(name, 0, number), client, pack(sent))
        return unpack(self.phases[name].wire_types.uploaded, reply.upload)

    def get_masked(self, first: int, name: str = "p") -> None:
        """Has all clients upload under masks, in three exchanges from `first` on."""
        self.keys = {i: self.ask(f"{name}.keys", first, i, Empty()).keys for i in range(N)}
        others = {i: {o: self.keys[o][""] for o in range(N) if o != i} for i in range(N)}
        shares = {i: self.ask(f"{name}.shares", first + 1, i, Neighbors({"": others[i]})) for i in range(N)}
        self.work = {
            i: SecureWork(
                Empty(),
                {"": {o: SealedShare(shares[o].sealed[""][i], shares[o].digests[""][i]) for o in others[i]}},
                {"": N},
            )
            for i in range(N)
        }
        self.masked = {i: self.ask(f"{name}.masked", first + 2, i, self.work[i]).masked[""].numbers for i in range(N)}

    def agree(self, number: int, clients: Iterable[int], gone: Iterable[int], name: str = "p") -> dict[int, str]:
        """Has clients sign who is left; returns the signatures."""
        return {i: self.ask(f"{name}.agree", number, i, Survivors(*fates(i, gone))).signatures[""] for i in clients}

    def reveal(
        self, number: int, clients: Iterable[int], gone: Iterable[int], signed: Mapping[int, str], name: str = "p"
    ) -> dict[int, dict[int, bytes]]:
        """Has clients reveal shares; returns them by owner and holder."""
        found: dict[int, dict[int, bytes]] = {}
        for i in clients:
            request = RevealRequest(*fates(i, gone), {"": {o: text for o, text in signed.items() if o != i}})
            for owner, share in self.ask(f"{name}.reveal", number, i, request).shares[""].items():
                found.setdefault(owner, {})[i] = bytes.fromhex(share)
        return found

    def read(self, seed: Mapping[int, bytes], key: Mapping[int, bytes]) -> list[float]:
        """The victim's upload, by shares of the seed of its own mask and of its masking key."""
        numbers = self.masked[VICTIM] - expand_mask(recover_secret(dict(seed), NEEDED), 4)
        private = recover_secret(dict(key), NEEDED).hex()
        for other in OTHERS:
            told = fingerprint_sent(self.summed[0], ClientInfo(VICTIM, "a", 1), "", Empty()).whole
            shared = pair_seed(private, self.keys[other][""].masking, "", told)
            numbers = numbers - signed_mask(VICTIM, other, shared, 4)
        values: list[float] = (numbers.double() / SCALE).tolist()
        return values


def fates(client: int, gone: Iterable[int]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    left = {*gone}
    stays = tuple(i for i in range(N) if i != client and i not in left)
    return {"": stays}, {"": tuple(sorted(left - {client}))}


@pytest.fixture
def server(tmp_path: Path) -> LyingServer:
    return LyingServer(tmp_path)


def open_twice(server: LyingServer, between: Callable[[int], object]) -> list[float]:
    """Opens a sum with the victim, then one as if it had left. `between`: called with each other client between."""
    server.get_masked(10)
    seeds = server.reveal(14, range(N), (), server.agree(13, range(N), ()))
    for i in OTHERS:
        between(i)
    keys = server.reveal(16, OTHERS, (VICTIM,), server.agree(15, OTHERS, (VICTIM,)))
    return server.read(seeds[VICTIM], keys[VICTIM])


@pytest.mark.parametrize("number", [0, 12, 13, 14])
def test_no_earlier_round_makes_a_client_forget_that_it_has_revealed(server: LyingServer, number: int) -> None:
    with pytest.raises(GenfedError, match=r"it has replied to p\.reveal since, and does no earlier l"):
        open_twice(server, lambda client: server.ask("l", number, client, Empty()))


@pytest.mark.parametrize("number", [15, 40])
def test_after_a_later_round_nothing_more_is_revealed(server: LyingServer, number: int) -> None:
    with pytest.raises(GenfedError, match=r"it answers p\.agree only after p\.masked of the same round"):
        open_twice(server, lambda client: server.ask("l", number, client, Empty()))


def test_signed_lists_are_a_second_line(server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests came in any order, a client that has signed one list would still sign no other."""
    monkeypatch.setattr(ClientRunner, "_recall", lambda *_: None)
    with pytest.raises(GenfedError, match="it has signed another list of survivors in this round"):
        open_twice(server, lambda client: server.ask("l", 13, client, Empty()))


@pytest.mark.parametrize(("name", "number"), [("p", 14), ("p", 12), ("q", 14), ("q", 13), ("p", 99)])
def test_a_client_signs_one_list_of_survivors(server: LyingServer, name: str, number: int) -> None:
    server.get_masked(10)
    signed = server.agree(13, [1], (3,))
    with pytest.raises(GenfedError, match=rf"it answers {name}\.agree only after {name}\.masked of the same round"):
        server.agree(number, [1], (2,), name)
    assert server.agree(13, [1], (2,)) == signed, "a repeated request gets the same reply"


def test_an_honest_server_that_was_killed_goes_on(server: LyingServer) -> None:
    """It repeats the round after its checkpoint, whichever it is and however far clients are in it."""
    for i in range(N):
        server.ask("l", 0, i, Empty())
    for killed_in in ("masked", "agree", "reveal"):
        first = {"masked": 5, "agree": 10, "reveal": 15}[killed_in]
        server.get_masked(first)
        if killed_in != "masked":
            signed = server.agree(first + 3, range(N), ())
        if killed_in == "reveal":
            server.reveal(first + 4, range(N), (), signed)
        server.get_masked(first)  # again, with new keys
        server.reveal(first + 4, range(N), (), server.agree(first + 3, range(N), ()))
    for _ in range(2):
        assert [server.ask("l", 40, i, Empty()) for i in range(N)] == [Empty()] * N
    server.get_masked(45, "q")


REQUESTS = st.tuples(
    st.sampled_from([*(f"p.{name}" for name in name_exchanges(HOW)), "q.agree", "q.reveal", "l"]),
    st.integers(9, 17),
    st.booleans(),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, min_size=1, max_size=12))
@example([("p.agree", 13, False), ("p.agree", 14, True)])
@example([("p.agree", 13, False), ("q.agree", 14, True)])
@example([("p.agree", 13, False), ("p.reveal", 14, False), ("l", 13, False), ("p.agree", 15, True)])
@example([("p.keys", 12, False), ("l", 11, False), ("p.agree", 13, False), ("p.agree", 14, True)])
def test_in_whatever_order_a_client_is_asked_it_signs_one_list_and_reveals_one_of_two_shares(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[str, int, bool]]
) -> None:
    """After its masked upload, client 1 is asked anything at any number, with the victim among the survivors or not.
    All others sign whatever the server likes.
    """
    server = LyingServer(tmp_path_factory.mktemp("any"))
    server.get_masked(10)
    statements, signed_by_others = list_statements(server), sign_as_others(server)
    neighbors = {o: server.keys[o][""] for o in range(N) if o != 1}
    signed, revealed = set[tuple[str, bool]](), set[bool]()
    for name, number, gone in requests:
        phase, _, exchange = name.rpartition(".")
        lists = fates(1, (VICTIM,) if gone else ())
        told = {
            "keys": Empty(),
            "l": Empty(),
            "shares": Neighbors({"": neighbors}),
            "masked": server.work[1],
            "agree": Survivors(*lists),
            "reveal": RevealRequest(*lists, {"": signed_by_others.get((phase, gone), {})}),
        }
        try:
            reply = server.ask(name, number, 1, told[exchange])
        except GenfedError:
            continue
        if exchange == "agree":
            key, text = server.keys[1][""].signing, reply.signatures[""]
            signed |= {which for which, statement in statements.items() if is_signed(key, text, statement)}
        if exchange == "reveal" and VICTIM in reply.shares[""]:
            revealed.add(gone)
    assert len(signed) <= 1
    assert len(revealed) <= 1


def list_statements(server: LyingServer) -> dict[tuple[str, bool], bytes]:
    """What clients can sign with the keys of this round, by phase and whether the victim has left."""
    keys = {i: server.keys[i][""] for i in range(N)}
    return {
        (phase, gone): state_survivors(phase, "", keys, range(N), OTHERS if gone else range(N))
        for phase in "pq"
        for gone in (False, True)
    }


def sign_as_others(server: LyingServer) -> dict[tuple[str, bool], dict[int, str]]:
    """Signatures of each statement by all clients but client 1."""
    stored = {i: DiskStorage(server.folder / str(i), 13, (SECRETS,)).get(SECRETS) for i in range(N) if i != 1}
    signers = {i: signer_of(secrets.signing) for i, secrets in stored.items() if secrets is not None}
    return {
        which: {i: signer.sign(statement) for i, signer in signers.items()}
        for which, statement in list_statements(server).items()
    }
