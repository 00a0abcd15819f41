"""How raw examples become x: stored with a run and with every exported model, and applied to new examples."""

import hashlib
from pathlib import Path

import pydantic

from genfed.core.errors import GenfedError
from genfed.data.checks import require_path
from genfed.data.features import TableSchema

# A further kind is one more member: Annotated[TableSchema | Other, pydantic.Field(discriminator="kind")].
Encoder = TableSchema
"""How raw examples become x. Each kind is a frozen dataclass whose field `kind` names it."""
_ADAPTER: pydantic.TypeAdapter[Encoder] = pydantic.TypeAdapter(Encoder)


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
    try:
        found = _ADAPTER.validate_json(require_path(path).read_bytes())
    except (OSError, pydantic.ValidationError):
        raise GenfedError(f"{path}: not the encoder.json of a run on a table") from None
    if not isinstance(found, TableSchema):
        raise GenfedError(f"{path}: not the encoder.json of a run on a table")
    return found


def write_encoder(encoder: Encoder, file: Path) -> None:
    """Writes the encoder as JSON."""
    file.write_bytes(_ADAPTER.dump_json(encoder, indent=1) + b"\n")


def digest_encoder(encoder: Encoder | None) -> str:
    """Returns 32 hexadecimal digits that are the same for equal encoders only; empty: there is none."""
    return "" if encoder is None else hashlib.blake2b(_ADAPTER.dump_json(encoder), digest_size=16).hexdigest()
