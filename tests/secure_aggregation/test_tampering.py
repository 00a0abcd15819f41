"""One client that sends what it should not: it is excluded and named, and the others go on."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genfed.core.aggregate import Fold
from genfed.core.errors import GenfedError
from genfed.secure_aggregation import client_exchanges
from genfed.secure_aggregation.crypto import new_key_pair, share_digest, split_secret
from genfed.secure_aggregation.fixed_point import FORM_KEYS, LONGEST_FORM, SCALE, GroupVector, check_form
from genfed.secure_aggregation.settings import SecureAggregation
from tests.fuzz.hostile import bounded, refused_in_short
from tests.secure_aggregation.federation import Seen, play
from tests.secure_aggregation.test_lying_server import PHASE, clients, own_keys, work

HOW = SecureAggregation(minimum_group=3)
INFOS = clients(6, 6)
BAD = 3
Change = Callable[[Any], Any]


def plain(ids: list[int]) -> Any:
    fold = Fold(PHASE.aggregate, [INFOS[i] for i in ids])
    for i in ids:
        fold.add(INFOS[i], work(_Anyone(i), None).upload, 1.0)  # type: ignore[arg-type]
    return fold.finish()


class _Anyone:
    def __init__(self, number: int) -> None:
        self.info = INFOS[number]


def at(exchange: str, change: Change, who: tuple[int, ...] = (BAD,)) -> Seen:
    return lambda name, client, record: change(record) if client in who and name.endswith(exchange) else record


def everywhere(field: str, value: Callable[[Any], Any]) -> Change:
    """Changes every value by client in a field of values by group and client."""
    return lambda record: replace(
        record, **{field: {g: {o: value(v) for o, v in by.items()} for g, by in getattr(record, field).items()}}
    )


def in_keys(**texts: str) -> Change:
    return lambda record: replace(record, keys={g: replace(keys, **texts) for g, keys in record.keys.items()})


def vectors(change: Callable[[GroupVector], Any]) -> Change:
    return lambda record: replace(record, masked={g: change(v) for g, v in record.masked.items()})


def form(text: str) -> Change:
    return vectors(lambda vector: replace(vector, form=text))


def groups(field: str, change: Callable[[Any], Any]) -> Change:
    return lambda record: replace(record, **{field: change(dict(getattr(record, field)))})


WEIGHTY = json.dumps([["w", [], "float32", [5]]])
EARLY: list[tuple[str, str, Change, str]] = [
    ("not hexadecimal", "keys", in_keys(sealing="zz"), "a public key is not 32 bytes in hexadecimal"),
    ("spaces", "keys", in_keys(sealing=" " * 64), "a public key is not 32 bytes in hexadecimal"),
    ("short key", "keys", in_keys(masking="00" * 5), "a public key is not 32 bytes in hexadecimal"),
    ("long key", "keys", in_keys(masking="00" * 500), "a public key is not 32 bytes in hexadecimal"),
    ("low key", "keys", in_keys(sealing="00" * 32, masking="00" * 32), "a public key cannot be used"),
    ("other key", "keys", in_keys(masking="09" + "00" * 31), "its keys are not signed by it"),
    ("no signature", "keys", in_keys(signature=""), "its keys are not signed by it"),
    ("signing text", "keys", in_keys(signing="ä" * 9), "its keys are not signed by it"),
    ("keys of none", "keys", groups("keys", lambda keys: {}), "its message is about other groups than its own"),
    ("keys for evil", "keys", groups("keys", lambda k: k | {"evil": k[""]}), "its message is about other groups"),
    ("no shares", "shares", groups("sealed", lambda s: {}), "its message is about other groups than its own"),
    ("no digests", "shares", groups("digests", lambda s: {}), "its message is about other groups than its own"),
    (
        "some shares",
        "shares",
        groups("sealed", lambda s: {g: dict(list(by.items())[1:]) for g, by in s.items()}),
        "its message is about other clients than was requested",
    ),
    (
        "share of a stranger",
        "shares",
        groups("sealed", lambda s: {g: by | {-1: by[0]} for g, by in s.items()}),
        "its message is about other clients than was requested",
    ),
    ("text for shares", "shares", everywhere("sealed", lambda v: "xyz"), "a sealed share is not 160 bytes"),
    ("huge shares", "shares", everywhere("sealed", lambda v: v * 1000), "a sealed share is not 160 bytes"),
    ("text for digests", "shares", everywhere("digests", lambda v: "x"), "a fingerprint is not 64 bytes"),
    ("closed shares", "shares", everywhere("sealed", lambda v: "00" * 160), "5 clients could not open the shares"),
    ("false digests", "shares", everywhere("digests", lambda v: "00" * 64), "5 clients could not open the shares"),
    ("form of nothing", "masked", form("["), "the form of its upload is not JSON"),
    ("deep form", "masked", form("[" * 100_000), "the form of its upload is nested too deeply"),
    ("no list", "masked", form("{}"), "the form of its upload does not describe"),
    ("number", "masked", form("7"), "the form of its upload does not describe"),
    ("empty form", "masked", form("[]"), "the form of its upload describes other values"),
    ("unknown field", "masked", form('[["x", [], "float32", [3]]]'), "the form of its upload does not describe"),
    ("unknown type", "masked", form('[["w", [], "quint8", [3]]]'), "the form of its upload does not describe"),
    ("negative size", "masked", form('[["w", [], "float32", [-3, -1]]]'), "the form of its upload does not describe"),
    ("one path twice", "masked", form('[["w", [], "int", []], ["w", [], "int", []], ["w", [], "int", []]]'),
     "the form of its upload describes other values"),
    ("path in a path", "masked", form('[["w", [], "int", []], ["w", ["a"], "float32", [2]]]'),
     "the form of its upload describes other values"),
    ("number with a shape", "masked", form('[["w", [], "int", [3]]]'), "the form of its upload does not describe"),
    ("lengths beside 0", "masked", form(f'[["w", [], "float32", [0, {2**62}, 2]]]'), "does not describe"),
    ("evil group", "masked", groups("masked", lambda m: {"evil": m[""]}), "its message is about other groups"),
    ("no group", "masked", groups("masked", lambda m: {}), "its message is about other groups than its own"),
    ("no unopened", "masked", groups("unopened", lambda m: {}), "its message is about other groups than its own"),
    ("unopened twice", "masked", groups("unopened", lambda m: dict.fromkeys(m, (1, 1))), "it names a client"),
    ("unopened stranger", "masked", groups("unopened", lambda m: dict.fromkeys(m, (-1,))), "it names a client"),
    ("floats", "masked", vectors(lambda v: replace(v, numbers=v.numbers.double())), "no vector of whole numbers"),
    ("matrix", "masked", vectors(lambda v: replace(v, numbers=v.numbers[None])), "no vector of whole numbers"),
    ("scalar", "masked", vectors(lambda v: replace(v, numbers=v.numbers[0])), "no vector of whole numbers"),
    ("empty", "masked", vectors(lambda v: replace(v, numbers=v.numbers[:0])), "describes other values|has other names"),
    ("longer", "masked", vectors(lambda v: GroupVector(torch.cat([v.numbers, v.numbers[:2]]), WEIGHTY)),
     "does not describe|has other names, shapes or types than the others"),
    ("another form", "masked", vectors(lambda v: replace(v, form=v.form.replace(" ", ""))),
     "its upload has other names, shapes or types than the others"),
]  # fmt: skip
LATE: list[tuple[str, str, Change, str]] = [
    ("no consent", "agree", groups("signatures", lambda s: {}), "its message is about other groups than its own"),
    ("false consent", "agree", groups("signatures", lambda s: dict.fromkeys(s, "00" * 64)), "it has not signed"),
    ("text", "agree", groups("signatures", lambda s: dict.fromkeys(s, "signed")), "it has not signed"),
    ("bad shares", "reveal", everywhere("shares", lambda v: "ff" * 66), "is not the one that it was given"),
    ("text shares", "reveal", everywhere("shares", lambda v: "nothex"), "a share is not 66 bytes in hexadecimal"),
    ("no shares", "reveal", groups("shares", lambda s: {}), "its message is about other groups than its own"),
    ("own shares alone", "reveal", groups("shares", lambda s: {g: {BAD: by[BAD]} for g, by in s.items()}),
     "its message is about other clients than was requested"),
    ("share of a stranger", "reveal", groups("shares", lambda s: {g: by | {99: "00" * 66} for g, by in s.items()}),
     "its message is about other clients than was requested"),
]  # fmt: skip


HOSTILE = {
    "long path": json.dumps([["w", ["a"] * 5_000, "float32", [3]]]),
    "long paths": json.dumps([["w", [i] * 2_000, "int", []] for i in range(50)]),
    "huge lengths": json.dumps([["w", [], "float32", [10**4000] * 1_000]]),
    "many lengths": json.dumps([["w", [], "float32", [2**62] * 100_000]]),
    "huge lengths and 0": json.dumps([["w", [], "float32", [10**4000] * 1_000 + [0]]]),
    "huge number": "9" * 1_000_000,
    "long": " " * LONGEST_FORM + "[]",
}
"""Forms that cost much more to understand than to send, by name."""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_form_that_costs_much_excludes_its_client_alone(text: str) -> None:
    with bounded(), pytest.raises(GenfedError, match="the form of its upload ") as caught:
        check_form(text, PHASE.aggregate, 3)
    refused_in_short(caught.value)
    round_ = play(INFOS, HOW, PHASE, up=at("masked", form(text)))
    assert round_.failures == {BAD: str(caught.value)}
    assert torch.equal(round_.reduced["w"], plain([0, 1, 2, 4, 5])["w"])


def test_the_form_of_a_large_model_is_read() -> None:
    """That of 5,000 tensors, each at the end of the longest path."""
    path = [f"block {i}" for i in range(FORM_KEYS - 1)]
    check_form(json.dumps([["w", [*path, i], "float32", [2, 3]] for i in range(5_000)]), PHASE.aggregate, 30_000)


@pytest.mark.parametrize(("exchange", "change", "says"), [c[1:] for c in EARLY], ids=[c[0] for c in EARLY])
def test_a_bad_message_before_the_sum_excludes_its_client_alone(exchange: str, change: Change, says: str) -> None:
    round_ = play(INFOS, HOW, PHASE, up=at(exchange, change))
    assert list(round_.failures) == [BAD]
    assert re.search(says, round_.failures[BAD])
    assert [info.id for info in round_.reduced.clients] == [0, 1, 2, 4, 5]
    expected = plain([0, 1, 2, 4, 5])
    assert torch.equal(round_.reduced["w"], expected["w"])
    assert torch.equal(round_.reduced["head"]["a"], expected["head"]["a"])


@pytest.mark.parametrize(("exchange", "change", "says"), [c[1:] for c in LATE], ids=[c[0] for c in LATE])
def test_a_bad_message_after_the_upload_is_named_and_the_upload_counts(
    exchange: str, change: Change, says: str
) -> None:
    round_ = play(INFOS, HOW, PHASE, up=at(exchange, change))
    assert list(round_.failures) == [BAD]
    assert round_.failures[BAD].startswith("its upload is in the sum, but then: ")
    assert says in round_.failures[BAD]
    assert torch.equal(round_.reduced["w"], plain([0, 1, 2, 3, 4, 5])["w"])


def test_a_key_that_another_client_has_offered_is_refused() -> None:
    first: list[Any] = []

    def up(exchange: str, client: int, record: Any) -> Any:
        if exchange.endswith(".keys"):
            first.append(record)
            if client == BAD:
                return first[0]
        return record

    round_ = play(INFOS, HOW, PHASE, up=up)
    assert round_.failures == {BAD: "its keys are not signed by it"}

    def alike(exchange: str, client: int, record: Any) -> Any:  # signed anew by the thief
        if exchange.endswith(".keys") and client == BAD:
            made = {g: own_keys(BAD, g)[0] for g in record.keys}
            return replace(record, keys={g: replace(k, signing=first[0].keys[g].signing) for g, k in made.items()})
        return record

    assert play(INFOS, HOW, PHASE, up=alike).failures == {BAD: "its keys are not signed by it"}


def test_shares_that_open_and_are_of_no_secret_begin_the_round_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other client can tell: the sum cannot be unmasked, so the others are added up without that one."""
    real = split_secret
    calls: list[int] = []

    def split(secret: bytes, holders: Any, threshold: int) -> dict[int, bytes]:
        calls.append(len(holders))
        shares = real(secret, holders, threshold)
        if len(calls) in (4 * BAD + 1, 4 * BAD + 3):  # the seeds of that client
            return {h: bytes(1) + bytes([h]) * 65 for h in holders}
        return shares

    monkeypatch.setattr(client_exchanges, "split_secret", split)
    round_ = play(INFOS, HOW, PHASE)
    assert round_.failures == {BAD: "the shares of a secret do not fit one another"}
    assert torch.equal(round_.reduced["w"], plain([0, 1, 2, 4, 5])["w"])
    assert share_digest(b"") != share_digest(b"0")


