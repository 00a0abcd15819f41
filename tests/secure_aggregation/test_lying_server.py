"""A server that lies to its clients learns no upload: not by different lists, nor by other groups, ids or keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Fold, Mean
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.record import pack, unpack
from genfed.secure_aggregation.client_exchanges import ClientExchanges, pair_seed, signed_mask
from genfed.secure_aggregation.crypto import (
    Signer,
    agree_key,
    expand_mask,
    new_key_pair,
    new_signing_key,
    recover_secret,
    seal,
    share_digest,
    signer_of,
    split_secret,
    unseal,
)
from genfed.secure_aggregation.fixed_point import SCALE
from genfed.secure_aggregation.messages import (
    MaskKeys,
    Neighbors,
    RevealRequest,
    SealedShare,
    SecureSession,
    SecureWork,
    Survivors,
)
from genfed.secure_aggregation.protocol import make_secure
from genfed.secure_aggregation.sent import SentFingerprints, fingerprint_sent
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.secure_aggregation.statements import state_keys
from tests.secure_aggregation.federation import Federation, Seen, play_over


@dataclass(frozen=True)
class Sent:
    a: float


@dataclass(frozen=True)
class Upload:
    w: Tensor
    head: Tensor


def work(client: Client, sent: Sent) -> Reply[Upload]:
    return Reply(Upload(torch.full((3,), client.info.id + 0.25), torch.full((2,), client.info.id + 0.5)))


def keep(server: Server, state: Any, reduced: Reduced) -> Any:
    raise AssertionError("the run's own business")


def send(server: Server, state: Any, info: ClientInfo) -> Sent:
    return Sent(1.0)


PHASE: Phase[Any] = Phase("extractor", keep, send, work, {"w": Mean(), "head": Mean(by="architecture")})
HOW = SecureAggregation()
TOLD = fingerprint_sent(PHASE, ClientInfo(0, "a", 10), "", Sent(1.0)).whole


def clients(count: int, of_a: int) -> list[ClientInfo]:
    return [ClientInfo(i, "a" if i < of_a else "b", 10) for i in range(count)]


@dataclass
class Spy:
    """What a server has learned: masked numbers, and shares of seeds and of keys, by group and owner."""

    masked: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    seeds: dict[tuple[str, int], dict[int, bytes]] = field(default_factory=dict)
    keys: dict[tuple[str, int], dict[int, bytes]] = field(default_factory=dict)
    public: dict[int, Mapping[str, MaskKeys]] = field(default_factory=dict)
    told: dict[int, Any] = field(default_factory=dict)

    def up(self, exchange: str, client: int, record: Any) -> Any:
        if exchange.endswith(".keys"):
            self.public[client] = record.keys
        if exchange.endswith(".masked"):
            self.masked |= {(group, client): vector.numbers.clone() for group, vector in record.masked.items()}
        if exchange.endswith(".reveal"):
            for group, shares in record.shares.items():
                for owner, share in shares.items():
                    gone = owner in self.told[client].dropped[group]
                    known = (self.keys if gone else self.seeds).setdefault((group, owner), {})
                    known[client] = bytes.fromhex(share)
        return record

    def recovered(self, which: Mapping[tuple[str, int], Mapping[int, bytes]], needed: int) -> dict[Any, bytes]:
        return {at: recover_secret(shares, needed) for at, shares in which.items() if len(shares) >= needed}


def lie(
    infos: list[ClientInfo],
    how: SecureAggregation,
    change: Seen,
    signers: Mapping[int, Signer] | None = None,
    told: Mapping[int, str] | None = None,
) -> tuple[Spy, Federation]:
    """Plays a round in which `change` makes what each client is told. The server checks nothing itself, and goes on
    with whoever answers.
    """
    spy, server, asked, session = Spy(), None, infos, SecureSession(None)

    def down(exchange: str, client: int, record: Any) -> Any:
        record = change(exchange, client, record)
        if exchange.endswith(".reveal"):
            spy.told[client] = record
        return record

    federation: Any = Federation(infos, how, PHASE, up=spy.up, down=down, signers=signers, told=told)
    for phase in make_secure(PHASE, how, len(infos)):
        fold, answered = Fold(phase.aggregate, asked), []
        assert phase.send is not None
        for info in asked:
            try:
                sent = pack(phase.send(server, session, info))  # type: ignore[arg-type]
                upload = unpack(phase.wire_types.uploaded, federation.work(phase.name, info, sent))
            except GenfedError as error:
                federation.refusals[phase.name, info.id] = str(error)
                fold.skip(info)
            else:
                fold.add(info, upload, 1.0)
                answered.append(info)
        try:
            session = phase.update(server, session, Reduced(fold.finish(), tuple(answered)))  # type: ignore[arg-type]
        except (GenfedError, KeyError):  # whoever is left has not sent what the sum needs
            break
        asked = answered
    return spy, federation


def cross(n: int, of_a: int, victim: int) -> Seen:
    """Lists by which the victim's key becomes known in one group, and the seed of its mask in the other."""

    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith((".agree", ".reveal")):
            return record
        everyone = [o for o in range(n) if o != client]
        same = "a" if client < of_a else "b"
        alike = [o for o in everyone if (o < of_a) == (client < of_a)]
        survivors = {"": tuple(everyone), same: tuple(alike)}
        dropped: dict[str, tuple[int, ...]] = {"": (), same: ()}
        if client != victim and same == "a":
            survivors = {"": tuple(o for o in everyone if o != victim), "a": tuple(o for o in alike if o != victim)}
            dropped = {"": (), "a": (victim,)}
        return replace(record, survivors=survivors, dropped=dropped)

    return change


