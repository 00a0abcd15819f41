import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core import files
from genfed.core.errors import RecordError
from genfed.core.files import atomic_write, remove_parts
from genfed.core.record import Packed, digest, from_bytes, load, pack, save, to_bytes, unpack
from tests.fuzz.hostile import bounded

S = TypeVar("S")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS]
few = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Empty:
    pass


@dataclass(frozen=True)
class Leaf:
    tensor: Tensor  # the name of the mark that stands for tensors in a skeleton
    number: float


@dataclass(frozen=True)
class Everything:
    flag: bool
    count: int
    rate: float
    text: str
    kind: Literal["image", "table", 3]
    maybe: Tensor | None
    name: str | None
    row: tuple[Tensor, ...]
    pair: tuple[int, str]
    weights: dict[str, Tensor]
    shards: dict[int, Leaf]
    nested: dict[str, dict[int, tuple[float, ...]]]
    leaf: Leaf
    nothing: Empty


@dataclass(frozen=True)
class Checkpoint(Generic[S]):
    step: int
    state: S


@dataclass(frozen=True)
class One:
    x: Tensor


@dataclass(frozen=True)
class Many:
    x: tuple[Tensor, ...]


@dataclass(frozen=True)
class Keys:
    x: dict[str, Tensor]


@dataclass(frozen=True)
class Number:
    x: float


@dataclass(frozen=True)
class Count:
    x: int


@dataclass(frozen=True)
class Node:
    child: "Node | None" = None


def same(left: Any, right: Any) -> bool:
    """Equal in type and, of tensors and floats, in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)
    if isinstance(left, float):
        if math.isnan(left):  # JSON knows one NaN; those of tensors keep their payload
            return math.isnan(right)
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if hasattr(left, "__dataclass_fields__"):
        return all(same(getattr(left, f), getattr(right, f)) for f in left.__dataclass_fields__)
    return bool(left == right)


def bits(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return bytes(flat.view(torch.uint8).tolist())


def from_raw(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of these very bytes: for floats, any NaN payload."""
    if dtype == torch.bool:
        return torch.tensor([b & 1 for b in raw], dtype=torch.uint8).to(torch.bool).reshape(shape)
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    tensor = from_raw(draw(st.binary(min_size=size, max_size=size)), dtype, shape)
    match draw(st.sampled_from(["plain", "transposed", "expanded", "strided", "offset", "gradient"])):
        case "transposed" if tensor.dim() >= 2:
            return tensor.transpose(0, -1)
        case "expanded":
            return tensor.expand(2, *shape)
        case "strided" if tensor.dim() >= 1:
            return tensor[::2]
        case "offset" if tensor.dim() >= 1:
            return tensor[1:]
        case "gradient" if dtype.is_floating_point:
            return tensor.requires_grad_()
    return tensor


nasty = st.sampled_from(
    ["a.b", "", "'", '"', "[0]", "tensor", "x']['y", "\n", "\x00", "é", "\U0001f600", "\ud800", "0"]
)
keys = nasty | st.text(max_size=4)
integers = st.integers(-(2**80), 2**80)
words = keys
leaf_records = st.builds(Leaf, tensors(), st.floats())
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=integers,
    rate=st.floats(),
    text=words,
    kind=st.sampled_from(["image", "table", 3]),
    maybe=st.none() | tensors(),
    name=st.none() | words,
    row=st.lists(tensors(), max_size=3).map(tuple),
    pair=st.tuples(integers, words),
    weights=st.dictionaries(keys, tensors(), max_size=3),
    shards=st.dictionaries(st.integers(), leaf_records, max_size=3),
    nested=st.dictionaries(keys, st.dictionaries(integers, st.lists(st.floats(), max_size=2).map(tuple)), max_size=2),
    leaf=leaf_records,
    nothing=st.just(Empty()),
)


# What comes back is what went in.


@few
@given(everything)
def test_a_record_survives_a_message_and_a_checkpoint_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, record: Everything
) -> None:
    assert same(unpack(Everything, pack(record)), record)
    assert same(unpack(Everything, from_bytes(to_bytes(pack(record)))), record)
    kind, path = Checkpoint[Everything], tmp_path_factory.mktemp("record") / "state.safetensors"
    save(Checkpoint(3, record), path, durable=False)
    assert same(load(kind, path), Checkpoint(3, record))


