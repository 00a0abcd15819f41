"""Reads TOML files as people and editors write them."""

import tomllib
from pathlib import Path
from typing import Any

from genfed.core.errors import GenfedError, first_line

LARGEST = 2**24
"""Largest number of bytes of a TOML file."""


def read_toml(path: Path, wanted: str) -> dict[str, Any]:
    """Returns the content of a TOML file in UTF-8, with or without a byte order mark. `wanted` says what to give
    instead, for a message.

    Raises:
        GenfedError: there is no such file, it is too large, not UTF-8 text or not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise GenfedError(f"{path}: {error.strerror}; give {wanted}") from None
    if len(content) > LARGEST:
        raise GenfedError(f"{path}: above {LARGEST // 2**20} MiB, which no TOML file of settings is; give {wanted}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise GenfedError(f"{path}: {_describe_encoding(content)}; give {wanted}") from None
    if "\0" in text[:4]:  # UTF-16 without a mark
        raise GenfedError(f"{path}: {_describe_encoding(content)}; give {wanted}")
    try:
        return parse_toml(text)
    except GenfedError as error:
        raise GenfedError(f"{path}: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Returns the content of a text in TOML.

    Raises:
        GenfedError: it is not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:  # not TOML; a number of thousands of digits
        raise GenfedError(f"not TOML: {first_line(error)}") from None
    except RecursionError:
        raise GenfedError("not TOML of settings: tables or lists are nested too deeply") from None


def _describe_encoding(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        return "UTF-16 text; save it as UTF-8"
    return "not UTF-8 text"