def test_a_key_that_cannot_be_recovered_begins_the_round_again() -> None:
    """A client shares another key than its own, and leaves."""
    others: Any = {}

    def up(exchange: str, client: int, record: Any) -> Any:
        if exchange.endswith(".keys") and client == BAD and not others:
            others.update(record.keys)
        return record

    real = split_secret

    def split(secret: bytes, holders: Any, threshold: int) -> dict[int, bytes]:
        return real(secret if len(holders) < 6 or secret != SECRET.get("key") else bytes(32), holders, threshold)

    SECRET: dict[str, bytes] = {}
    made = new_key_pair
    count = 0

    def pair() -> tuple[bytes, bytes]:
        nonlocal count
        count += 1
        found = made()
        if count == 4 * BAD + 2:  # the masking key of that client in its first group
            SECRET["key"] = found[0]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_exchanges, "new_key_pair", pair)
        patch.setattr(client_exchanges, "split_secret", split)
        round_ = play(INFOS, HOW, PHASE, {2: [BAD]}, up)
    assert round_.failures == {BAD: "the shares of its key are of another key"}
    assert torch.equal(round_.reduced["w"], plain([0, 1, 2, 4, 5])["w"])


def test_when_too_few_are_left_one_line_says_so_and_names_a_client() -> None:
    tamper = at("shares", everywhere("sealed", lambda v: "00" * 160), (1, 3, 4, 5))
    with pytest.raises(GenfedError) as caught:
        play(INFOS, HOW, PHASE, up=tamper)
    assert "are left, and 3 are needed for a sum; client " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [10_000.0, -200.0, 0.0])