@few
@given(everything)
def test_what_was_unpacked_packs_to_the_same_bytes_and_digest(record: Everything) -> None:
    packed = pack(record)
    again = pack(unpack(Everything, from_bytes(to_bytes(packed))))
    assert to_bytes(again) == to_bytes(packed)
    assert digest(again) == digest(packed)


@few
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=6))
def test_views_of_one_storage_that_overlap_or_are_empty_or_the_same_are_all_kept(cuts: list[tuple[int, int]]) -> None:
    base = torch.arange(8.0)
    record = Many((*(base[begin:stop] for begin, stop in cuts), base, base))
    assert same(unpack(Many, from_bytes(to_bytes(pack(record)))), record)


def test_the_same_tensor_in_two_fields_comes_back_as_two() -> None:
    x = torch.arange(3.0)
    back = unpack(Many, pack(Many((x, x))))
    back.x[0].zero_()
    assert back.x[1].tolist() == [0.0, 1.0, 2.0]


def test_what_can_be_a_view_is_one() -> None:
    x = torch.arange(10.0)
    packed = pack(Many((x[:5], x[5:])))
    assert [t.data_ptr() for t in packed.tensors.values()] == [x.data_ptr(), x.data_ptr() + 20]


def test_a_gradient_is_left_behind_and_the_record_untouched() -> None:
    x = torch.ones(2, requires_grad=True)
    back = unpack(One, pack(One(x))).x
    assert not back.requires_grad
    assert x.requires_grad


def test_a_lazily_negated_view_keeps_its_sign() -> None:
    x = torch.tensor([1 + 2j]).conj().imag
    assert x.is_neg()
    assert unpack(One, from_bytes(to_bytes(pack(One(x))))).x.tolist() == [-2.0]


@given(st.dictionaries(keys, st.integers(0, 255), max_size=6))
def test_no_two_keys_share_a_path(values: dict[str, int]) -> None:
    record = Keys({k: torch.tensor(v) for k, v in values.items()})
    assert len(pack(record).tensors) == len(values)
    back = unpack(Keys, from_bytes(to_bytes(pack(record))))
    assert {k: int(v) for k, v in back.x.items()} == values


def test_int_and_str_keys_of_the_same_looks_stay_apart() -> None:
    one, other = Checkpoint(0, {1: torch.zeros(1)}), Checkpoint(0, {"1": torch.zeros(1)})
    assert pack(one).tensors.keys() != pack(other).tensors.keys()
    with pytest.raises(RecordError, match=r"Checkpoint\.state: expected keys of type int, got '1'"):
        unpack(Checkpoint[dict[int, Tensor]], pack(other))


def test_an_int_is_read_where_a_float_is_expected_and_becomes_one() -> None:
    back = unpack(Number, pack(Number(3)))
    assert same(back, Number(3.0))


def test_the_order_of_a_dict_is_kept() -> None:
    record = Keys({"b": torch.zeros(1), "a": torch.ones(1)})
    assert list(unpack(Keys, from_bytes(to_bytes(pack(record)))).x) == ["b", "a"]


# Bytes, by hand.


def test_nbytes_is_the_text_and_the_tensors() -> None:
    packed = pack(Leaf(torch.zeros(3, 5, dtype=torch.float16), 1.5))
    assert packed.skeleton == '{"tensor": {"tensor": "Leaf.tensor"}, "number": 1.5}'
    assert packed.nbytes == 52 + 3 * 5 * 2


def test_nbytes_counts_an_expanded_tensor_in_full_and_a_view_once_for_each_field() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    packed = pack(Many((x.expand(4), x, x)))
    assert packed.nbytes == len(packed.skeleton) + 8 * (4 + 1 + 1)


def test_a_record_without_fields_weighs_nothing() -> None:
    assert pack(Empty()).nbytes == 0


# Values that no record may hold.


@dataclass(frozen=True)
class Anything:
    x: Any


