"""How raw examples become x: stored with a run and with every exported model, and applied to new examples."""

import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic

from genfed.core.errors import GenfedError
from genfed.core.files import write_file
from genfed.core.task import Kind
from genfed.data.features import TableSchema
from genfed.preprocessing.channel_scale import ChannelScale
from genfed.preprocessing.checks import require_path
from genfed.preprocessing.pixel_scale import PixelScale

Encoder = Annotated[TableSchema | PixelScale | ChannelScale, pydantic.Field(discriminator="kind")]
"""How raw examples become x. Each kind is a frozen dataclass whose field `kind` names it."""
_ADAPTER: pydantic.TypeAdapter[Encoder] = pydantic.TypeAdapter(Encoder, config=pydantic.ConfigDict(allow_inf_nan=False))

E = TypeVar("E")


def read_encoder(file: Path) -> Encoder:
    """Reads the file that `write_encoder` wrote.

    Raises:
        GenfedError: the file is missing or holds something else.
    """
    try:
        return _ADAPTER.validate_json(file.read_bytes())
    except (OSError, pydantic.ValidationError):
        raise GenfedError(f"{file} is damaged; resuming the run (--resume) writes it anew") from None


def read_schema(path: str) -> TableSchema:
    """Reads the schema of a table from a file that a user names.

    Raises:
        GenfedError: there is no such file, or it holds something else.
    """
    return _read_given(path, TableSchema, "a table")


def read_channel_scale(path: str) -> ChannelScale:
    """Reads the scale of the channels of series from a file that a user names.

    Raises:
        GenfedError: there is no such file, or it holds something else.
    """
    return _read_given(path, ChannelScale, "series")


def _read_given(path: str, kind: type[E], what: str) -> E:
    file = require_path(path)
    with contextlib.suppress(OSError, pydantic.ValidationError):
        if isinstance(found := _ADAPTER.validate_json(file.read_bytes()), kind):
            return found
    raise GenfedError(f"{path}: not the encoder.json of a run on {what}")


def dump_schema(schema: TableSchema) -> str:
    """Returns a schema as JSON, for `parse_schema`."""
    return _dump(schema).decode()


def parse_schema(text: str | bytes, where: str) -> TableSchema:
    """Returns the schema that `dump_schema` wrote; `where` names its file in messages.

    Raises:
        GenfedError: it is something else.
    """
    try:
        found = _ADAPTER.validate_json(text)
    except pydantic.ValidationError:
        raise GenfedError(f"{where}: it holds no schema of a table") from None
    if not isinstance(found, TableSchema):
        raise GenfedError(f"{where}: it holds no schema of a table")
    return found


def write_encoder(encoder: Encoder, file: Path) -> None:
    """Writes the encoder as JSON."""
    write_file(file, _dump(encoder))


def fingerprint_encoder(encoder: Encoder | None) -> str:
    """Returns the digest of the file that `write_encoder` writes; empty: there is none. Unlike `digest_encoder`, it
    tells apart scales of pixels by which the same image is stored as other numbers.
    """
    return "" if encoder is None else fingerprint_content(_dump(encoder))


def fingerprint_content(content: bytes) -> str:
    """Returns 32 hexadecimal digits for the content of a file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _dump(encoder: Encoder) -> bytes:
    return _ADAPTER.dump_json(encoder, indent=1) + b"\n"


def digest_encoder(encoder: Encoder | None, kind: Kind = "table") -> str:
    """Returns 32 hexadecimal digits that are the same for encoders that give equal numbers for equal examples only;
    empty: there is none. Images without an encoder are on the usual scale of pixels.
    """
    if kind == "image" and encoder is None:
        encoder = PixelScale()
    if encoder is None:
        return ""
    said = encoder.identity.encode() if isinstance(encoder, PixelScale) else _ADAPTER.dump_json(encoder)
    return fingerprint_content(said)
