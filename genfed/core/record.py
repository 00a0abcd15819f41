"""Records: the typed values that server and clients exchange and that are written to disk.

A record is a frozen dataclass of tensors, numbers, strings, None, tuples, dicts and records. `pack` splits it into
named tensors and a JSON skeleton; a checkpoint file (safetensors) and a network message are thin wrappers of that
pair. Nothing is ever pickled.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from genfed.core.errors import RecordError
from genfed.core.files import atomic_write
from genfed.core.json_text import read_json
from genfed.core.text import one_line

R = TypeVar("R")
_SCALARS = (int, float, str, bool)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *_FLOATS))


HEADER = 2**25
"""Maximum size in bytes of the header of a message, which names its tensors and holds its skeleton (32 MiB: 100,000
tensors have less)."""
LONGEST_KEY = 1000
"""Maximum length in characters of a key of a dict: it is repeated in the path of every value in the dict."""


class Packed(NamedTuple):
    """A record prepared for a file or a message: tensors by path, and the rest as JSON."""

    tensors: dict[str, Tensor]
    """Tensors by path in the record, such as "Model.classifier['bias']"."""
    skeleton: str
    """The rest of the record, JSON."""

    @property
    def nbytes(self) -> int:
        """Size of the message in bytes; 0 for a record without fields."""
        text = 0 if self.skeleton == "{}" else len(self.skeleton.encode())
        return text + sum(t.numel() * t.element_size() for t in self.tensors.values())


def pack(record: object) -> Packed:
    """Splits a record into tensors and a skeleton.

    A tensor that is contiguous, on the CPU and overlaps no other is a view, so it must not be changed in place before
    the result has been written or copied.

    Raises:
        RecordError: a record cannot hold one of the values; the message names its path.
    """
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise RecordError(f"a record is a dataclass instance, not a {type(record).__name__}")
    name, tensors = type(record).__name__, _TensorCollector()
    try:
        return Packed(tensors.by_path, json.dumps(_build_skeleton(record, name, tensors)))
    except RecursionError:
        raise RecordError(f"{name}: nested too deeply") from None
    except ValueError as error:  # an int of thousands of digits
        raise RecordError(f"{name}: cannot be written as JSON ({error})") from None


class _TensorCollector:
    """The tensors found in a record so far."""

    def __init__(self) -> None:
        self.by_path: dict[str, Tensor] = {}
        self._ranges: dict[int, list[tuple[int, int]]] = {}  # storage -> byte ranges already taken

    def add(self, tensor: Tensor, path: str) -> None:
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            about = f"{tensor.dtype} {tensor.layout} tensor on {tensor.device}"
            raise RecordError(f"{path}: a record cannot hold a {about}")
        # A view such as x.conj().imag is negated only when it is read; what is written are its raw bytes.
        tensor = tensor.detach().cpu().resolve_neg().contiguous()
        begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        taken = self._ranges.setdefault(tensor.untyped_storage().data_ptr(), [])
        if any(begin < stop and start < begin + size for start, stop in taken):
            tensor = tensor.clone()  # a file holds every tensor once, but two fields may share one
        else:
            taken.append((begin, begin + size))
        self.by_path[path] = tensor


# Not a closure: a closure that calls itself is a reference cycle, which holds the tensors until the next collection.
def _build_skeleton(value: Any, path: str, tensors: _TensorCollector) -> Any:
    if isinstance(value, Tensor):
        tensors.add(value, path)
        return {"tensor": path}
    if value is None or type(value) in _SCALARS:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: _build_skeleton(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in fields}
    if isinstance(value, dict):
        if invalid := [k for k in value if type(k) not in (str, int)]:
            raise RecordError(f"{path}: a record's dict has str or int keys, not {invalid[0]!r}")
        _check_lengths(value, path)
        # repr distinguishes 1 from "1", and a key that contains a dot from another path
        return [[k, _build_skeleton(v, f"{path}[{k!r}]", tensors)] for k, v in value.items()]
    if isinstance(value, tuple):
        return [_build_skeleton(v, f"{path}[{i}]", tensors) for i, v in enumerate(value)]
    raise RecordError(f"{path}: a record cannot hold a {type(value).__name__}")


def unpack(kind: type[R], packed: Packed) -> R:
    """Rebuilds a record of type `kind` from the result of `pack`; the tensors are not copied.

    Raises:
        RecordError: the input is not a `kind`; the message names the path.
    """
    name = (typing.get_origin(kind) or kind).__name__
    try:
        node = read_json(packed.skeleton)
    except RecordError as error:
        raise RecordError(f"{name}: the skeleton is {error}") from None
    unread = dict(packed.tensors)
    try:
        record = _make_reader(typing.cast(typing.Hashable, kind), name)(node, name, unread)
    except RecursionError:
        raise RecordError(f"{name}: nested too deeply, or a type that contains itself") from None
    if unread:
        raise RecordError(f"{name}: unexpected tensor {min(unread)}")
    return typing.cast(R, record)


def _check_lengths(keys: Iterable[str | int], path: str) -> None:
    """Refuses keys of a dict that are too long."""
    longest = max((len(key) for key in keys if isinstance(key, str)), default=0)
    if longest > LONGEST_KEY:
        raise RecordError(f"{path}: a key of {longest} characters; at most {LONGEST_KEY} are allowed")


_Reader = Callable[[Any, str, dict[str, Tensor]], Any]


@functools.cache
def _make_reader(hint: Any, at: str) -> _Reader:
    """Makes a function that reads a node of a skeleton as the type `hint`; `at` is the path of the type for errors."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Tensor:
        return _read_tensor
    if hint in _SCALARS:
        return functools.partial(_read_scalar, hint)
    if origin is typing.Literal:
        return functools.partial(_read_literal, args)
    if origin in (types.UnionType, typing.Union) and len(args) == 2 and types.NoneType in args:
        some = _make_reader(next(a for a in args if a is not types.NoneType), at)
        return lambda node, path, unread: None if node is None else some(node, path, unread)
    if origin is dict and args[0] in (str, int):
        return functools.partial(_read_dict, args[0], _make_reader(args[1], at))
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return functools.partial(_read_tuple, _make_reader(args[0], at), None)
    if origin is tuple:
        return functools.partial(_read_tuple, None, tuple(_make_reader(a, at) for a in args))
    generic = origin or hint
    if dataclasses.is_dataclass(generic) and isinstance(generic, type):
        bound = dict(zip(getattr(generic, "__parameters__", ()), args, strict=False))
        hints = typing.get_type_hints(generic)
        readers = {
            f.name: _make_reader(bound.get(hints[f.name], hints[f.name]), f"{at}.{f.name}")
            for f in dataclasses.fields(generic)
        }
        return functools.partial(_read_record, generic, readers)
    raise RecordError(f"{at}: a record field cannot be of type {hint}")


