"""Records from anywhere: read, or refused with a RecordError."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from genfed.core.errors import RecordError
from genfed.core.record import Packed, digest, from_bytes, load, pack, save, to_bytes, unpack
from genfed.privacy.client_level import Release, ReleaseLedger
from genfed.privacy.ledger import Charge, Ledger
from genfed.privacy.plan import PrivacyPlan
from genfed.secure_aggregation.fixed_point import GroupVector
from genfed.secure_aggregation.messages import (
    Agreement,
    MaskedUpload,
    MaskKeys,
    Neighbors,
    OfferedKeys,
    RevealedShares,
    RevealRequest,
    SealedShare,
    SealedShares,
    SecureWork,
    Survivors,
)
from genfed.training.weights import Model
from tests.fuzz.hostile import JSON, bounded, changed, refused_in_short

MODEL = Model({"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)})
KEYS = MaskKeys("aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32, "cnn1", "ff" * 32, "ee" * 64)
VECTOR = GroupVector(torch.arange(3), '[["classifier", ["w"], "float32", [2]]]')
VALID: list[tuple[Any, Any]] = [
    (Model, MODEL),
    (MaskKeys, KEYS),
    (OfferedKeys, OfferedKeys({"": KEYS})),
    (Neighbors, Neighbors({"": {1: KEYS, 2: MaskKeys("", "", "", "", "", "")}})),
    (SealedShares, SealedShares({"": {1: "aa", 2: "bb"}}, {"": {0: "cc", 1: "dd"}})),
    (SecureWork[Model], SecureWork(MODEL, {"": {1: SealedShare("aa", "cc")}}, {"": 3})),
    (MaskedUpload, MaskedUpload({"": VECTOR}, {"": (2,)})),
    (Survivors, Survivors({"": (1, 2)}, {"": ()})),
    (Agreement, Agreement({"": "ee"})),
    (RevealRequest, RevealRequest({"": (1, 2)}, {"": ()}, {"": {1: "ee"}})),
    (RevealedShares, RevealedShares({"": {1: "aa"}})),
    (Ledger, Ledger((Charge("train", 0, 1, 0.5, 1.0, 3),))),
    (ReleaseLedger, ReleaseLedger((Release(0, "train", (1, 2), 1.0),))),
    (PrivacyPlan, PrivacyPlan({0: 1.0, 1: 2.0})),
]
VALIDS = st.sampled_from(VALID)
unhurried = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read(kind: Any, packed: Packed) -> None:
    """Reads a record; one that can be read can be written and read again."""
    with bounded():
        try:
            record = unpack(kind, packed)
        except RecordError as error:
            refused_in_short(error)
            return
        assert digest(pack(unpack(kind, pack(record)))) == digest(pack(record))


@given(VALIDS, JSON)
def test_any_json_for_a_skeleton(kind: tuple[Any, Any], node: Any) -> None:
    read(kind[0], Packed(pack(kind[1]).tensors, json.dumps(node)))


@given(VALIDS, st.data())
def test_a_changed_skeleton(kind: tuple[Any, Any], data: st.DataObject) -> None:
    packed = pack(kind[1])
    read(kind[0], Packed(packed.tensors, json.dumps(data.draw(changed(json.loads(packed.skeleton))))))


@given(VALIDS, st.text(max_size=200))
@example((Model, MODEL), "[" * 100_000)
@example((Model, MODEL), "9" * 100_000)
@example((Model, MODEL), '{"classifier": ' * 50_000)
def test_any_text_for_a_skeleton(kind: tuple[Any, Any], text: str) -> None:
    read(kind[0], Packed(pack(kind[1]).tensors, text))


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=4),
    st.text(max_size=8) | st.sampled_from(list(pack(MODEL).tensors)),
)
def test_other_tensors(dtype: torch.dtype, shape: list[int], path: str) -> None:
    packed = pack(MODEL)
    read(Model, Packed(packed.tensors | {path: torch.zeros(shape).to(dtype)}, packed.skeleton))


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    _, record = draw(VALIDS)
    data = bytearray(to_bytes(pack(record)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["set", "cut", "insert", "length"])):
            case "set":
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + draw(st.integers(1, 64))]
            case "insert":
                data[place:place] = draw(st.binary(max_size=32))
            case "length":
                data[:8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        if not data:
            break
    return bytes(data)


@given(st.binary(max_size=300) | changed_bytes(), VALIDS)
def test_any_bytes_for_a_record(data: bytes, kind: tuple[Any, Any]) -> None:
    with bounded():
        try:
            packed = from_bytes(data)
        except RecordError:
            return
    read(kind[0], packed)


@given(st.binary(max_size=300) | changed_bytes(), VALIDS)
@unhurried
def test_any_bytes_for_a_file(tmp_path: Path, data: bytes, kind: tuple[Any, Any]) -> None:
    file = tmp_path / "record.safetensors"
    file.write_bytes(data)
    with bounded():
        try:
            load(kind[0], file)
        except RecordError as error:
            refused_in_short(error)


def test_a_valid_record_passes_all_of_this(tmp_path: Path) -> None:
    for kind, record in VALID:
        read(kind, from_bytes(to_bytes(pack(record))))
        save(record, tmp_path / "record.safetensors")
        load(kind, tmp_path / "record.safetensors")
    with pytest.raises(AssertionError, match="MB"), bounded():
        bytearray(40_000_000)