def test_lists_that_cross_two_groups_are_refused() -> None:
    spy, federation = lie(clients(10, 4), HOW, cross(10, 4, 0))
    assert {federation.refusals["extractor.agree", client] for client in (1, 2, 3)} == {
        "the survivors and those that left are not the clients that shared secrets with it"
    }
    assert not spy.recovered(spy.keys, HOW.needed(3))


def test_a_key_of_one_group_opens_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where no client checks its lists, a key that became known in one group unmasks nothing in another."""
    monkeypatch.setattr(
        ClientExchanges, "_checked_survivors", lambda self, me, secrets, survivors, dropped: dict(survivors)
    )
    monkeypatch.setattr(ClientExchanges, "_check_agreement", lambda *_: None)
    spy, federation = lie(clients(10, 4), HOW, cross(10, 4, 0))
    key = recover_secret(spy.keys["a", 0], HOW.needed(3)).hex()
    seed = recover_secret(spy.seeds["", 0], HOW.needed(9))
    assert key != "", "the lists do open the victim's key in one group, and its seed in the other"
    numbers = spy.masked["", 0] - expand_mask(seed, 4)
    for other in range(1, 10):
        numbers = numbers - signed_mask(0, other, pair_seed(key, spy.public[other][""].masking, "", TOLD), 4)
    assert (numbers.double() / SCALE).tolist() != [1.0, 0.25, 0.25, 0.25]
    for info in federation.infos:
        assert len({keys.masking for keys in spy.public[info.id].values()}) == 2


def split_lists(n: int, half: int, gone: int) -> Seen:
    """Half of the clients hear that one left, and the other half that it stayed."""

    def change(exchange: str, client: int, record: Any) -> Any:
        if exchange.endswith((".agree", ".reveal")) and client < half:
            out = {group: tuple(i for i in ids if i != gone) for group, ids in record.survivors.items()}
            return replace(record, survivors=out, dropped=dict.fromkeys(out, (gone,)))
        return record

    return change


def test_clients_that_hear_different_lists_reveal_nothing() -> None:
    spy, federation = lie([ClientInfo(i, "a", 10) for i in range(9)], HOW, split_lists(9, 5, 8))
    assert not spy.seeds
    assert not spy.keys
    assert len(federation.refusals) == 9
    assert all("are left, and 6 are needed for a sum" in said for said in federation.refusals.values())


def test_a_list_that_is_changed_after_it_was_signed_is_refused() -> None:
    def change(exchange: str, client: int, record: Any) -> Any:
        return split_lists(9, 9, 8)(exchange, client, record) if exchange.endswith(".reveal") else record

    spy, federation = lie([ClientInfo(i, "a", 10) for i in range(9)], HOW, change)
    assert {federation.refusals["extractor.reveal", i] for i in range(8)} == {
        "the survivors are not those that it has signed"
    }
    assert not spy.keys


def test_a_client_in_a_smaller_group_than_the_others_is_not_read() -> None:
    """The victim hears of two others alone; they hear of everybody, and that these two left."""
    n, victim, two = 9, 0, (1, 2)
    federation = Federation([ClientInfo(i, "a", 10) for i in range(n)], HOW, PHASE)
    exchanges = {name.rpartition(".")[2]: name for name in federation.phases[0]}

    def ask(exchange: str, client: int, sent: Any) -> Any:
        phase = federation.phases[client][exchanges[exchange]]
        assert phase.work is not None
        return phase.work(federation.client(federation.infos[client]), sent).upload

    keys = {i: ask("keys", i, None).keys for i in range(n)}
    circles = {i: [o for o in range(n) if o != i] for i in range(n)} | {victim: list(two)}
    shares = {
        i: ask("shares", i, Neighbors({g: {o: keys[o][g] for o in circles[i]} for g in ("", "a")})) for i in range(n)
    }
    for i in range(n):
        inbox = {
            g: {
                o: SealedShare(shares[o].sealed[g][i], shares[o].digests[g][i])
                for o in circles[i]
                if i in shares[o].sealed[g]
            }
            for g in ("", "a")
        }
        ask("masked", i, SecureWork(Sent(1.0), inbox, {"": n, "a": n}))
    said = {}
    for i in range(1, n):  # others hear that the two left; the victim is not known to them as a sender
        inside = [o for o in range(1, n) if o != i] + ([0] if i in two else [])
        gone = [] if i in two else list(two)
        lists = {g: tuple(o for o in inside if o not in gone) for g in ("", "a")}, dict.fromkeys(("", "a"), tuple(gone))
        said[i] = ask("agree", i, Survivors(*lists)).signatures
    mine = ask("agree", victim, Survivors(dict.fromkeys(("", "a"), two), {"": (), "a": ()})).signatures
    none: dict[str, tuple[int, ...]] = {"": (), "a": ()}
    small = RevealRequest(dict.fromkeys(("", "a"), two), none, {g: {o: said[o][g] for o in two} for g in ("", "a")})
    with pytest.raises(GenfedError, match="1 clients are left, and 3 are needed"):
        ask("reveal", victim, small)
    signed = {g: {0: mine[g]} | {o: said[o][g] for o in range(2, n)} for g in ("", "a")}
    whole = RevealRequest(dict.fromkeys(("", "a"), tuple(o for o in range(n) if o != 1)), none, signed)
    with pytest.raises(GenfedError, match=r"\d clients are left, and 6 are needed"):
        ask("reveal", 1, whole)


def own_keys(client: int, group: str, signer: Signer | None = None) -> tuple[MaskKeys, str]:
    """Keys that a server made for a client that it invents, and its private sealing key."""
    signer = signer or signer_of(new_signing_key())
    (sealing, public_sealing), (_, public_masking) = new_key_pair(), new_key_pair()
    keys = MaskKeys(public_sealing.hex(), public_masking.hex(), signer.public, "", "a", "")
    return replace(keys, signature=signer.sign(state_keys("extractor", group, client, keys))), sealing.hex()


@pytest.mark.parametrize("invented", [-1, -2, 4, 2**521 - 2, 2**32])
def test_ids_that_no_client_has_are_refused(invented: int) -> None:
    """A share at x = 0, the id −1, is the secret itself."""

    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".shares"):
            return record
        return Neighbors({g: near | {invented: own_keys(invented, g)[0]} for g, near in record.neighbors.items()})

    _, federation = lie([ClientInfo(i, "a", 10) for i in range(4)], HOW, change)
    assert set(federation.refusals.values()) == {f"{invented} is no client: ids are from 0 to 3"}
    with pytest.raises(GenfedError, match="holders of shares are different numbers from 0 on"):
        split_secret(bytes(32), [0, 1, min(invented, -1)], 2)


def test_a_share_at_minus_one_would_be_the_secret() -> None:
    """Why such ids are refused: the polynomial at 0, which Shamir's scheme never gives away."""
    secret, shares = bytes(range(32)), split_secret(bytes(range(32)), [0, 1, 2], 2)
    assert recover_secret({0: shares[0], 2: shares[2]}, 2) == secret