def _read_tensor(node: Any, path: str, unread: dict[str, Tensor]) -> Tensor:
    if not isinstance(node, dict) or node.get("tensor") != path or path not in unread:
        raise RecordError(f"{path}: the tensor is missing")
    tensor = unread.pop(path)
    if tensor.dtype not in _DTYPES:
        raise RecordError(f"{path}: a record cannot hold a {tensor.dtype} tensor")
    return tensor


def _read_scalar(kind: type, node: Any, path: str, unread: dict[str, Tensor]) -> Any:
    if kind is float and type(node) is int:
        try:
            return float(node)
        except OverflowError:
            raise RecordError(f"{path}: an integer too large for a float") from None
    if type(node) is not kind:
        raise RecordError(f"{path}: expected {kind.__name__}, got {type(node).__name__}")
    return node


def _read_literal(allowed: tuple[Any, ...], node: Any, path: str, unread: dict[str, Tensor]) -> Any:
    if not any(type(node) is type(value) and node == value for value in allowed):
        raise RecordError(f"{path}: expected one of {allowed}, got {one_line(repr(node), 80)}")
    return node


def _read_dict(key: type, value: _Reader, node: Any, path: str, unread: dict[str, Tensor]) -> Any:
    if not isinstance(node, list) or not all(isinstance(p, list) and len(p) == 2 for p in node):
        raise RecordError(f"{path}: expected a dict, got {type(node).__name__}")
    if invalid := [k for k, _ in node if type(k) is not key]:
        raise RecordError(f"{path}: expected keys of type {key.__name__}, got {one_line(repr(invalid[0]), 80)}")
    _check_lengths((k for k, _ in node), path)
    read = {k: value(v, f"{path}[{k!r}]", unread) for k, v in node}
    if len(read) != len(node):
        raise RecordError(f"{path}: a key appears twice")
    return read