def circle() -> dict[str, Any]:
    x: dict[str, Any] = {}
    x["x"] = x
    return x


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"Anything\.x: a record cannot hold a list"),
        ({"a": ({"b": {1}},)}, r"Anything\.x\['a'\]\[0\]\['b'\]: a record cannot hold a set"),
        (b"", r"Anything\.x: a record cannot hold a bytes"),
        (1j, r"Anything\.x: a record cannot hold a complex"),
        (torch.float32, r"Anything\.x: a record cannot hold a dtype"),
        ({1.5: 1}, r"Anything\.x: a record's dict has str or int keys, not 1\.5"),
        ({True: 1}, r"Anything\.x: a record's dict has str or int keys, not True"),
        ({None: 1}, r"Anything\.x: a record's dict has str or int keys, not None"),
        (torch.zeros(1, dtype=torch.complex64), r"Anything\.x: a record cannot hold a torch\.complex64 "),
        (torch.zeros(1, dtype=torch.complex128), r"Anything\.x: a record cannot hold a torch\.complex128 "),
        (torch.zeros(1, dtype=torch.float8_e5m2), r"Anything\.x: a record cannot hold a torch\.float8_e5m2 "),
        (torch.zeros(1, dtype=torch.uint16), r"Anything\.x: a record cannot hold a torch\.uint16 "),
        ((torch.eye(2).to_sparse(),), r"Anything\.x\[0\]: a record cannot hold a .* torch\.sparse_coo "),
        (torch.empty(2, device="meta"), r"Anything\.x: a record cannot hold a .* on meta"),
        (One, r"Anything\.x: a record cannot hold a type"),
        (10**5000, r"Anything: cannot be written as JSON"),
        (circle(), r"Anything: nested too deeply"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_no_record_may_hold_is_refused_by_its_path(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=f"^{message}"):
        pack(Anything(value))
    with pytest.raises(RecordError, match=message):
        save(Anything(value), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [3, None, {"x": 1}, One, torch.zeros(1)])
def test_only_a_dataclass_instance_is_a_record(value: Any) -> None:
    with pytest.raises(RecordError, match="a record is a dataclass instance, not a "):
        pack(value)


def test_a_chain_too_deep_for_python_is_refused_both_ways() -> None:
    node = Node()
    for _ in range(10_000):
        node = Node(node)
    with pytest.raises(RecordError, match="Node: nested too deeply"):
        pack(node)
    while node.child is not None:  # unlinked one by one: freeing it at once would recurse as well
        node = node.child
    with pytest.raises(RecordError, match="Node: "):
        unpack(Node, Packed({}, '{"child": ' * 100_000 + "null" + "}" * 100_000))


# Input that is not the record it should be.


def skeleton(kind: type[Any], text: str, **found: Tensor) -> Any:
    return unpack(kind, Packed({f"{kind.__name__}.{k}": v for k, v in found.items()}, text))


@dataclass(frozen=True)
class Typed:
    flag: bool = True
    count: int = 1
    rate: float = 1.0
    text: str = ""
    kind: Literal["a", 1] = "a"
    row: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "")
    table: dict[str, int] = field(default_factory=dict)
    inner: Number = Number(0.0)
    maybe: int | None = None


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("flag", 1, "Typed.flag: expected bool, got int"),
        ("flag", None, "Typed.flag: expected bool, got NoneType"),
        ("count", True, "Typed.count: expected int, got bool"),
        ("count", 1.0, "Typed.count: expected int, got float"),
        ("count", "1", "Typed.count: expected int, got str"),
        ("rate", True, "Typed.rate: expected float, got bool"),
        ("rate", "1", "Typed.rate: expected float, got str"),
        ("rate", 10**400, "Typed.rate: an integer too large for a float"),
        ("text", 1, "Typed.text: expected str, got int"),
        ("text", {"tensor": "Typed.text"}, "Typed.text: expected str, got dict"),
        ("kind", "b", "Typed.kind: expected one of ('a', 1), got 'b'"),
        ("kind", True, "Typed.kind: expected one of ('a', 1), got True"),
        ("kind", 1.0, "Typed.kind: expected one of ('a', 1), got 1.0"),
        ("kind", [], "Typed.kind: expected one of ('a', 1), got []"),
        ("row", {}, "Typed.row: expected a tuple, got dict"),
        ("row", [1, "2"], "Typed.row[1]: expected int, got str"),
        ("pair", [1], "Typed.pair: expected 2 items, got 1"),
        ("pair", [1, "", 2], "Typed.pair: expected 2 items, got 3"),
        ("pair", ["", 1], "Typed.pair[0]: expected int, got str"),
        ("table", {"a": 1}, "Typed.table: expected a dict, got dict"),
        ("table", [["a"]], "Typed.table: expected a dict, got list"),
        ("table", ["ab"], "Typed.table: expected a dict, got list"),
        ("table", [[1, 1]], "Typed.table: expected keys of type str, got 1"),
        ("table", [[[], 1]], "Typed.table: expected keys of type str, got []"),
        ("table", [["a", 1], ["a", 2]], "Typed.table: a key appears twice"),
        ("table", [["a", "b"]], "Typed.table['a']: expected int, got str"),
        ("inner", [1], "Typed.inner: expected a Number, got list"),
        ("inner", {}, "Typed.inner: Number lacks x"),
        ("inner", {"x": 1, "y": 2}, "Typed.inner: Number has no field y"),
        ("maybe", "", "Typed.maybe: expected int, got str"),
        ("maybe", False, "Typed.maybe: expected int, got bool"),
    ],
)
def test_a_wrong_node_is_refused_by_its_path(name: str, node: Any, message: str) -> None:
    tree = json.loads(pack(Typed()).skeleton)
    assert same(unpack(Typed, Packed({}, json.dumps(tree))), Typed())
    with pytest.raises(RecordError) as error:
        unpack(Typed, Packed({}, json.dumps(tree | {name: node})))
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["", "{", "nan", "'x'", "\x00", "{'x': 1}", '{"x": 1}}'])
def test_a_skeleton_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="Count: the skeleton is not JSON"):
        unpack(Count, Packed({}, text))