@pytest.mark.parametrize("exchange", ["agree", "reveal"])
@pytest.mark.parametrize("ids", [(1, 1, 2, 3), (0, 1, 2, 3), (-1, 1, 2, 3), (1, 2, 3, 9), (1, 2), ()])
def test_lists_with_ids_that_come_twice_or_are_no_client_s_are_refused(exchange: str, ids: tuple[int, ...]) -> None:
    def change(name: str, client: int, record: Any) -> Any:
        return replace(record, survivors=dict.fromkeys(record.survivors, ids)) if name.endswith(exchange) else record

    spy, federation = lie([ClientInfo(i, "a", 10) for i in range(4)], HOW, change)
    assert (f"extractor.{exchange}", 0) in federation.refusals
    assert 0 not in {holder for shares in (spy.seeds, spy.keys) for known in shares.values() for holder in known}


def test_a_client_is_in_the_lists_of_its_own_groups_alone() -> None:
    def change(name: str, client: int, record: Any) -> Any:
        return replace(record, neighbors=record.neighbors | {"b": {}}) if name.endswith("shares") else record

    _, federation = lie([ClientInfo(i, "a", 10) for i in range(4)], HOW, change)
    assert set(federation.refusals.values()) == {"the message is about other groups than its own"}


def trusting(count: int) -> dict[int, Signer]:
    """Clients that know one another's keys."""
    signers = {i: signer_of(new_signing_key()) for i in range(count)}
    known = frozenset(signer.public for signer in signers.values())
    return {i: replace(signer, trusted=known) for i, signer in signers.items()}