def test_weights_that_the_declared_examples_cannot_have_are_refused(weight: float) -> None:
    """Masks hide whose weight it is."""

    def heavier(vector: GroupVector) -> GroupVector:
        numbers = vector.numbers.clone()
        numbers[0] += round((weight - 6) * SCALE)
        return replace(vector, numbers=numbers)

    with pytest.raises(GenfedError, match=f"the weights add up to {weight:g}, and those clients declared 60 examples"):
        play(INFOS, HOW, PHASE, up=at("masked", vectors(heavier)))


def test_a_mean_out_of_all_proportion_never_becomes_state() -> None:
    def larger(vector: GroupVector) -> GroupVector:
        numbers = vector.numbers.clone()
        numbers[0] -= round(6 * SCALE) - 1
        numbers[1:] += 2**62
        return replace(vector, numbers=numbers)

    with pytest.raises(GenfedError, match="extractor round 1: the reduced w holds numbers that are not finite or far"):
        play(INFOS, HOW, PHASE, up=at("masked", vectors(larger)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whoever_leaves_or_sends_nonsense_the_sum_is_that_of_the_others_or_is_refused(data: st.DataObject) -> None:
    n = len(INFOS)
    early, late = [case[1:] for case in EARLY], [case[1:] for case in LATE]
    fate = st.sampled_from(["good"] * 5 + ["leaves", "early", "late"])
    fates = [data.draw(fate) for _ in range(n)]
    leaving: dict[int, list[int]] = {place: [] for place in range(5)}
    changes: dict[int, tuple[str, Change, str]] = {}
    for i, how in enumerate(fates):
        if how == "leaves":
            leaving[data.draw(st.integers(0, 4))].append(i)
        elif how != "good":
            changes[i] = data.draw(st.sampled_from(early if how == "early" else late))

    def up(exchange: str, client: int, record: Any) -> Any:
        if client in changes and exchange.endswith(changes[client][0]):
            try:
                return changes[client][1](record)
            except KeyError:  # the message has less to change where others have left
                return replace(record, **{name: {} for name in list(vars(record))[:1]})
        return record

    try:
        round_ = play(INFOS, HOW, PHASE, leaving, up)
    except GenfedError:
        assert fates.count("good") < HOW.needed(n - 1), "so many go on, whatever the others do"
        return
    summed = [info.id for info in round_.reduced.clients]
    excluded = {i for i in range(n) if fates[i] == "early" or any(i in leaving[place] for place in range(3))}
    assert set(summed) == set(range(n)) - excluded
    assert {i for i in range(n) if fates[i] != "good"} == set(round_.failures)
    assert torch.equal(round_.reduced["w"], plain(summed)["w"])