def test_a_skeleton_and_a_header_are_bounded() -> None:
    for text, says in (
        ("[" * 100_000, "Count: the skeleton is nested too deeply: more than 64 lists"),
        (" " * (2**26 + 1), "Count: the skeleton is longer than 67108864 characters"),
        ("[" + "1," * 2**22 + "1]", "Count: the skeleton is too large: it has more than 4194304 values"),
    ):
        with pytest.raises(RecordError, match=says):
            unpack(Count, Packed({}, text))
    with pytest.raises(RecordError, match="a header of 33554433 bytes; at most 33554432 are allowed"):
        from_bytes((2**25 + 1).to_bytes(8, "little") + b"{}")


def test_a_key_is_bounded_both_ways() -> None:
    most = Checkpoint(0, {"k" * 1000: {"l" * 1000: torch.ones(1)}})
    kind = Checkpoint[dict[str, dict[str, Tensor]]]
    assert same(unpack(kind, pack(most)), most)
    with pytest.raises(RecordError, match=r"state: a key of 1001 characters; at most 1000 are allowed"):
        pack(Checkpoint(0, {"k" * 1001: 1}))
    text = json.dumps({"step": 0, "state": [["k" * 1001, []]]})
    with pytest.raises(RecordError, match=r"state: a key of 1001 characters; at most 1000 are allowed"):
        unpack(kind, Packed({}, text))


@pytest.mark.parametrize("length", [1000, 3_000_000])
def test_what_long_keys_cost_does_not_grow_with_the_values_in_their_dict(length: int) -> None:
    """Each key is repeated in the paths of 20,000 values."""
    node: Any = [[i, 1.0] for i in range(20_000)]
    for letter in "ab":
        node = [[letter * length, node]]
    text = json.dumps({"step": 0, "state": node})
    with bounded(seconds=2.0), contextlib.suppress(RecordError):
        unpack(Checkpoint[dict[str, dict[str, dict[int, float]]]], Packed({}, text))


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"'])
def test_a_skeleton_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="Count: expected a Count, got "):
        unpack(Count, Packed({}, text))


def test_tensors_must_match_the_skeleton() -> None:
    mark, x = '{"x": {"tensor": "One.x"}}', torch.zeros(1)
    assert same(skeleton(One, mark, x=x), One(x))
    with pytest.raises(RecordError, match=r"^One\.x: the tensor is missing"):
        skeleton(One, mark)
    with pytest.raises(RecordError, match=r"^One: unexpected tensor One\.y"):
        skeleton(One, mark, x=x, y=x)
    for text in ('{"x": {"tensor": "One.y"}}', '{"x": "One.x"}', '{"x": null}', '{"x": {}}', '{"x": [1]}'):
        with pytest.raises(RecordError, match=r"^One\.x: the tensor is missing"):
            skeleton(One, text, x=x, y=x)
    with pytest.raises(RecordError, match=r"^One\.x: a record cannot hold a torch\.complex64 tensor"):
        skeleton(One, mark, x=x.to(torch.complex64))


