"""Messages between engines, sites and the server: answered, or refused with a GenfedError."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from genfed._version import __version__
from genfed.core.errors import GenfedError
from genfed.core.record import Packed, pack
from genfed.deployment.agreement import agreed_task, describe_label_sets, find_disagreements, number_sites
from genfed.deployment.roster import SiteRoster
from genfed.deployment.server import MECHANISMS
from genfed.engines.messages import PackedReply
from genfed.engines.round import Failure
from genfed.privacy import accounting
from genfed.privacy.accounting import account
from genfed.training.weights import Model
from tests.engines.test_round import CLIENTS, ask, good
from tests.fuzz.hostile import JSON, NUMBERS, TEXT, bounded, changed, fewer, refused_in_short

pytest.importorskip("flwr", reason="Flower is not installed")
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from genfed.config.reader import read_config
from genfed.engines.flower import client as flower_client
from genfed.engines.flower import engine as flower_engine
from genfed.engines.flower.messages import decode_message, encode_message

MODEL = pack(Model({"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}))
REPLY = {"weight": 3.0, "metrics": {"loss": 0.5}, "seconds": 1.0}
SITE = {
    "name": "a",
    "architecture": "linear",
    "kind": "image",
    "shape": [1, 8, 8],
    "classes": ["one", "two"],
    "examples": 20,
    "held_out": 5,
    "torch": "2.9",
    "device": "cpu",
    "memory": 2**33,
    "clock": 1e9,
    "demands": False,
}


@given(JSON | changed(REPLY), TEXT)
def test_any_header_and_skeleton_over_flower(head: Any, skeleton: str) -> None:
    content = encode_message(head, Packed(MODEL.tensors, skeleton))
    with bounded():
        try:
            found, body = decode_message(content)
        except GenfedError:
            return
        assert isinstance(found, dict)
        assert body.tensors.keys() == MODEL.tensors.keys()


@given(
    st.dictionaries(
        TEXT.filter(bool), st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9), max_size=3
    ),
    st.dictionaries(TEXT.filter(bool), st.binary(max_size=99), max_size=3),
    st.booleans(),
)
def test_any_content_over_flower(config: Any, arrays: dict[str, bytes], named: bool) -> None:
    texts = config | ({"head": "{}", "skeleton": "{}"} if named else {})
    record = ArrayRecord({k: Array("uint8", (len(data),), "safetensors", data) for k, data in arrays.items()})
    content = RecordDict({"message" if named else "other": ConfigRecord(texts), "tensors": record})
    with bounded():
        try:
            decode_message(content)
        except GenfedError as error:
            refused_in_short(error)


@given(JSON | changed(REPLY))
def test_any_header_of_a_reply(head: Any) -> None:
    """As the server reads it: a reply, or a failure of that client."""
    message: Any = SimpleNamespace(content=encode_message(head, MODEL), has_error=lambda: False)
    with bounded():
        found = flower_engine._read_reply(flower_engine._open_reply(message))
        assert isinstance(found, PackedReply | Failure)


@given(JSON | changed({"phase": "train", "round": 0, "number": 3}))
def test_any_round(value: Any) -> None:
    with bounded():
        try:
            step = flower_client._read_round(value)
        except GenfedError:
            return
        assert min(step.round, step.number) >= 0


UPLOAD = good(CLIENTS[1]).upload
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])


@st.composite
def uploads(draw: st.DrawFn) -> Packed:
    tensors = dict(UPLOAD.tensors)
    for path in draw(st.lists(st.sampled_from([*tensors, "Upload.more"]), max_size=2)):
        number = draw(st.floats())
        tensors[path] = torch.full(draw(SHAPES), number, dtype=torch.float64).to(draw(DTYPES))
        if draw(st.booleans()):
            del tensors[path]
    return Packed(
        tensors, json.dumps(draw(st.just(json.loads(UPLOAD.skeleton)) | changed(json.loads(UPLOAD.skeleton))))
    )


@given(uploads(), NUMBERS)
def test_any_reply_fails_at_most_its_own_client(upload: Packed, weight: Any) -> None:
    """A round of five clients, of which one answers what it likes."""
    header: Any = SimpleNamespace(
        content=encode_message(REPLY | {"weight": weight}, Packed({}, "{}")), has_error=lambda: False
    )
    answer = flower_engine._read_reply(flower_engine._open_reply(header))
    if isinstance(answer, PackedReply):
        answer = replace(answer, upload=upload)
    with bounded():
        asking = ask(lambda info: answer if info.id == 1 else good(info))
        list(asking)
        assert asking.failures.keys() <= {1}
        reduced = asking.reduced
    assert torch.isfinite(reduced["weights"]["w"]).all()
    assert len(reduced.clients) == 5 - len(asking.failures)


class Link:
    """Nodes whose answers are given."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def nodes(self) -> list[int]:
        return list(range(len(self.answers)))

    def registered(self) -> dict[int, str]:
        return {}

    def post(self, kind: str, envelope: Any) -> None:
        assert envelope.head["ask"] == "refused"

    def send(self, kind: str, envelopes: Any, group: str = "", timeout: float | None = None) -> Any:
        return [(key, (self.answers[envelope.to], Packed({}, "{}"))) for key, envelope in envelopes]