def invent(client: int, exchange: str, record: Any) -> Any:
    """All other clients are the server's own."""
    if not exchange.endswith(".shares"):
        return record
    return Neighbors({g: {o: own_keys(o, g)[0] for o in near} for g, near in record.neighbors.items()})


def test_a_server_that_invents_clients_is_refused_where_keys_are_known() -> None:
    infos = [ClientInfo(i, "a", 10) for i in range(5)]
    spy, federation = lie(infos, HOW, lambda exchange, client, record: invent(client, exchange, record), trusting(5))
    assert {federation.refusals["extractor.shares", i][9:] for i in range(5)} == {
        "signs with a key that this site does not know"
    }
    assert not spy.masked
    spy, federation = lie(infos, HOW, lambda exchange, client, record: record, trusting(5))
    assert not federation.refusals
    assert len(spy.masked) == 10


def same(exchange: str, client: int, record: Any) -> Any:
    return record


def test_clients_that_were_told_of_another_trial_are_in_no_sum_together() -> None:
    """Else the others could be told to train nothing, or to add little noise, and the sum would be the victim's."""
    infos = [ClientInfo(i, "a", 10) for i in range(5)]
    spy, federation = lie(infos, HOW, same, trusting(5), dict.fromkeys(range(5), "one"))
    assert not federation.refusals
    assert len(spy.masked) == 10
    spy, federation = lie(infos, HOW, same, trusting(5), {0: "another"} | dict.fromkeys(range(1, 5), "one"))
    assert not spy.masked
    assert federation.refusals == {
        ("extractor.shares", 0): "the server describes this trial otherwise to client 1",
        **{("extractor.shares", i): "the server describes this trial otherwise to client 0" for i in range(1, 5)},
    }