def test_one_tensor_cannot_stand_in_two_places() -> None:
    text = '{"x": [{"tensor": "Many.x[0]"}, {"tensor": "Many.x[0]"}]}'
    with pytest.raises(RecordError, match=r"^Many\.x\[1\]: the tensor is missing"):
        unpack(Many, Packed({"Many.x[0]": torch.zeros(1)}, text))


def test_another_record_is_refused() -> None:
    with pytest.raises(RecordError, match=r"^Count\.x: expected int, got dict"):
        unpack(Count, pack(One(torch.zeros(1))))
    with pytest.raises(RecordError, match=r"^Keys\.x: expected a dict, got dict"):
        unpack(Keys, pack(One(torch.zeros(1))))
    with pytest.raises(RecordError, match=r"^Checkpoint\.state\.x: expected float, got str"):
        unpack(Checkpoint[Number], pack(Checkpoint(0, Anything("no"))))


@pytest.mark.parametrize("hint", [object, list[int], dict[float, int], dict, tuple, int | str, int | str | None, S])
def test_a_field_of_a_type_that_no_record_has_is_named(hint: Any) -> None:
    with pytest.raises(RecordError, match=r"^Checkpoint\.state: a record field cannot be of type "):
        unpack(Checkpoint[hint], Packed({}, '{"step": 0, "state": 0}'))


nodes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just({"tensor": "Everything.maybe"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["tensor", "number", "a"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(Everything.__dataclass_fields__)), nodes)
def test_any_json_at_all_is_read_or_refused(name: str, node: Any) -> None:
    x = torch.zeros(1)
    leaf = Leaf(x, 0.0)
    good = Everything(True, 1, 1.0, "", 3, x, None, (x,), (1, ""), {"a": x}, {1: leaf}, {}, leaf, Empty())
    packed = pack(good)
    text = json.dumps(json.loads(packed.skeleton) | {name: node})
    try:
        back = unpack(Everything, Packed(packed.tensors, text))
    except RecordError as error:
        assert str(error).startswith("Everything")  # noqa: PT017
    else:
        assert same(unpack(Everything, pack(back)), back)


# Damage.

SMALL = Checkpoint(7, {"w": torch.tensor([1.5, math.nan]), "n": torch.tensor(3)})
SMALL_KIND: Any = Checkpoint[dict[str, Tensor]]


def test_a_message_cut_off_anywhere_is_refused() -> None:
    message = to_bytes(pack(SMALL))
    for length in range(len(message)):
        with pytest.raises(RecordError, match="not a packed record"):
            from_bytes(message[:length])
    with pytest.raises(RecordError, match="not a packed record"):
        from_bytes(message + b"\0")


def test_a_file_cut_off_anywhere_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(SMALL, path, durable=False)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError, match=r"state\.safetensors is damaged"):
            load(SMALL_KIND, path)


def test_no_byte_of_a_file_is_damaged_unseen(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(SMALL, path, durable=False)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (place % 5, 5):  # bit 5 makes a capital small, and a space a NUL
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                back = load(SMALL_KIND, path)
            except RecordError as error:
                assert str(error).startswith(str(path))  # noqa: PT017
            else:
                assert same(back, SMALL)  # e.g. a space of the padding


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_messages_and_files_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x"
    save(SMALL, path, durable=False)
    message, content = bytearray(to_bytes(pack(SMALL))), bytearray(path.read_bytes())
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4)):
        message[place % len(message)] = byte
        content[place % len(content)] = byte
    with contextlib.suppress(RecordError):
        unpack(SMALL_KIND, from_bytes(bytes(message)))
    path.write_bytes(content)
    try:
        back = load(SMALL_KIND, path)
    except RecordError:
        return
    assert same(back, SMALL)