CONFIG = read_config({"name": "run", "methods": ["fedavg"], "data": {"kind": "digits"}, "federation": {"clients": 2}})
OTHERS = st.dictionaries(st.sampled_from(sorted(SITE)), JSON, max_size=2)
SAID = changed(SITE, most=3) | OTHERS.map(lambda others: SITE | others) | st.dictionaries(TEXT, JSON, max_size=4)


@given(st.lists(SAID, min_size=1, max_size=3))
@example([SITE | {"kind": "pictures"}])
@example([SITE | {"shape": [-1, 0]}])
@example([SITE | {"shape": [2**60, 2**60]}])
@example([SITE | {"classes": []}])
@example([SITE | {"clock": float("nan")}])
def test_any_description_of_a_site(answers: list[Any]) -> None:
    link: Any = Link([said if isinstance(said, dict) else {} for said in answers])
    roster = SiteRoster(link)
    with bounded():
        roster.look()
        here = roster.here()
        assert len(here) + len(roster.refused) == len(answers)
        assert all("\n" not in line for line in roster.refused.values())
        find_disagreements(CONFIG, here)
        if here:
            describe_label_sets(here)
            number_sites(here)
            task = agreed_task(here)
            assert 1 <= torch.Size(task.shape).numel() < 2**96
            assert task.classes


@fewer
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=40) | JSON)
def test_any_cost_that_a_site_reports(said: Any) -> None:
    with bounded(seconds=60, megabytes=100):
        try:
            mechanisms = MECHANISMS.validate_python(said)
        except ValidationError:
            return
        assert len(mechanisms) <= 32
        assert account(mechanisms, 1e-5, "prv").epsilon >= 0


@fewer
@given(
    st.lists(
        st.tuples(
            st.floats(1e-3, 1e6),
            st.floats(1e-9, 1) | st.sampled_from([1e-9, 0.5, 1.0]),
            st.integers(0, 10**9) | st.sampled_from([0, 1, 10**9]),
        ),
        max_size=2,
    ),
    st.floats(-300, -0.01).map(lambda power: 10**power),
)
def test_any_cost_within_bounds_has_an_epsilon(mechanisms: list[Any], delta: float) -> None:
    with patch.object(accounting, "PRV_POINTS", 2**18):  # so that an example takes less than a second
        by_prv, by_rdp = account(mechanisms, delta, "prv"), account(mechanisms, delta, "rdp")
    assert 0 <= by_prv.epsilon <= by_rdp.epsilon + 0.03
    assert (by_prv.accountant == "prv") == (by_prv.note == "")


def test_a_valid_message_passes_all_of_this() -> None:
    found = flower_engine._read_reply(
        flower_engine._open_reply(SimpleNamespace(content=encode_message(REPLY, MODEL), has_error=lambda: False))
    )
    assert isinstance(found, PackedReply)
    assert found.weight == 3
    link: Any = Link([SITE])
    roster = SiteRoster(link)
    roster.look()
    assert not roster.refused
    assert agreed_task(roster.here()).classes == ("one", "two")
    assert __version__