@pytest.mark.parametrize("leaving", [{}, {3: [6]}])
def test_clients_that_were_sent_another_model_are_in_no_sum_together(leaving: dict[int, list[int]]) -> None:
    """Else the others could be sent one from which they learn nothing, and the sum would say most about the victim."""

    def change(exchange: str, client: int, record: Any) -> Any:
        return replace(record, sent=Sent(2.0)) if exchange.endswith(".masked") and client == 0 else record

    infos = [ClientInfo(i, "a", 10) for i in range(7)]
    federation = Federation(infos, HOW, PHASE, leaving, down=change, signers=trusting(7))
    with pytest.raises(GenfedError, match=r"secure aggregation: the weights.* add up to"):
        play_over(federation, PHASE)
    assert not federation.refusals, "the masks do not cancel; nobody has to notice"
    alone = replace(PHASE, sends_alike=False)
    play_over(Federation(infos, HOW, alone, leaving, down=change, signers=trusting(7)), alone)


@dataclass(frozen=True)
class Parts:
    w: float
    head: float
    step: int


def test_clients_of_two_architectures_are_sent_the_same_but_what_is_uploaded_by_architecture() -> None:
    def told(of: str, group: str, *sent: Any) -> SentFingerprints:
        return fingerprint_sent(PHASE, ClientInfo(0, of, 10), group, Parts(*sent))

    assert told("a", "", 1.0, 2.0, 3).common_with("b") == told("b", "", 1.0, 4.0, 3).common_with("a")
    three = ((1.0, 2.0, 3), (1.5, 2.0, 3), (1.0, 2.0, 4))
    assert len({told("a", "", *sent).common_with("b") for sent in three}) == 3
    for group in ("", "a"):
        assert len({told("a", group, *sent).common_with("a") for sent in (*three, (1.0, 2.5, 3))}) == 4


def test_the_trial_of_which_another_was_told_cannot_be_forged() -> None:
    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".shares"):
            return record
        mine = "another" if client == 0 else "one"
        return Neighbors(
            {g: {o: replace(keys, trial=mine) for o, keys in near.items()} for g, near in record.neighbors.items()}
        )

    told = {0: "another"} | dict.fromkeys(range(1, 5), "one")
    spy, federation = lie([ClientInfo(i, "a", 10) for i in range(5)], HOW, change, trusting(5), told)
    assert not spy.masked
    assert federation.refusals["extractor.shares", 0] == "the keys of client 1 are not signed by it"


def test_keys_that_are_not_signed_by_their_client_are_refused() -> None:
    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith(".shares"):
            return record
        theirs = {
            g: {
                o: replace(own_keys(o, g)[0], signing=keys.signing, signature=keys.signature)
                for o, keys in near.items()
            }
            for g, near in record.neighbors.items()
        }
        return Neighbors(theirs)

    for signers in (None, trusting(5)):
        _, federation = lie([ClientInfo(i, "a", 10) for i in range(5)], HOW, change, signers)
        assert len(federation.refusals) == 5
        assert all(said.endswith("are not signed by it") for said in federation.refusals.values())