@pytest.mark.parametrize("dtype", ["C64", "F8_E5M2", "U16", "BOOL", "I16", "BF16", "F4", "F6_E2M3", "F99"])
def test_a_file_that_names_another_dtype_is_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x"
    save(One(torch.arange(8, dtype=torch.float16)), path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"F16"', f'"{dtype}"'.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(RecordError, match="is damaged"):
        load(One, path)


def test_a_foreign_file_with_a_true_checksum_is_still_read_by_its_type(tmp_path: Path) -> None:
    """The checksum guards against damage; the types guard against everything else."""

    path = tmp_path / "x"
    safetensors.torch.save_file({}, path, {"record": '{"x": "1"}', "crc32": str(zlib.crc32(b'{"x": "1"}'))})
    with pytest.raises(RecordError, match=r"/x: Count\.x: expected int, got str"):
        load(Count, path)
    safetensors.torch.save_file({}, path)
    with pytest.raises(RecordError, match="is damaged"):
        load(Count, path)


@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b"PK\3\4" * 20, b"\xff" * 64, bytes(64)])
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordError, match="not a packed record"):
        from_bytes(content)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RecordError, match="is damaged"):
        load(Empty, tmp_path / "x")


def test_safetensors_without_a_record_are_refused() -> None:

    for about in (None, {"other": "1"}):
        with pytest.raises(RecordError, match="not a packed record"):
            from_bytes(safetensors.torch.save({"x": torch.zeros(1)}, about))


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        load(Empty, tmp_path / "x")
    with pytest.raises(RecordError, match="is damaged"):
        load(Empty, tmp_path)


# Files are whole or not there.


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "state.safetensors"
    save(Count(1), path)

    def fail(handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        save(Count(2), path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert load(Count, path) == Count(1)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    script = """
        import resource, sys, torch
        from pathlib import Path
        from genfed.core.record import load
        from genfed.core.record import save
        from tests.core.test_record import One
        path = Path(sys.argv[1])
        save(One(torch.ones(3)), path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save(One(torch.zeros(100_000)), path)
        except OSError as error:
            print(type(error).__name__, error)
        assert load(One, path).x.tolist() == [1.0, 1.0, 1.0]
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"OSError cannot write {tmp_path / 'x'}: ")


def test_saving_where_there_is_no_folder_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write|No such file"):
        save(Count(1), tmp_path / "missing" / "x")


def test_a_file_stays_readable_while_it_is_replaced(tmp_path: Path) -> None:
    """What was loaded is mapped from the file: writing over the file must not change it."""
    path = tmp_path / "x"
    save(One(torch.ones(1000)), path)
    before = load(One, path)
    save(One(torch.zeros(1000)), path)
    assert bool((before.x == 1).all())
    after = load(One, path)
    after.x.fill_(5)  # nor does work in place reach the file
    assert bool((load(One, path).x == 0).all())


def test_a_file_of_other_content_is_refused_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x"
    checksums = [save(Count(value), path) for value in (1, 2)]
    assert load(Count, path, checksum=checksums[1]) == load(Count, path) == Count(2)
    with pytest.raises(RecordError, match="x is another record than was written last"):
        load(Count, path, checksum=checksums[0])


def test_a_killed_writer_leaves_only_what_the_next_run_deletes(tmp_path: Path) -> None:
    """safetensors' own writer leaves files under names of its own, which nobody deletes."""
    (tmp_path / "below").mkdir()
    child = os.fork()
    if child == 0:
        vars(files)["sync"] = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        save(One(torch.ones(1000)), tmp_path / "below" / "x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (tmp_path / "below").iterdir()
    assert left.name == f".x.{child}.part"
    remove_parts(tmp_path)
    assert not left.exists()


def test_a_record_has_the_mode_of_other_files(tmp_path: Path) -> None:
    save(Count(1), tmp_path / "x")
    with atomic_write(tmp_path / "y") as part:
        part.write_text("text")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


# Fingerprints.


def test_the_digest_sees_every_part() -> None:
    base = Leaf(torch.tensor([1.0, 2.0]), 1.0)
    others = [
        Leaf(torch.tensor([1.0, 2.0]), 2.0),
        Leaf(torch.tensor([2.0, 1.0]), 1.0),
        Leaf(torch.tensor([[1.0, 2.0]]), 1.0),
        Leaf(torch.tensor([1.0, 2.0]).view(torch.int32), 1.0),
        Leaf(torch.tensor([1.0]), 1.0),
    ]
    assert digest(pack(base)) == digest(pack(Leaf(torch.tensor([1.0, 0.0, 2.0])[::2], 1.0)))
    assert len({digest(pack(record)) for record in (base, *others)}) == 6