def _read_tuple(
    item: _Reader | None, fixed: tuple[_Reader, ...] | None, node: Any, path: str, unread: dict[str, Tensor]
) -> Any:
    if not isinstance(node, list):
        raise RecordError(f"{path}: expected a tuple, got {type(node).__name__}")
    readers = fixed if item is None else (item,) * len(node)
    assert readers is not None
    if len(readers) != len(node):
        raise RecordError(f"{path}: expected {len(readers)} items, got {len(node)}")
    return tuple(r(v, f"{path}[{i}]", unread) for i, (r, v) in enumerate(zip(readers, node, strict=True)))


def _read_record(kind: type, readers: dict[str, _Reader], node: Any, path: str, unread: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        raise RecordError(f"{path}: expected a {kind.__name__}, got {type(node).__name__}")
    if missing := readers.keys() - node.keys():
        raise RecordError(f"{path}: {kind.__name__} lacks {min(missing)}")
    if unknown := node.keys() - readers.keys():
        raise RecordError(f"{path}: {kind.__name__} has no field {min(unknown)}")
    return kind(**{name: read(node[name], f"{path}.{name}", unread) for name, read in readers.items()})


def to_bytes(packed: Packed, **more: str) -> bytes:
    """Returns the packed record as one message, which `from_bytes` reads. `more`: further metadata of the file."""
    return safetensors.torch.save(packed.tensors, {"record": packed.skeleton, **more})


def from_bytes(data: bytes) -> Packed:
    """Reads the result of `to_bytes`.

    Raises:
        RecordError: the bytes are truncated or something else.
    """
    size = int.from_bytes(data[:8], "little")
    if size > HEADER:
        raise RecordError(f"not a packed record (a header of {size} bytes; at most {HEADER} are allowed)")
    try:
        tensors = safetensors.torch.load(data)
        return Packed(tensors, json.loads(data[8 : 8 + size])["__metadata__"]["record"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise RecordError(f"not a packed record ({error})") from None


def save(record: object, path: Path, *, durable: bool = True) -> str:
    """Writes the record to one safetensors file with a checksum, atomically: under a temporary name, then a rename.
    Returns the checksum, by which `load` can refuse another record. The bytes are built in memory first: safetensors'
    own writer leaves temporary files behind when its process is killed.

    Args:
        record: The record.
        path: The file.
        durable: Whether the file is on the disk on return, so that it survives a power failure.

    Raises:
        RecordError: a record cannot hold one of the values.
        OSError: the disk is full or not writable; the file that was at `path` before is unchanged.
    """
    packed = pack(record)
    checksum = compute_checksum(packed)
    content = to_bytes(packed, crc32=checksum)
    try:
        with atomic_write(path, durable=durable) as part:
            part.write_bytes(content)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    return checksum


def load(kind: type[R], path: Path, *, checksum: str | None = None) -> R:
    """Reads a record that `save` wrote; tensors are mapped from the file and read when they are used.

    Args:
        kind: the type of the record.
        path: the file.
        checksum: what `save` returned for the record. None: any record of this type is read.

    Raises:
        RecordError: the file is missing, truncated, damaged or holds something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
            packed = Packed({k: file.get_tensor(k) for k in file.keys()}, about.get("record", ""))  # noqa: SIM118
        found = compute_checksum(packed)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise RecordError(f"{path} is damaged ({error})") from None
    if about.get("crc32") != found:
        raise RecordError(f"{path} is damaged (the checksum does not match)")
    if checksum not in (None, found):
        raise RecordError(f"{path} is another record than was written last")
    try:
        return unpack(kind, packed)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None


def digest(packed: Packed, size: int = 16) -> str:
    """Returns a fingerprint of the whole record: equal records have equal ones, on every engine.

    Args:
        packed: the record.
        size: number of bytes. With 32 nobody can make two records with one fingerprint.
    """
    hashed = hashlib.blake2b(packed.skeleton.encode(), digest_size=size)
    for name in sorted(packed.tensors):
        tensor = packed.tensors[name]
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(_view_bytes(tensor))
    return hashed.hexdigest()


def _view_bytes(tensor: Tensor) -> memoryview:
    # A contiguous tensor of at most one element may have any strides, some of which `view` refuses.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def compute_checksum(packed: Packed) -> str:
    """Returns the checksum of a file, which finds accidents. See `digest` for what others may have changed."""
    crc = zlib.crc32(packed.skeleton.encode())
    for name in sorted(packed.tensors):
        tensor = packed.tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(_view_bytes(tensor), crc)
    return str(crc)