def test_without_known_keys_a_server_that_invents_clients_reads_an_upload() -> None:
    """What the documents say does not hold: a positive control of the test before it."""
    infos = [ClientInfo(i, "a", 10) for i in range(3)]
    federation = Federation(infos, HOW, PHASE)
    names = {name.rpartition(".")[2]: name for name in federation.phases[0]}

    def ask(exchange: str, sent: Any) -> Any:
        phase = federation.phases[0][names[exchange]]
        assert phase.work is not None
        return phase.work(federation.client(infos[0]), sent).upload

    offered = ask("keys", None).keys
    fake = {o: {g: own_keys(o, g) for g in ("", "a")} for o in (1, 2)}
    sealed = ask("shares", Neighbors({g: {o: fake[o][g][0] for o in fake} for g in ("", "a")}))
    junk = bytes(66)
    inbox = {
        g: {
            o: SealedShare(
                seal(
                    agree_key(bytes.fromhex(fake[o][g][1]), bytes.fromhex(offered[g].sealing), f"seal {o} 0 {g}"),
                    2 * junk,
                ).hex(),
                2 * share_digest(junk),
            )
            for o in fake
        }
        for g in ("", "a")
    }
    masked = ask("masked", SecureWork(Sent(1.0), inbox, {"": 3, "a": 3})).masked[""]
    both = {
        o: unseal(
            agree_key(bytes.fromhex(fake[o][""][1]), bytes.fromhex(offered[""].sealing), f"seal 0 {o} "),
            bytes.fromhex(sealed.sealed[""][o]),
        )
        for o in fake
    }
    seed = recover_secret({o: b[:66] for o, b in both.items()}, 2)
    key = recover_secret({o: b[66:] for o, b in both.items()}, 2).hex()
    numbers = masked.numbers - expand_mask(seed, 4)
    for o in fake:
        numbers = numbers - signed_mask(0, o, pair_seed(key, fake[o][""][0].masking, "", TOLD), 4)
    assert (numbers.double() / SCALE).tolist() == [1.0, 0.25, 0.25, 0.25]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_lists_a_server_tells_at_most_one_is_unmasked_and_it_is_large(data: st.DataObject) -> None:
    """Every client hears lists of its own, before and after signing. Then no client's two secrets are both known, and
    if any are, those of a list that enough have signed.
    """
    n = data.draw(st.integers(4, 6))
    gone = st.sets(st.integers(0, n - 1), max_size=2)
    common = data.draw(gone)
    own = {i: common if data.draw(st.booleans()) else data.draw(gone) for i in range(n)}
    later = {i: own[i] if data.draw(st.booleans()) else data.draw(gone) for i in range(n)}

    def change(exchange: str, client: int, record: Any) -> Any:
        if not exchange.endswith((".agree", ".reveal")):
            return record
        out = (own if exchange.endswith(".agree") else later)[client]
        others = [i for i in range(n) if i != client]
        survivors = tuple(i for i in others if i not in out)
        dropped = tuple(i for i in others if i in out)
        return replace(
            record, survivors=dict.fromkeys(record.survivors, survivors), dropped=dict.fromkeys(record.dropped, dropped)
        )

    spy, _ = lie([ClientInfo(i, "a", 10) for i in range(n)], HOW, change)
    needed = HOW.needed(n - 1)
    seeds, keys = spy.recovered(spy.seeds, needed), spy.recovered(spy.keys, needed)
    assert not seeds.keys() & keys.keys()
    for group in ("", "a"):
        of_group = {owner for at, owner in seeds if at == group}
        assert not of_group or len(of_group) >= HOW.quorum(n - 1)
        heard = {frozenset(own[i] - {i}) for known in spy.seeds.values() for i in known}
        assert len(heard) <= 1, "clients that reveal shares have all heard one list"


def test_a_client_signs_one_list_of_survivors() -> None:
    """With signatures of several lists a server could show each client another sum, smaller than it may be."""
    infos = clients(6, 6)

    def down(exchange: str, client: int, record: Any) -> Any:
        if exchange.endswith(".agree") and client == 0:
            fewer = {group: ids[:-1] for group, ids in record.survivors.items()}
            left = {group: (*record.dropped[group], ids[-1]) for group, ids in record.survivors.items()}
            agree = federation.phases[0][exchange].work
            assert agree is not None
            for _ in range(2):  # the same list again is no other
                agree(federation.client(infos[0]), Survivors(fewer, left))
        return record

    federation = Federation(infos, HOW, PHASE, down=down)
    play_over(federation, PHASE)
    assert federation.refusals == {("extractor.agree", 0): "it has signed another list of survivors in this round"}


@pytest.mark.parametrize(("members", "says"), [(5, "5 uploads of 4 clients"), (3, "fewer uploads")])
def test_a_sum_has_no_more_uploads_than_there_are_clients(members: int, says: str) -> None:
    """A client refuses numbers that are too large for a sum of this size: the server could make that happen."""

    def down(exchange: str, client: int, record: Any) -> Any:
        if isinstance(record, SecureWork):
            return replace(record, members=dict.fromkeys(record.members, members))
        return record

    worked: list[int] = []

    def watched(client: Client, sent: Sent) -> Reply[Upload]:
        worked.append(client.info.id)
        return work(client, sent)

    phase = replace(PHASE, work=watched, aggregate={"w": Mean(), "head": Mean()})
    federation = Federation(clients(4, 4), HOW, phase, down=down)
    with pytest.raises(GenfedError):
        play_over(federation, phase)
    assert federation.refusals
    assert all(says in text for text in federation.refusals.values())
    assert not worked
